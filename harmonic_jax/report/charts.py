"""The charts of a consistency report, and what the page says of each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harmonic_jax.metrics.at_score import largest_confusions
from harmonic_jax.metrics.consistency import METRICS
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.report.plots import (
    LINES,
    MARGIN,
    add_legend,
    new_axes,
    new_bars,
    new_confusion,
    new_density,
    set_fractions,
    set_log,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_CELLS = 50
MOST_CLASSES = 40
MOST_SMALL_PANELS = 24
Entry = Mapping[str, Any]  # a number of the report
FEWEST = 10  # boxes in a bin: the means of fewer jump up and down


@dataclasses.dataclass(frozen=True)
class Chart:
    """Panels, and what they show.

    Attributes:
      panels: on the page and in the PNG.
      facts: for the page's words.
      more: further panels, shown on demand, on the page alone: of the first classes.
      num_classes: that could have such a panel.
    """

    panels: Sequence["Axes"]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    more: Sequence["Axes"] = ()
    num_classes: int = 0


def make_charts(study: Study, report: Mapping[str, Any]) -> dict[str, Chart]:
    """Draws the report, inside `chart_style`; charts that have nothing to show are left out."""
    charts = {
        "score_iou": density_chart(study),
        "reliability": reliability_chart(report),
        "head_room": headroom_chart(report),
        "precision_recall": curves_chart(report),
        "classes": classes_chart(report),
        "errors": errors_chart(report),
    }
    if rows := report.get("confusion"):
        told = {"words": largest_confusions(rows), "is_large": len(rows) > 12}
        charts["confusion"] = Chart((new_confusion(rows),), told)
    return {name: chart for name, chart in charts.items() if chart is not None}


def value_of(metrics: Mapping[str, Entry], name: str) -> float:
    """A number of the report; NaN where there is none."""
    value = metrics.get(name, {}).get("value")
    return float("nan") if value is None else float(value)


def density_chart(study: Study) -> Chart:
    """Score against IoU, before NMS where the raw boxes are known, and after.

    Counts in a grid of cells: the work and the size do not grow with the number of boxes.
    """
    panels, facts = [], {}
    for when, pairs in (("before", study.raw_pairs), ("after", study.pairs)):
        if pairs is None:
            continue
        scores = (
            float(pairs.score.min(initial=0.0)),
            float(pairs.score.max(initial=1.0)),
        )
        edges = np.linspace(0.0, 1.0, NUM_CELLS + 1), np.linspace(*scores, NUM_CELLS + 1)
        counts, _, _ = np.histogram2d(np.clip(pairs.iou, 0, 1), pairs.score, bins=edges)
        panels.append(new_density(f"{when.title()} NMS: {len(pairs):,} boxes", counts, scores))
        if scores == (0.0, 1.0):  # they can be compared with IoUs
            apart = np.abs(pairs.score - pairs.iou) > MARGIN
            facts[when] = {"boxes": len(pairs), "apart": int(apart.sum())}
    return Chart(panels, facts)


def reliability_chart(report: Mapping[str, Any]) -> Chart | None:
    """Mean IoU and precision of boxes of like score, and how many there are.

    None where scores are not all in [0, 1].
    """
    bins = {
        name: {column: np.array(values, float) for column, values in table.items()}
        for name, table in report["reliability"].items()
    }
    if not bins:
        return None
    everything = bins.pop("all")
    panel = _reliability_panel("All classes", everything)
    add_legend(panel)
    count = everything["count"]
    counted = new_axes("How many boxes")
    set_fractions(counted, x="score")
    least = 0.5  # of a logarithmic axis
    heights, color = np.maximum(count, least), LINES["a"]["color"]
    counted.stairs(heights, everything["edges"], baseline=least, fill=True, color=color)
    counted.set(ylabel="boxes", ylim=(least, 1.3 * count.max(initial=10.0)))
    gap = None
    if count.any():
        set_log(counted)
        gaps = everything["mean_score"] - everything["mean_iou"]
        gap = float(np.nansum(count * gaps) / count.sum())
    names = [name for name, table in bins.items() if table["count"].max() >= FEWEST]
    names.sort(key=lambda name: -bins[name]["count"].sum())
    more = [_reliability_panel(n, bins[n], is_small=True) for n in names[:MOST_SMALL_PANELS]]
    return Chart((panel, counted), {"gap": gap, "fewest": FEWEST}, more, len(names))


def _reliability_panel(
    title: str, bins: Mapping[str, np.ndarray], *, is_small: bool = False
) -> "Axes":
    axes = new_axes(title, is_small=is_small)
    set_fractions(axes, x="mean score", y="IoU, share right")
    many = bins["count"] >= FEWEST
    axes.plot([0, 1], [0, 1], **LINES["guide"], label="perfect")
    for series, marker, column, label in (
        ("a", "o", "mean_iou", "mean IoU"),
        ("b", "s", "precision", "share right at IoU .5"),
    ):
        score, value = bins["mean_score"][many], bins[column][many]
        axes.plot(score, value, **LINES[series], marker=marker, label=label)
    return axes


def headroom_chart(report: Mapping[str, Any]) -> Chart:
    """AP as it is, and with scores that tell every IoU."""
    overall = report["overall"]
    bars = {"as it is": "AP", "ranked by true IoU": "AP_ranked_by_iou"}
    if np.isfinite(value_of(overall, "AP_best_raw")):
        bars["best before NMS"] = "AP_best_raw"
    axes = new_bars("Average precision", "AP", {row: overall.get(n, {}) for row, n in bars.items()})
    axes.set_xlim(0.0, 1.0)
    return Chart((axes,))


def curves_chart(report: Mapping[str, Any]) -> Chart:
    """Precision at every recall, at IoU .50 and .75."""
    recall, precision = np.array(report["curves"]["recall"]), report["curves"]["precision"]
    tables = {name: {f"IoU {t[1:]}": c for t, c in of.items()} for name, of in precision.items()}
    names = [name for name in tables if name != "all" and _is_known(tables[name]["IoU .50"])]
    names.sort(key=lambda name: value_of(report["classes"].get(name, {}), "AP"))
    more = [
        curves_panel(name, recall, tables[name], is_small=True)
        for name in names[:MOST_SMALL_PANELS]
    ]
    at_50 = tables["all"]["IoU .50"]
    panel = curves_panel("Mean over classes", recall, tables["all"])
    if panel.lines:
        add_legend(panel)
    middle = float(at_50[len(at_50) // 2]) if _is_known(at_50) else None
    return Chart((panel,), {"middle": middle}, more, len(names))


def _is_known(curve: Any) -> bool:
    return curve is not None and bool(np.isfinite(np.array(curve, float)).any())


def curves_panel(
    title: str, recall: np.ndarray, curves: Mapping[str, Any], *, is_small: bool = False
) -> "Axes":
    """A panel of two named curves of precision; what is not known is not drawn."""
    axes = new_axes(title, is_small=is_small)
    set_fractions(axes, x="recall", y="precision")
    for series, (label, curve) in zip("ab", curves.items(), strict=True):
        if _is_known(curve):
            axes.plot(recall, np.array(curve, float), **LINES[series], label=label)
    return axes


def classes_chart(report: Mapping[str, Any]) -> Chart | None:
    """AP and the gap of score and IoU of each class; None for fewer than two classes."""
    classes: Mapping[str, Mapping[str, Entry]] = report["classes"]
    known = [name for name in classes if np.isfinite(value_of(classes[name], "AP"))]
    known.sort(key=lambda name: value_of(classes[name], "AP"))
    if len(classes) < 2 or not known:
        return None
    panels = [
        new_bars(title, label, {n: classes[n].get(key, {}) for n in known[:MOST_CLASSES]}, series)
        for title, label, key, series in (
            ("AP", "AP, more is better", "AP", "a"),
            ("Mean gap of score and IoU", "mean |score - IoU|, less is better", "mean_gap", "b"),
        )
    ]
    gaps = np.nan_to_num([value_of(classes[name], "mean_gap") for name in known], nan=-1.0)
    facts = {
        "lowest": known[0],
        "highest": known[-1],
        "widest": known[int(np.argmax(gaps))],
        "num_shown": min(len(known), MOST_CLASSES),
        "num_known": len(known),
    }
    return Chart(panels, facts)


def errors_chart(report: Mapping[str, Any]) -> Chart | None:
    """What each kind of error costs; None where nothing was computed."""
    overall = report["overall"]
    kinds = ("location", "class", "both", "duplicate", "background", "missed")
    names = [f"dAP_{kind}" for kind in kinds]
    costs = np.nan_to_num([value_of(overall, name) for name in names], nan=-1.0)
    if costs.max() < 0:
        return None
    rows = {METRICS[name].title: overall.get(name, {}) for name in names}
    panel = new_bars("Kinds of error", "AP50 gained", rows)
    return Chart((panel,), {"worst": names[int(np.argmax(costs))]})
