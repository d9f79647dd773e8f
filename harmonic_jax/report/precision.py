"""Figures of average precision: its curves, and what perfect scores would add."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from harmonic_jax.report.numbers import in_words, interval_of, show_number, value_of
from harmonic_jax.report.panels import (
    Figure,
    Line,
    Look,
    Mark,
    Notes,
    Panel,
    Rectangles,
    Whiskers,
    axis_to,
    fraction_axis,
    name_axis,
)

MOST_SMALL_PANELS = 24


def curves_figure(report: Mapping[str, Any]) -> Figure:
    """Precision at every recall, at IoU .50 and .75."""
    curves, overall = report["curves"], report["overall"]
    recall, tables = np.array(curves["recall"], float), curves["precision"]
    names = [name for name in tables if name != "all" and _curve(tables[name]["0.50"]) is not None]
    names.sort(key=lambda name: value_of(report["classes"].get(name, {}), "AP"))
    more_title = f"Each class ({len(names)}), lowest AP first"
    if len(names) > MOST_SMALL_PANELS:
        more_title = f"The {MOST_SMALL_PANELS} classes of {len(names)} with the lowest AP"
    at_50 = _curve(tables["all"]["0.50"])
    finding = f"AP50 is {in_words(overall, 'AP50')}, AP75 {in_words(overall, 'AP75')}."
    if at_50 is not None:
        middle = show_number(float(at_50[len(at_50) // 2]))
        finding += f" Half of the objects are found (IoU .50) at a precision of {middle}."
    return Figure(
        "precision_recall",
        "Precision and recall",
        "From left to right more boxes are taken, best score first: recall is the share of objects "
        "found, precision the share of boxes that are right. The area under a line is its AP. "
        "Where the two lines part, boxes lie on an object but are badly placed.",
        finding,
        (_curves_panel("Mean over classes", recall, tables["all"]),),
        tuple(_curves_panel(name, recall, tables[name]) for name in names[:MOST_SMALL_PANELS]),
        more_title,
    )


def _curve(values: Any) -> np.ndarray | None:
    if values is None:
        return None
    curve = np.array(values, float)
    return curve if np.isfinite(curve).any() else None


def _curves_panel(title: str, recall: np.ndarray, table: Mapping[str, Any]) -> Panel:
    looks: tuple[tuple[Look, str], ...] = (("a", "0.50"), ("b", "0.75"))
    marks = []
    for look, key in looks:
        curve = _curve(table.get(key))
        if curve is not None:
            marks.append(Line(*thinned(recall, curve), look, f"IoU {key.removeprefix('0')}"))
    return Panel(title, fraction_axis("recall"), fraction_axis("precision"), tuple(marks), 0.85)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve without points inside level stretches.

    Example:
      >>> x, y = thinned(np.arange(5.0), np.array([1.0, 1.0, 1.0, 0.5, 0.5]))
      >>> x.tolist(), y.tolist()
      ([0.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.5, 0.5])
    """
    keep = np.ones(len(y), bool)
    keep[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    return x[keep], y[keep]


_RANKINGS: tuple[tuple[Look, str, str], ...] = (
    ("a", "", "ranked by the detector's scores"),
    ("b", "_ranked_by_iou", "ranked by true IoU"),
    ("c", "_best_raw", "best box of each object before NMS"),
)


def headroom_figure(report: Mapping[str, Any]) -> Figure:
    """AP as it is, and with scores that tell every IoU."""
    overall = report["overall"]
    rows = ("AP",)
    rankings = [r for r in _RANKINGS if np.isfinite(value_of(overall, f"AP{r[1]}"))]
    marks: list[Mark] = []
    thick = 0.8 / max(len(rankings), 1)
    for i, (look, suffix, name) in enumerate(rankings):
        value = np.array([value_of(overall, f"{row}{suffix}") for row in rows])
        low, high = np.array([interval_of(overall, f"{row}{suffix}") for row in rows]).T
        top = np.arange(len(rows)) - 0.4 + i * thick
        middle = top + thick / 2
        end = np.where(np.isfinite(high), high, value)
        known = np.isfinite(value)
        marks += [
            Rectangles(np.zeros(len(rows)), value, top + 0.02, top + thick - 0.02, look, name),
            Whiskers(low, high, middle),
            Notes(end[known], middle[known], tuple(show_number(v) for v in value[known].tolist())),
        ]
    finding = (
        f"AP is {in_words(overall, 'AP')}. The same boxes ranked by true IoU would have "
        f"{in_words(overall, 'AP_ranked_by_iou')}: better scores alone could add "
        f"{in_words(overall, 'AP_headroom')}."
    )
    if len(rankings) == 3:
        finding += (
            " With the best box of each object before NMS it would be "
            f"{in_words(overall, 'AP_best_raw')}: the rest is for better boxes."
        )
    panel = Panel("Average precision", axis_to("AP", 1.15), name_axis(rows), tuple(marks), 0.35)
    return Figure(
        "head_room",
        "What consistent scores would give",
        "Boxes stay where they are; only their order changes. The gap between the plain and the "
        "hatched bars is what scores that disagree with their boxes cost. Lines: 95 % intervals.",
        finding,
        (panel,),
    )
