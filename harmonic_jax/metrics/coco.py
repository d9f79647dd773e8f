"""COCO's metrics of boxes and masks over tables: the numbers of pycocotools, to the last bit.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the evaluation is
defined by the behaviour of pycocotools.cocoeval.
"""

import numpy as np

from harmonic_jax.metrics.coco_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    IouType,
    Matching,
    match_detections,
    unpack,
)
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.terminal import column_width, padded

RECALLS = np.linspace(0.0, 1.0, 101)
DETECTION_LIMITS = (1, 10, 100)


def coco_metrics(
    ground_truth: GroundTruthTable, detections: DetectionTable, *, iou_type: IouType = "bbox"
) -> dict[str, float]:
    """Average precision and recall as COCO defines them.

    AP is the mean, over classes and the IoU thresholds .5, .55, .., .95, of precision interpolated
    at the recalls 0, .01, .., 1. AR is the mean over the same of the highest recall.

    Args:
      ground_truth: The annotated images; crowd regions and difficult objects are ignored.
      detections: Of these images and classes. The best 100 of each image and class count.
      iou_type: What overlaps: "bbox", the boxes, or "segm", the masks. An object is small, medium
        or large by its annotated area either way, a detection by that of its box or its mask.

    Returns:
      AP, AP50, AP75, AP_small, AP_medium, AP_large; AR_1, AR_10, AR_100 (detections of each image
      and class), AR_small, AR_medium, AR_large; then AP/NAME and AP50/NAME of each class. In
      [0, 1], or -1 where there is no object to find, as in pycocotools.

    Raises:
      ValueError: A detection of an image or a class that the ground truth does not have; "segm"
        without masks, or with one that is not of its image's size.

    Example:
      >>> truth = GroundTruthTable(
      ...     image_ids=[1], image_id=[1], boxes=[[0, 0, 10, 10]], labels=[0], is_crowd=[False],
      ...     is_difficult=[False], area=[100.0], class_names=("cat",), category_ids=(17,),
      ... )
      >>> found = DetectionTable(image_id=[1], boxes=[[0, 0, 10, 8]], scores=[0.9], labels=[0])
      >>> metrics = coco_metrics(truth, found)  # an IoU of 0.8 passes 7 of the 10 thresholds
      >>> [round(metrics[name], 3) for name in ("AP/cat", "AP50", "AP_large")]
      [0.7, 1.0, -1.0]
    """
    matching = match_detections(ground_truth, detections, iou_type)
    precision, recall = _curves(matching, ground_truth.labels, len(ground_truth.class_names))
    at_75 = int(np.flatnonzero(IOU_THRESHOLDS == 0.75)[0])
    metrics = {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[0, :, :, 0]),
        "AP75": _mean(precision[at_75, :, :, 0]),
    }
    sizes = list(enumerate(AREA_RANGES))[1:]
    metrics |= {f"AP_{size}": _mean(precision[:, :, :, a]) for a, size in sizes}
    for m, limit in enumerate(DETECTION_LIMITS):
        metrics[f"AR_{limit}"] = _mean(recall[:, :, 0, m])
    metrics |= {f"AR_{size}": _mean(recall[:, :, a, -1]) for a, size in sizes}
    for k, name in enumerate(ground_truth.class_names):
        metrics[f"AP/{name}"] = _mean(precision[:, :, k, 0])
        metrics[f"AP50/{name}"] = _mean(precision[0, :, k, 0])
    return metrics


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else -1.0


def _curves(
    matching: Matching, truth_labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [thresholds, recalls, k, areas] and recall [thresholds, k, areas, limits].

    A precision-recall curve bends only where a true positive is, so of all other detections only
    the number before each true positive is needed.
    """
    areas, thresholds = len(AREA_RANGES), len(IOU_THRESHOLDS)
    precision = np.full((thresholds, len(RECALLS), num_classes, areas), -1.0)
    recall = np.full((thresholds, num_classes, areas, len(DETECTION_LIMITS)), -1.0)
    starts = np.searchsorted(matching.label, np.arange(num_classes + 1))
    for k in range(num_classes):
        objects = matching.is_counted[truth_labels == k].sum(axis=0)
        true, false, rank = _positives(matching, slice(starts[k], starts[k + 1]))
        for m, limit in enumerate(DETECTION_LIMITS):
            found = true[rank < limit].sum(axis=0).reshape(areas, thresholds)
            some = objects > 0
            recall[:, k, some, m] = (found[some] / objects[some, None]).T
        for a in np.flatnonzero(objects).tolist():
            needed = np.searchsorted(np.arange(1, objects[a] + 1) / objects[a], RECALLS)
            for t in range(thresholds):
                bit = a * thresholds + t
                precision[t, :, k, a] = _precision(false[true[:, bit], bit], needed)
    return precision, recall


def _positives(matching: Matching, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a class's detections that match anything, best first: which are true positives and how
    many false ones came so far, both [hits, areas * thresholds]; and their ranks [hits]."""
    hits = np.flatnonzero(matching.matched[rows])
    matched = unpack(matching.matched[rows][hits])
    true = matched & ~unpack(matching.ignored[rows][hits])
    # A false positive is of the right size and unmatched.
    per_bit = matched.shape[1] // matching.is_sized.shape[1]
    sized = np.cumsum(matching.is_sized[rows], axis=0)[hits].repeat(per_bit, axis=1)
    is_sized = matching.is_sized[rows][hits].repeat(per_bit, axis=1)
    false = sized - np.cumsum(matched & is_sized, axis=0)
    return true, false, matching.rank[rows][hits]


def _precision(false: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Interpolated precision: the best at this recall or any higher; 0 where it is not reached.

    Args:
      false: [n], the number of false positives before each true positive.
      needed: [recalls], the index of the true positive at which each recall is reached.
    """
    true = np.arange(1, len(false) + 1)
    precision = true / (false + true + np.spacing(1))  # the last term as pycocotools has it
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(best, 0.0)[np.minimum(needed, len(false))]


def mask_metrics(ground_truth: GroundTruthTable, detections: DetectionTable) -> dict[str, float]:
    """`coco_metrics` of the masks, to stand beside those of the boxes: mask_AP, mask_AP50, .."""
    metrics = coco_metrics(ground_truth, detections, iou_type="segm")
    return {_MASK + name: value for name, value in metrics.items()}


_MASK = "mask_"


def format_table(metrics: dict[str, float]) -> str:
    """The 12 numbers and each class's AP as text; a dash where there is no object to find.

    Args:
      metrics: As `coco_metrics` returns them; `VOC_mAP` and `VOC07_mAP` are shown where present,
        and those of masks, as `mask_metrics` names them, in a second table, or in the only one.
    """
    of_masks = {k.removeprefix(_MASK): v for k, v in metrics.items() if k.startswith(_MASK)}
    if not of_masks:
        return _format_one(metrics)
    if len(of_masks) == len(metrics):
        return f"masks\n{_format_one(of_masks)}"
    return f"boxes\n{_format_one(metrics)}\n\nmasks\n{_format_one(of_masks)}"


def _format_one(metrics: dict[str, float]) -> str:
    classes = [key.removeprefix("AP/") for key in metrics if key.startswith("AP/")]
    width = column_width(classes, heading="class") + 2
    lines = []
    for kind, heads, keys in (
        ("AP", ("all", "IoU .50", "IoU .75"), ("AP", "AP50", "AP75")),
        ("AR", ("best 1", "best 10", "best 100"), ("AR_1", "AR_10", "AR_100")),
    ):
        sizes = ("small", "medium", "large")
        cells = [metrics[key] for key in (*keys, *(f"{kind}_{size}" for size in sizes))]
        lines.append(" " * width + "".join(f"{head:>9}" for head in (*heads, *sizes)))
        lines.append(f"{kind:{width}}" + "".join(map(_cell, cells)))
    if "VOC_mAP" in metrics:
        area, points = (_cell(metrics[key]).strip() for key in ("VOC_mAP", "VOC07_mAP"))
        lines.append(f"VOC mAP at IoU .50: {area} (area), {points} (2007, 11 points)")
    lines += ["", f"{'class':{width}}{'AP':>9}{'AP50':>9}"]
    lines += [
        padded(name, width) + _cell(metrics[f"AP/{name}"]) + _cell(metrics[f"AP50/{name}"])
        for name in classes
    ]
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{'-':>9}" if value < 0 else f"{value:9.3f}"
