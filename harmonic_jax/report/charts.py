"""The charts of a consistency report, with the words that say what each shows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harmonic_jax.metrics.consistency import METRICS
from harmonic_jax.metrics.consistency.study import Pairs, Study
from harmonic_jax.report.numbers import (
    Entry,
    in_words,
    percent,
    show_number,
    value_of,
)
from harmonic_jax.report.plots import (
    LINES,
    add_legend,
    draw_density,
    new_axes,
    new_bars,
    set_fractions,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARGIN = 0.2
NUM_CELLS = 50
MOST_CLASSES = 40
MOST_SMALL_PANELS = 24
FEWEST = 10  # boxes in a bin: the means of fewer jump up and down


@dataclasses.dataclass(frozen=True)
class Chart:
    """Panels with the words a reader needs, also one who cannot see them.

    Attributes:
      name: of the PNG.
      title: of its section.
      reading: how to read it.
      finding: what it shows here, with the numbers.
      panels: on the page and in the PNG.
      more: further panels, shown on demand, on the page alone.
      more_title: what they are.
    """

    name: str
    title: str
    reading: str
    finding: str
    panels: Sequence["Axes"]
    more: Sequence["Axes"] = ()
    more_title: str = ""


def make_charts(study: Study, report: Mapping[str, Any]) -> list[Chart]:
    """Draws the report; charts that have nothing to show are left out. Inside `chart_style`."""
    made = (
        density_chart(study, report),
        reliability_chart(report),
        headroom_chart(report),
        curves_chart(report),
        classes_chart(report),
        errors_chart(report),
    )
    return [chart for chart in made if chart is not None]


def density_chart(study: Study, report: Mapping[str, Any]) -> Chart:
    """Score against IoU, before NMS where the raw boxes are known, and after."""
    overall = report["overall"]
    reading = (
        "Every box is placed by its score and by its IoU with the object of its class that it "
        "overlaps most; stronger cells hold more boxes. The lowest row holds boxes that meet no "
        "object."
    )
    finding = f"The rank correlation (Spearman) is {in_words(overall, 'spearman')}."
    panels = []
    for title, pairs in (("Before NMS", study.raw_pairs), ("After NMS", study.pairs)):
        if pairs is not None:
            panels.append(_density_panel(f"{title}: {len(pairs):,} boxes", pairs))
    if _are_fractions(study.pairs.score):
        reading += " Consistent scores lie on the dashed diagonal; the dotted lines are .2 away."
        finding += f" The mean gap is {in_words(overall, 'mean_gap')}. Of {_apart(study.pairs)}"
    if study.raw_pairs is not None and _are_fractions(study.raw_pairs.score):
        finding += f" Before NMS, of {_apart(study.raw_pairs)}"
    return Chart("score_iou", "Scores and boxes", reading, finding, panels)


def _are_fractions(score: np.ndarray) -> bool:
    """Whether all scores are in [0, 1], where they can be compared with IoUs."""
    return bool(((score >= 0) & (score <= 1)).all())


def _apart(pairs: Pairs) -> str:
    apart = int((np.abs(pairs.score - pairs.iou) > MARGIN).sum())
    share = percent(apart, len(pairs))
    return f"{len(pairs):,} boxes {apart:,} ({share}) are further than .2 off."


def _density_panel(title: str, pairs: Pairs) -> "Axes":
    """Counts in a grid of cells: the work and the size do not grow with the number of boxes."""
    axes = new_axes(title, height=4.5)
    set_fractions(axes, y="IoU")
    x_edges = np.linspace(0.0, 1.0, NUM_CELLS + 1)
    if _are_fractions(pairs.score):
        set_fractions(axes, x="score")
        axes.plot([0, 1], [0, 1], **LINES["b"], label="score = IoU")
        for shift in (MARGIN, -MARGIN):
            axes.axline((0, shift), slope=1, **LINES["guide"])
    else:
        axes.set_xlabel("score")
        x_edges = np.linspace(min(0.0, pairs.score.min()), max(1.0, pairs.score.max()), NUM_CELLS)
    y_edges = np.linspace(0.0, 1.0, NUM_CELLS + 1)
    counts, _, _ = np.histogram2d(np.clip(pairs.iou, 0, 1), pairs.score, bins=(y_edges, x_edges))
    draw_density(axes, counts, x_edges, y_edges)
    return axes


def reliability_chart(report: Mapping[str, Any]) -> Chart | None:
    """Mean IoU and precision of boxes of like score, and how many there are.

    None where scores are not all in [0, 1].
    """
    tables, overall = report["reliability"], report["overall"]
    if not tables:
        return None
    bins = {name: _columns(table) for name, table in tables.items()}
    counted = new_axes("How many boxes")
    set_fractions(counted, x="score")
    count, edges = bins["all"]["count"], bins["all"]["edges"]
    counted.stairs(count, edges, fill=True, color=LINES["a"]["color"])
    counted.set(ylabel="boxes", ylim=(0.5, 1.3 * count.max(initial=10.0)))
    if count.any():
        counted.set_yscale("log")
        counted.yaxis.set_major_formatter("{x:,g}")
        counted.minorticks_off()
    names = [name for name in tables if name != "all" and max(tables[name]["count"]) >= FEWEST]
    names.sort(key=lambda name: -sum(tables[name]["count"]))
    more, more_title = _small_panels(
        names, "with most boxes", "", lambda name: _reliability_panel(name, bins[name])
    )
    finding = (
        f"{_leaning(bins['all'])} LaECE is {in_words(overall, 'LaECE')}, D-ECE "
        f"{in_words(overall, 'D_ECE')}; 0 would be perfect."
    )
    panel = _reliability_panel("All classes", bins["all"])
    add_legend(panel)
    return Chart(
        "reliability",
        "Reliability",
        "Boxes of like score are put together; each point is their mean IoU (circles) or the share "
        "of them that is right at IoU .5 (squares). On the dotted diagonal scores mean what they "
        "say; below it they promise too much, above it too little. Bins of fewer than "
        f"{FEWEST} boxes are left out; the second panel counts them all.",
        finding,
        (panel, counted),
        more,
        more_title,
    )


def _columns(table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(column, float) for name, column in table.items()}


def _reliability_panel(title: str, bins: Mapping[str, np.ndarray]) -> "Axes":
    axes = new_axes(title)
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


def _leaning(bins: Mapping[str, np.ndarray]) -> str:
    total = bins["count"].sum()
    if not total:
        return "There are no detections."
    gap = float(np.nansum(bins["count"] * (bins["mean_score"] - bins["mean_iou"])) / total)
    if abs(gap) < 0.01:
        return "On average, scores are as high as the IoUs of their boxes."
    side = "above" if gap > 0 else "below"
    return f"On average, scores are {show_number(abs(gap))} {side} the IoUs of their boxes."


def _small_panels(
    names: Sequence[str], of_many: str, order: str, draw: Callable[[str], "Axes"]
) -> tuple[list["Axes"], str]:
    """A panel for each of the first classes, and what these are."""
    title = f"Each class ({len(names)}){order}"
    if len(names) > MOST_SMALL_PANELS:
        title = f"The {MOST_SMALL_PANELS} classes of {len(names)} {of_many}"
    return [draw(name) for name in names[:MOST_SMALL_PANELS]], title


def headroom_chart(report: Mapping[str, Any]) -> Chart:
    """AP as it is, and with scores that tell every IoU."""
    overall = report["overall"]
    bars = {"as it is": "AP", "ranked by true IoU": "AP_ranked_by_iou"}
    finding = (
        f"AP is {in_words(overall, 'AP')}. The same boxes ranked by true IoU would have "
        f"{in_words(overall, 'AP_ranked_by_iou')}: better scores alone could add "
        f"{in_words(overall, 'AP_headroom')}."
    )
    if np.isfinite(value_of(overall, "AP_best_raw")):
        bars["best before NMS"] = "AP_best_raw"
        finding += (
            " With the best box of each object before NMS it would be "
            f"{in_words(overall, 'AP_best_raw')}: the rest is for better boxes."
        )
    axes = new_bars("Average precision", "AP", {row: overall.get(n, {}) for row, n in bars.items()})
    axes.set_xlim(0.0, 1.0)
    return Chart(
        "head_room",
        "What consistent scores would give",
        "Boxes stay where they are; only their order changes. The gap between the first two bars "
        "is what scores that disagree with their boxes cost. Lines: 95 % intervals.",
        finding,
        (axes,),
    )


def curves_chart(report: Mapping[str, Any]) -> Chart:
    """Precision at every recall, at IoU .50 and .75."""
    curves, overall = report["curves"], report["overall"]
    recall, tables = np.array(curves["recall"], float), curves["precision"]
    names = [name for name in tables if name != "all" and _is_known(tables[name]["0.50"])]
    names.sort(key=lambda name: value_of(report["classes"].get(name, {}), "AP"))
    more, more_title = _small_panels(
        names,
        "with the lowest AP",
        ", lowest AP first",
        lambda name: _curves_panel(name, recall, tables[name]),
    )
    at_50 = tables["all"]["0.50"]
    finding = f"AP50 is {in_words(overall, 'AP50')}, AP75 {in_words(overall, 'AP75')}."
    if _is_known(at_50):
        middle = show_number(float(at_50[len(at_50) // 2]))
        finding += f" Half of the objects are found (IoU .50) at a precision of {middle}."
    panel = _curves_panel("Mean over classes", recall, tables["all"])
    if panel.lines:
        add_legend(panel)
    return Chart(
        "precision_recall",
        "Precision and recall",
        "From left to right more boxes are taken, best score first: recall is the share of objects "
        "found, precision the share of boxes that are right. The area under a line is its AP. "
        "Where the two lines part, boxes lie on an object but are badly placed.",
        finding,
        (panel,),
        more,
        more_title,
    )


def _is_known(curve: Any) -> bool:
    return curve is not None and bool(np.isfinite(np.array(curve, float)).any())


def _curves_panel(title: str, recall: np.ndarray, table: Mapping[str, Any]) -> "Axes":
    axes = new_axes(title)
    set_fractions(axes, x="recall", y="precision")
    for series, key in (("a", "0.50"), ("b", "0.75")):
        if _is_known(table.get(key)):
            curve = np.array(table[key], float)
            axes.plot(recall, curve, **LINES[series], label=f"IoU {key.removeprefix('0')}")
    return axes


def classes_chart(report: Mapping[str, Any]) -> Chart | None:
    """AP and the gap of score and IoU of each class; None for fewer than two classes."""
    classes: Mapping[str, Mapping[str, Entry]] = report["classes"]
    known = [name for name in classes if np.isfinite(value_of(classes[name], "AP"))]
    known.sort(key=lambda name: value_of(classes[name], "AP"))
    if len(classes) < 2 or not known:
        return None
    shown = known[:MOST_CLASSES]
    panels = [
        new_bars(title, label, {name: classes[name].get(metric, {}) for name in shown}, series)
        for title, label, metric, series in (
            ("AP", "AP, more is better", "AP", "a"),
            ("Mean gap of score and IoU", "mean |score - IoU|, less is better", "mean_gap", "b"),
        )
    ]
    gaps = {name: value_of(classes[name], "mean_gap") for name in known}
    widest = max(known, key=lambda name: np.nan_to_num(gaps[name], nan=-1.0))
    finding = (
        f"Lowest AP: {known[0]}, {in_words(classes[known[0]], 'AP')}; highest: {known[-1]}, "
        f"{in_words(classes[known[-1]], 'AP')}. Scores and boxes disagree most for {widest}: "
        f"{in_words(classes[widest], 'mean_gap')}."
    )
    if len(shown) < len(known):
        finding += f" Shown are the {len(shown)} of {len(known)} classes with the lowest AP."
    if len(known) < len(classes):
        finding += f" Classes without objects, left out: {len(classes) - len(known)}."
    reading = "A bar for each class, lowest AP first in both panels; lines are 95 % intervals."
    return Chart("classes", "Classes", reading, finding, panels)


_KINDS = ("location", "class", "both", "duplicate", "background", "missed")


def errors_chart(report: Mapping[str, Any]) -> Chart | None:
    """What each kind of error costs; None where nothing was computed."""
    overall = report["overall"]
    costs = {kind: value_of(overall, f"dAP_{kind}") for kind in _KINDS}
    if not np.isfinite(list(costs.values())).any():
        return None
    rows = {METRICS[f"dAP_{kind}"].title: overall.get(f"dAP_{kind}", {}) for kind in _KINDS}
    panel = new_bars("Kinds of error", "AP50 gained", rows)
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
    return Chart("errors", "Errors", reading, finding, (panel,))
