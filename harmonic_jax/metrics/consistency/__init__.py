"""How far scores and boxes disagree, where, and what it costs: every number, and how it is shown.

`report.consistency_report` computes them all, `compare.compare_samples` compares two detectors.
Their definitions are in docs/consistency.md.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """How a number is shown; `spoken` is its title in a sentence, without its group above it."""

    group: str
    title: str
    better: Literal["higher", "lower", "neither"]
    spoken: str = ""


_AGREEMENT = "agreement of score and IoU"
_CALIBRATION = "calibration"
_LRP = "localization recall precision"
_AP = "average precision"
_HEADROOM = "head room"
_ERRORS = "errors: AP50 gained if they were gone"
_NMS = "lost in NMS"

METRICS: dict[str, Metric] = {
    "AP": Metric(_AP, "AP", "higher"),
    "AP50": Metric(_AP, "AP at IoU .50", "higher"),
    "AP75": Metric(_AP, "AP at IoU .75", "higher"),
    "pearson": Metric(_AGREEMENT, "Pearson correlation", "higher"),
    "spearman": Metric(_AGREEMENT, "Spearman rank correlation", "higher"),
    "mean_gap": Metric(_AGREEMENT, "mean |score - IoU|", "lower"),
    "high_score_low_iou": Metric(_AGREEMENT, "IoU < .5 among scores >= .5", "lower"),
    "LaECE": Metric(_CALIBRATION, "LaECE, 25 bins", "lower"),
    "D_ECE": Metric(_CALIBRATION, "D-ECE, 10 bins, IoU .5", "lower"),
    "oLRP": Metric(_LRP, "optimal LRP", "lower"),
    "oLRP_loc": Metric(_LRP, "its localization part", "lower", "optimal LRP's localization part"),
    "oLRP_FP": Metric(
        _LRP, "its false positive part", "lower", "optimal LRP's false positive part"
    ),
    "oLRP_FN": Metric(
        _LRP, "its false negative part", "lower", "optimal LRP's false negative part"
    ),
    "AP_ranked_by_iou": Metric(_HEADROOM, "AP if ranked by true IoU", "higher"),
    "AP_headroom": Metric(_HEADROOM, "AP that perfect ranking would add", "neither"),
    "AP_best_raw": Metric(_HEADROOM, "AP of each object's best box before NMS", "higher"),
    "dAP_class": Metric(_ERRORS, "wrong class", "lower"),
    "dAP_location": Metric(_ERRORS, "badly placed", "lower"),
    "dAP_both": Metric(_ERRORS, "both", "lower"),
    "dAP_duplicate": Metric(_ERRORS, "duplicate", "lower"),
    "dAP_background": Metric(_ERRORS, "background", "lower"),
    "dAP_missed": Metric(_ERRORS, "missed object", "lower"),
    "nms_mean_loss": Metric(
        _NMS, "mean IoU an object loses", "lower", "mean IoU an object loses in NMS"
    ),
}


def spoken(name: str) -> str:
    """A metric's title as it stands in a sentence.

    Example:
      >>> spoken("dAP_both"), spoken("AP")
      ('AP50 lost to: both', 'AP')
    """
    metric = METRICS[name]
    return metric.spoken or ("AP50 lost to: " if metric.group == _ERRORS else "") + metric.title


def lines_of(cells: Mapping[str, str], *, head: str = "") -> list[str]:
    """A line for each metric, its title before its cell, under the titles of the groups."""
    width = max(len(metric.title) for metric in METRICS.values()) + 2
    lines, group = ["", " " * (width + 2) + head] if head else [], ""
    for name, cell in cells.items():
        if METRICS[name].group != group:
            group = METRICS[name].group
            lines += ["", group]
        lines.append(f"  {METRICS[name].title:{width}}{cell}")
    return lines
