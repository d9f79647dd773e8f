"""PASCAL VOC's average precision over tables, as the VOC development kit computes it.

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, and the
development kits of 2007 (11 points) and 2012 (area).
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from harmonic_jax.metrics.matching import best_objects, find_overlaps
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

Method = Literal["area", "11point"]


def voc_metrics(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    *,
    iou_threshold: float = 0.5,
    method: Method = "area",
    inclusive_pixels: bool = False,
) -> dict[str, float]:
    """Average precision of each class, and their mean.

    A detection looks at the object of its image and class that it overlaps most, the first of
    equals, found already or not. Below the threshold it is false; a difficult object makes it
    neither true nor false; the first detection of an object is true, each further one false.

    "area" sums precision, made non-increasing, over the steps of recall; "11point" is the mean of
    the best precision at the recalls 0, .1, .., 1 or higher.

    Args:
      ground_truth: The annotated images; crowd regions are treated as difficult objects.
      detections: Of these images and classes.
      iou_threshold: A detection needs at least this IoU, in (0, 1].
      method: "area" (VOC 2010 and later) or "11point" (VOC 2007).
      inclusive_pixels: The boxes hold the first and the last pixel, so that a width is
        x2 - x1 + 1. The library's boxes do not: VOC's xmin..xmax is x1 = xmin - 1, x2 = xmax,
        and plain IoU of those is the development kit's.

    Returns:
      mAP, and AP/NAME of each class, in [0, 1]; -1 where there is no object to find.

    Raises:
      ValueError: A detection of an unknown image or class; an option that is not legal.

    Example:
      >>> truth = GroundTruthTable(
      ...     image_ids=[1], image_id=[1, 1], boxes=[[0, 0, 9, 9], [20, 0, 29, 9]], labels=[0, 0],
      ...     is_crowd=[False, False], is_difficult=[False, False], area=[81.0, 81.0],
      ...     class_names=("cat",), category_ids=(1,),
      ... )
      >>> found = DetectionTable(image_id=[1], boxes=[[0, 0, 9, 9]], scores=[0.9], labels=[0])
      >>> voc_metrics(truth, found)
      {'mAP': 0.5, 'AP/cat': 0.5}
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}; it must be in (0, 1]")
    if method not in ("area", "11point"):
        raise ValueError(f"method is {method!r}; it must be 'area' or '11point'")
    is_ignored = ground_truth.is_difficult | ground_truth.is_crowd
    plain = dataclasses.replace(  # a crowd region is an object like any other, but ignored
        ground_truth,
        is_crowd=np.zeros(len(is_ignored), bool),
        **_corners(ground_truth, inclusive_pixels),
    )
    found = dataclasses.replace(detections, **_corners(detections, inclusive_pixels))
    overlaps = find_overlaps(plain, found, own_class=True)
    best_iou, best = best_objects(overlaps, overlaps.same_class)
    is_hit = best_iou >= iou_threshold
    counts = ~(is_hit & np.append(is_ignored, False)[best])
    average_precision = {}
    for k, name in enumerate(ground_truth.class_names):
        rows = np.flatnonzero(found.labels == k)
        rows = rows[np.argsort(-found.scores[rows], kind="stable")]
        hits = np.flatnonzero(is_hit[rows])
        is_first = np.zeros(len(rows), bool)
        is_first[hits[np.unique(best[rows[hits]], return_index=True)[1]]] = True
        num_objects = int(np.count_nonzero((ground_truth.labels == k) & ~is_ignored))
        average_precision[f"AP/{name}"] = _average(is_first, counts[rows], num_objects, method)
    defined = [value for value in average_precision.values() if value >= 0]
    return {"mAP": float(np.mean(defined)) if defined else -1.0, **average_precision}


def _corners(table: GroundTruthTable | DetectionTable, inclusive_pixels: bool) -> dict[str, Any]:
    boxes = np.hstack([table.boxes[:, :2], table.boxes[:, 2:] + inclusive_pixels])
    return {"boxes": boxes, "sizes": None}


def _average(is_first: np.ndarray, counts: np.ndarray, num_objects: int, method: Method) -> float:
    """Of detections, best first: which find an object first, and which are true or false."""
    if num_objects == 0:
        return -1.0
    true = np.cumsum(is_first & counts)
    recall = true / num_objects
    precision = true / np.maximum(np.cumsum(counts), 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or any higher
    if method == "area":
        return float(np.sum(np.diff(recall, prepend=0.0) * best))
    at = np.searchsorted(recall, np.arange(11) / 10, side="left")
    return float(np.mean(np.append(best, 0.0)[at]))
