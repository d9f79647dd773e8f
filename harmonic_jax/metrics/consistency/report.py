"""The report: every number with its interval, overall, for each area range and each class.

The dict is JSON-able; its keys:

  version          1
  settings         what was evaluated and how: iou_type ("bbox" or "segm"), num_images,
                   num_objects (to find), num_detections, num_ignored, num_over_limit, num_raw
                   (None without raw boxes), resamples, seed, confidence, notes (sentences for the
                   reader, such as what was cut off)
  overall          {metric: entry}
  areas            {"small" | "medium" | "large": {metric: entry}}
  classes          {class name: {metric: entry}}
  counts           {"overall" | "areas" | "classes": {name: {"objects": n, "detections": n}}}; for
                   "overall" the name is ""
  reliability      {"all" | class name: {"edges": [26], "count": [25], "mean_score": [25],
                   "mean_iou": [25], "precision": [25]}}: detections by score, None in empty bins
  curves           {"recall": [101], "precision": {"all" | class name: {"0.50": [101],
                   "0.75": [101]}}}: interpolated precision, None where there is no object

  entry            {"value": number | None, "interval": [low, high] | None, "resamples": int,
                   "reason": text, only where the value is None}

The metrics and how they are shown: `METRICS` of the package, in the order of the page. Metrics of
boxes before NMS are there only where such boxes were given.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from harmonic_jax.metrics.coco import AT_75, RECALLS, recall_precision_curves
from harmonic_jax.metrics.consistency import METRICS, lines_of
from harmonic_jax.metrics.consistency.measures import LAECE_BINS, score_bins
from harmonic_jax.metrics.consistency.sampling import (
    CONFIDENCE,
    NEED_SCORES_IN_RANGE,
    RESAMPLES,
    Samples,
    by_section,
    percentile_interval,
    sample_metrics,
)
from harmonic_jax.metrics.consistency.study import AREA_NAMES, Study, area_ranges
from harmonic_jax.metrics.matching import IouType
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

VERSION = 1
Report = dict[str, Any]
_OF_CLASSES = ("AP", "pearson", "mean_gap", "LaECE", "oLRP", "nms_mean_loss")  # of the text
ALL = "all"  # all classes; a class of this name has no list of its own

_NEED_DETECTIONS = ("pearson", "spearman", *NEED_SCORES_IN_RANGE)
_REASONS = {
    "pearson": "scores or IoUs do not vary",
    "spearman": "scores or IoUs do not vary",
    "high_score_low_iou": "no box has a score of .5 or more",
    "oLRP_loc": "there is no true positive",
    "oLRP_FP": "there is no true positive",
    "LaECE": "no class has both objects and detections",
}


def consistency_report(
    truth: GroundTruthTable,
    found: DetectionTable,
    raw: DetectionTable | None = None,
    *,
    iou_type: IouType = "bbox",
    resamples: int = RESAMPLES,
    seed: int = 0,
    notes: Iterable[str] = (),
) -> Report:
    """Computes every number of the report.

    Args:
      truth: the annotated images.
      found: detections, after NMS.
      raw: the same detector's boxes before NMS, where they are at hand.
      iou_type: every IoU is of boxes ("bbox"), or of masks ("segm"), which all tables then need.
      resamples: of the images, for the intervals; 0: no intervals.
      seed: of the resamples.
      notes: sentences for the reader.

    Returns:
      A dict that JSON can hold; the module's docstring has its keys.

    Raises:
      ValueError: a detection of an image or a class that the ground truth does not have; "segm"
        without masks.

    Example:
      >>> truth = GroundTruthTable(
      ...     image_ids=[7], image_id=[7], boxes=[[0, 0, 10, 10]], labels=[0], is_crowd=[False],
      ...     is_difficult=[False], area=[100.0], class_names=("cat",), category_ids=(17,),
      ... )
      >>> found = DetectionTable([7, 7], [[0, 0, 10, 8], [20, 0, 30, 8]], [0.9, 0.4], [0, 0])
      >>> report = consistency_report(truth, found, resamples=0)
      >>> round(report["overall"]["mean_gap"]["value"], 3)
      0.25
    """
    case = Study(truth, found, raw, iou_type)
    return report_of(case, sample_metrics(case, resamples=resamples, seed=seed), notes=notes)


def report_of(case: Study, samples: Samples, *, notes: Iterable[str] = ()) -> Report:
    """`consistency_report` of what has been matched and sampled already."""
    counts = _counts(case)
    entries = {}
    for place, values in samples.values.items():
        entries[place] = {
            metric: _entry(metric, values[metric], counts[place[0]][place[1]], samples)
            for metric in METRICS
            if metric in values
        }
    return {
        "version": VERSION,
        "settings": {
            "iou_type": case.iou_type,
            "num_images": samples.num_images,
            "num_objects": int(case.positives.is_counted.sum()),
            "num_detections": len(case.found.labels),
            "num_ignored": case.pairs.num_ignored,
            "num_over_limit": case.pairs.num_over_limit,
            "num_raw": None if case.raw is None else len(case.raw.labels),
            "resamples": samples.resamples,
            "seed": samples.seed,
            "confidence": CONFIDENCE,
            "notes": list(notes),
        },
        **by_section(entries),
        "counts": counts,
        "reliability": _reliability(case) if samples.scores_in_range else {},
        "curves": {"recall": RECALLS.tolist(), "precision": precision_tables(case)},
    }


def _counts(case: Study) -> dict[str, dict[str, dict[str, int]]]:
    """How many objects to find and detections there are at each place."""
    counted, pairs, names = case.positives.is_counted, case.pairs, case.truth.class_names
    label, area = case.truth.labels[counted], area_ranges(case.truth.area[counted])
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for section, keys, objects, boxes in (
        ("overall", ("",), np.zeros_like(label), np.zeros_like(pairs.label)),
        ("areas", AREA_NAMES, area, pairs.area_range),
        ("classes", names, label, pairs.label),
    ):
        columns = (np.bincount(c, minlength=len(keys)).tolist() for c in (objects, boxes))
        rows = zip(keys, *columns, strict=True)
        counts[section] = {key: {"objects": n, "detections": d} for key, n, d in rows}
    return counts


def _entry(
    metric: str, values: np.ndarray, counts: Mapping[str, int], samples: Samples
) -> dict[str, Any]:
    """A number and its interval; the first value is that of the images as they are."""
    value, resamples = float(values[0]), len(values) - 1
    if np.isfinite(value):
        interval = percentile_interval(values[1:])
        return {"value": value, "interval": interval and list(interval), "resamples": resamples}
    if metric in NEED_SCORES_IN_RANGE and not samples.scores_in_range:
        reason = "scores are not all in [0, 1]"
    elif metric in _NEED_DETECTIONS and counts["detections"] == 0:
        reason = "there are no detections"
    elif metric not in _NEED_DETECTIONS and counts["objects"] == 0:
        reason = "there is no object to find"
    else:
        reason = _REASONS.get(metric, "it is not defined here")
    return {"value": None, "interval": None, "resamples": resamples, "reason": reason}


def _reliability(case: Study) -> dict[str, Any]:
    """Detections in 25 bins of their scores, for all classes together and for each.

    Of each bin: the number of detections, their mean score, the mean IoU with the objects they
    take one to one, as in LaECE, and precision at IoU .5. None where a bin is empty.
    """
    any_iou = case.matching_any.positives()
    use = any_iou.is_true | any_iou.is_false
    score, names = case.found.scores[use], case.truth.class_names
    columns = (np.ones(len(score)), score, any_iou.iou[use], case.positives.is_true[use])
    cell = case.found.labels[use] * LAECE_BINS + score_bins(score, LAECE_BINS)
    sums = np.stack([np.bincount(cell, c, len(names) * LAECE_BINS) for c in columns])
    sums = sums.reshape(len(columns), len(names), LAECE_BINS)
    edges = np.linspace(0.0, 1.0, LAECE_BINS + 1).tolist()
    of_classes = dict(zip(names, sums.swapaxes(0, 1), strict=True))
    of_classes.pop(ALL, None)
    result: dict[str, Any] = {}
    for name, (count, *parts) in ({ALL: sums.sum(axis=1)} | of_classes).items():
        means = [
            [float(s / n) if n else None for s, n in zip(p, count, strict=True)] for p in parts
        ]
        result[name] = {"edges": edges, "count": count.astype(int).tolist()}
        result[name] |= dict(zip(("mean_score", "mean_iou", "precision"), means, strict=True))
    return result


def precision_tables(case: Study) -> dict[str, Any]:
    """Interpolated precision at the recalls 0, .01, .., 1 of all classes together and of each.

    "all" is the mean over the classes that have objects, and its mean is AP50 or AP75.
    """
    names = case.truth.class_names
    curves, _ = recall_precision_curves(case.matching)
    result: dict[str, Any] = {name: {} for name in (ALL, *names)}
    for threshold, key in ((0, "0.50"), (AT_75, "0.75")):
        of_classes = dict(zip(names, curves[threshold, :, :, 0].T, strict=True))
        known = {name: curve for name, curve in of_classes.items() if curve[0] >= 0}
        if known:
            known[ALL] = np.mean(list(known.values()), axis=0)
        for name, lists in result.items():
            lists[key] = known[name].tolist() if name in known else [None] * len(RECALLS)
    return result


def format_report(report: Mapping[str, Any]) -> str:
    """All of it: the overall part, then the main numbers of area ranges and classes."""
    parts = [format_overall(report)]
    for section, title in (("areas", "by COCO's area ranges"), ("classes", "by class")):
        parts.append(_table(title, report[section], report["counts"][section]))
    return "\n\n".join(parts)


def format_overall(report: Mapping[str, Any]) -> str:
    """The numbers of the whole data set with their intervals, and the notes."""
    settings = report["settings"]
    left_out = settings["num_ignored"] + settings["num_over_limit"]
    lines = [
        f"{settings['num_images']} images, {settings['num_objects']} objects, "
        f"{settings['num_detections']} detections, {left_out} of them left out "
        f"({settings['num_ignored']} on ignored objects or not judged, "
        f"{settings['num_over_limit']} beyond the best that count)"
    ]
    if settings["num_raw"] is not None:
        lines.append(f"{settings['num_raw']} boxes before NMS")
    lines.append(_about_intervals(report))
    lines += lines_of({name: _cell(entry) for name, entry in report["overall"].items()})
    if settings["notes"]:
        lines += ["", *(f"note: {note}" for note in settings["notes"])]
    return "\n".join(lines)


def _about_intervals(report: Mapping[str, Any]) -> str:
    """How they were made; metrics that sort every resample may have fewer of them."""
    settings, entries = report["settings"], report["overall"].values()
    most = settings["resamples"]
    if most == 0:
        return "no intervals: no resamples"
    text = f"[low, high]: {100 * settings['confidence']:g} % interval over images, {most} resamples"
    fewest = min(entry["resamples"] for entry in entries)
    if fewest < most:
        text += f" ({fewest} for AP, Spearman, LRP and the gains of errors)"
    return text


def number(value: float | None) -> str:
    """A number as it is shown."""
    return "-" if value is None else f"{value:.3f}"


def _cell(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return f"{'-':>8}  ({entry['reason']})"
    text = f"{number(entry['value']):>8}"
    if entry["interval"] is not None:
        low, high = entry["interval"]
        text += f"  [{number(low)}, {number(high)}]"
    return text


def _table(title: str, rows: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    from harmonic_jax.terminal import column_width, padded  # of rich, which numbers do without

    present = [name for name in _OF_CLASSES if any(name in row for row in rows.values())]
    width = column_width(rows, heading=title) + 2
    heads = ["objects", "boxes", *present]
    wide = {head: max(9, len(head) + 2) for head in heads}
    lines = [f"{title:{width}}" + "".join(f"{head:>{wide[head]}}" for head in heads)]
    for name, entries in rows.items():
        cells = [str(counts[name]["objects"]), str(counts[name]["detections"])]
        cells += [number(entries[key]["value"]) for key in present]
        row = zip(cells, wide.values(), strict=True)
        lines.append(padded(name, width) + "".join(f"{cell:>{n}}" for cell, n in row))
    return "\n".join(lines)
