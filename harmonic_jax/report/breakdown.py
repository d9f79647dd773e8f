"""Figures that break the numbers down: by class, and by kind of error."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harmonic_jax.metrics.consistency import METRICS
from harmonic_jax.report.numbers import Entry, in_words, interval_of, show_number, value_of
from harmonic_jax.report.panels import (
    Figure,
    Look,
    Notes,
    Panel,
    Rectangles,
    Whiskers,
    axis_to,
    name_axis,
)

MOST_CLASSES = 40
_BARS, _LETTER = 188.0, 6.1  # user units: the narrowest place for bars, a letter beside one
_KINDS = ("location", "class", "both", "duplicate", "background", "missed")
_OF_CLASSES: tuple[tuple[str, str, str, Look], ...] = (
    ("AP", "AP, more is better", "AP", "a"),
    ("Mean gap of score and IoU", "mean |score - IoU|, less is better", "mean_gap", "b"),
)


def classes_figure(report: Mapping[str, Any]) -> Figure | None:
    """AP and the gap of score and IoU of each class; None for fewer than two classes."""
    classes: Mapping[str, Mapping[str, Entry]] = report["classes"]
    if len(classes) < 2:
        return None
    ap = {name: value_of(metrics, "AP") for name, metrics in classes.items()}
    known = sorted((name for name in classes if np.isfinite(ap[name])), key=lambda name: ap[name])
    if not known:
        return None
    shown = known[:MOST_CLASSES]
    panels = tuple(
        bars_panel(title, label, shown, [classes[name] for name in shown], metric, look)
        for title, label, metric, look in _OF_CLASSES
    )
    gaps = {name: value_of(classes[name], "mean_gap") for name in known}
    widest = max(known, key=lambda name: np.nan_to_num(gaps[name], nan=-1.0))
    finding = (
        f"Lowest AP: {known[0]}, {in_words(classes[known[0]], 'AP')}; highest: {known[-1]}, "
        f"{in_words(classes[known[-1]], 'AP')}. Scores and boxes disagree most for {widest}: "
        f"{in_words(classes[widest], 'mean_gap')}."
    )
    if len(shown) < len(known):
        finding += f" Shown are the {len(shown)} of {len(known)} classes with the lowest AP."
    missing = len(classes) - len(known)
    if missing:
        finding += f" Classes without objects, left out: {missing}."
    reading = "A bar for each class, lowest AP first in both panels; lines are 95 % intervals."
    return Figure("classes", "Classes", reading, finding, panels)


def errors_figure(report: Mapping[str, Any]) -> Figure | None:
    """What each kind of error costs; None where nothing was computed."""
    overall = report["overall"]
    costs = {kind: value_of(overall, f"dAP_{kind}") for kind in _KINDS}
    if not np.isfinite(list(costs.values())).any():
        return None
    names = [METRICS[f"dAP_{kind}"].title for kind in _KINDS]
    rows = [{"cost": overall.get(f"dAP_{kind}", {})} for kind in _KINDS]
    panel = bars_panel("Kinds of error", "AP50 gained", names, rows, "cost", "a")
    worst = max(costs, key=lambda kind: np.nan_to_num(costs[kind], nan=-1.0))
    finding = (
        f"The most costly kind is “{METRICS[f'dAP_{worst}'].title}”: without it AP50 would be "
        f"higher by {in_words(overall, f'dAP_{worst}')}."
    )
    reading = (
        "A bar is the AP at IoU .50 that would be gained if one kind of error were mended and the "
        "others stayed (TIDE); gains do not add up. Badly placed: IoU of .1 to .5 with an object "
        "of its class. Duplicate: of an object already found. Background: IoU under .1 with "
        "everything. Lines: 95 % intervals."
    )
    return Figure("errors", "Errors", reading, finding, (panel,))


def bars_panel(
    title: str,
    label: str,
    names: Sequence[str],
    rows: Sequence[Mapping[str, Entry]],
    metric: str,
    look: Look,
) -> Panel:
    """Horizontal bars with their intervals and values, first name on top."""
    value = np.array([value_of(row, metric) for row in rows])
    low, high = np.array([interval_of(row, metric) for row in rows]).reshape(-1, 2).T
    end = np.fmax(value, high)
    y = np.arange(len(names), dtype=float)
    known = np.isfinite(value)
    texts = tuple(map(show_number, value[known].tolist()))
    lengths = np.array([len(text) for text in texts])
    x = axis_to(label, float(np.nanmax(end, initial=0.0)), most_steps=3)
    # Room for the texts to the right of their bars.
    needed = (end[known] / (1.0 - (_LETTER * lengths + 8.0) / _BARS)).max(initial=x.high)
    x = dataclasses.replace(x, high=float(needed))
    marks = (
        Rectangles(np.zeros(len(names)), value, y - 0.36, y + 0.36, look),
        Whiskers(low, high, y),
        Notes(end[known], y[known], texts),
    )
    return Panel(title, x, name_axis(names), marks, max(0.07 * len(names), 0.2))
