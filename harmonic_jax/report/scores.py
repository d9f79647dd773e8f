"""Figures of scores beside IoUs: their joint density, and calibration."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from harmonic_jax.metrics.consistency.study import Pairs, Study
from harmonic_jax.report.numbers import in_words, percent, show_number
from harmonic_jax.report.panels import (
    Axis,
    Cells,
    Figure,
    Line,
    Mark,
    Panel,
    Rectangles,
    fraction_axis,
    log_axis,
)

MARGIN = 0.2
NUM_CELLS = 50
NUM_STEPS = 7
MOST_SMALL_PANELS = 24
FEWEST = 10  # boxes in a bin: the means of fewer jump up and down


def density_figure(study: Study, report: Mapping[str, Any]) -> Figure:
    """Score against IoU, before NMS where the raw boxes are known, and after."""
    panels = [density_panel("After NMS", study.pairs)]
    if study.raw_pairs is not None:
        panels.insert(0, density_panel("Before NMS", study.raw_pairs))
    overall = report["overall"]
    finding = f"The rank correlation (Spearman) is {in_words(overall, 'spearman')}."
    reading = (
        "Every box is placed by its score and by its IoU with the object of its class that it "
        "overlaps most; stronger cells hold more boxes. The lowest row holds boxes that meet no "
        "object."
    )
    if are_fractions(study.pairs.score):
        finding += f" The mean gap is {in_words(overall, 'mean_gap')}. Of {_apart(study.pairs)}"
        reading += " Consistent scores lie on the dashed diagonal; the dotted lines are .2 away."
    if study.raw_pairs is not None and are_fractions(study.raw_pairs.score):
        finding += f" Before NMS, of {_apart(study.raw_pairs)}"
    return Figure("score_iou", "Scores and boxes", reading, finding, tuple(panels))


def are_fractions(score: np.ndarray) -> bool:
    """Whether all scores are in [0, 1], where they can be compared with IoUs."""
    return bool(((score >= 0) & (score <= 1)).all())


def _apart(pairs: Pairs) -> str:
    apart = int((np.abs(pairs.score - pairs.iou) > MARGIN).sum())
    share = percent(apart, len(pairs))
    return f"{len(pairs):,} boxes {apart:,} ({share}) are further than .2 off."


def density_panel(title: str, pairs: Pairs) -> Panel:
    """Counts in a grid of cells: the work and the size do not grow with the picture of a box."""
    low, high = min(0.0, pairs.score.min(initial=0.0)), max(1.0, pairs.score.max(initial=1.0))
    x_edges = np.linspace(low, high, NUM_CELLS + 1)
    y_edges = np.linspace(0.0, 1.0, NUM_CELLS + 1)
    counts, _, _ = np.histogram2d(np.clip(pairs.iou, 0, 1), pairs.score, bins=(y_edges, x_edges))
    step, texts = count_steps(counts)
    x = fraction_axis("score")
    guides: tuple[Line, ...] = _GUIDES
    if not are_fractions(pairs.score):
        places = np.linspace(low, high, 5)
        ticks = tuple((place, f"{place:.3g}") for place in places.tolist())
        x, guides = Axis("score", low, high, ticks), ()
    marks: tuple[Mark, ...] = (Cells(x_edges, y_edges, step, texts), *guides)
    return Panel(f"{title}: {len(pairs):,} boxes", x, fraction_axis("IoU"), marks, height=1.0)


_GUIDES: tuple[Line, ...] = (
    Line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "b", "score = IoU"),
    Line(np.array([0.0, 1.0 - MARGIN]), np.array([MARGIN, 1.0]), "muted"),
    Line(np.array([MARGIN, 1.0]), np.array([0.0, 1.0 - MARGIN]), "muted"),
)


def count_steps(counts: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Counts as steps of a ramp that grow by a factor, and the least count of each as text.

    Returns:
      int [ny, nx], -1 for a count of 0; and the texts.

    Example:
      >>> step, texts = count_steps(np.array([[0, 1, 3, 99]]))
      >>> step.tolist(), texts
      ([[-1, 0, 1, 6]], ('1+', '2+', '4+', '8+', '14+', '27+', '52+'))
    """
    top = int(counts.max(initial=0))
    if top == 0:
        return np.full(counts.shape, -1), ()
    edges = np.unique(np.ceil(np.geomspace(1, top + 1, min(top, NUM_STEPS) + 1)).astype(int))
    step = np.searchsorted(edges, counts, side="right") - 1
    texts = tuple(f"{_short(edge)}+" for edge in edges[:-1].tolist())
    return np.where(counts > 0, np.minimum(step, len(texts) - 1), -1), texts


def _short(count: int) -> str:
    return f"{count / 1000:.3g}k" if count >= 1000 else str(count)


def reliability_figure(report: Mapping[str, Any]) -> Figure | None:
    """Mean IoU and precision of boxes of like score, and how many there are.

    None where scores are not all in [0, 1].
    """
    tables, overall = report["reliability"], report["overall"]
    if not tables:
        return None
    bins = _Bins(tables["all"])
    counts = Panel(
        "How many boxes",
        fraction_axis("score"),
        log_axis("boxes", bins.count.max(initial=1)),
        (
            Rectangles(
                bins.edges[:-1],
                bins.edges[1:],
                np.full(len(bins.count), -0.3),
                np.log10(np.where(bins.count > 0, bins.count, np.nan)),
                "a",
            ),
        ),
        height=0.85,
    )
    names = [name for name in tables if name != "all" and max(tables[name]["count"]) >= FEWEST]
    names.sort(key=lambda name: -sum(tables[name]["count"]))
    more_title = f"Each class ({len(names)})"
    if len(names) > MOST_SMALL_PANELS:
        more_title = f"The {MOST_SMALL_PANELS} classes of {len(names)} with most boxes"
    return Figure(
        "reliability",
        "Reliability",
        "Boxes of like score are put together; each point is their mean IoU (circles) or the share "
        "of them that is right at IoU .5 (squares). On the dotted diagonal scores mean what they "
        "say; below it they promise too much, above it too little. Bins of fewer than "
        f"{FEWEST} boxes are left out; the second panel counts them all.",
        _leaning(bins) + f" LaECE is {in_words(overall, 'LaECE')}, D-ECE "
        f"{in_words(overall, 'D_ECE')}; 0 would be perfect.",
        (_reliability_panel("All classes", bins), counts),
        tuple(_reliability_panel(name, _Bins(tables[name])) for name in names[:MOST_SMALL_PANELS]),
        more_title,
    )


class _Bins:
    def __init__(self, table: Mapping[str, Any]) -> None:
        self.edges, self.count = np.array(table["edges"], float), np.array(table["count"], float)
        self.score, self.iou, self.precision = (
            np.array(table[name], float) for name in ("mean_score", "mean_iou", "precision")
        )


def _reliability_panel(title: str, bins: _Bins) -> Panel:
    ends = np.array([0.0, 1.0])
    many = bins.count >= FEWEST
    score = bins.score[many]
    marks = (
        Line(ends, ends, "muted", "perfect"),
        Line(score, bins.iou[many], "a", "mean IoU", has_markers=True),
        Line(score, bins.precision[many], "b", "share right at IoU .5", has_markers=True),
    )
    return Panel(title, fraction_axis("mean score"), fraction_axis("IoU, share right"), marks, 0.85)


def _leaning(bins: _Bins) -> str:
    total = bins.count.sum()
    if not total:
        return "There are no detections."
    gap = float(np.nansum(bins.count * (bins.score - bins.iou)) / total)
    if abs(gap) < 0.01:
        return "On average, scores are as high as the IoUs of their boxes."
    side = "above" if gap > 0 else "below"
    return f"On average, scores are {show_number(abs(gap))} {side} the IoUs of their boxes."
