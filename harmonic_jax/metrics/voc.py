"""PASCAL VOC's average precision over tables, as the VOC development kit computes it.

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, and the
development kits of 2007 (11 points) and 2012 (area).
"""

from typing import Literal

import numpy as np

from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, image_places

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
    image_places(ground_truth, detections)  # refuses those of unknown images and classes
    average_precision = {}
    for k, name in enumerate(ground_truth.class_names):
        is_true, is_false, num_objects = _positives(
            ground_truth, detections, k, iou_threshold, float(inclusive_pixels)
        )
        average_precision[f"AP/{name}"] = _average(is_true, is_false, num_objects, method)
    defined = [value for value in average_precision.values() if value >= 0]
    return {"mAP": float(np.mean(defined)) if defined else -1.0, **average_precision}


def _positives(
    truth: GroundTruthTable, found: DetectionTable, k: int, threshold: float, pixel: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """True and false positives of class k, best score first, and the number of its objects."""
    objects = np.flatnonzero(truth.labels == k)
    objects = objects[np.argsort(truth.image_id[objects], kind="stable")]
    is_ignored = (truth.is_difficult | truth.is_crowd)[objects]
    rows = np.flatnonzero(found.labels == k)
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]

    image_id = truth.image_id[objects]
    first = np.searchsorted(image_id, found.image_id[rows], side="left")
    count = np.searchsorted(image_id, found.image_id[rows], side="right") - first
    best = np.zeros(len(rows), int)
    best_iou = np.full(len(rows), -1.0)
    for i in range(int(np.max(count, initial=0))):  # the i-th object of each detection's image
        has = np.flatnonzero(count > i)
        candidate = first[has] + i
        iou = _iou(found.boxes[rows[has]], truth.boxes[objects[candidate]], pixel)
        better = iou > best_iou[has]
        best[has[better]], best_iou[has[better]] = candidate[better], iou[better]

    hit = best_iou >= threshold
    hit_rows = np.flatnonzero(hit)
    is_first = np.zeros(len(rows), bool)
    is_first[hit_rows[np.unique(best[hit_rows], return_index=True)[1]]] = True
    ignored = hit.copy()
    ignored[hit_rows] = is_ignored[best[hit_rows]]
    is_true = is_first & ~ignored
    return is_true, ~is_true & ~ignored, int(np.count_nonzero(~is_ignored))


def _iou(a: np.ndarray, b: np.ndarray, pixel: float) -> np.ndarray:
    """IoU of paired boxes [n, 4]; 0 for boxes that do not meet or are inverted."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + pixel
    inter = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    area_a = (a[:, 2:] - a[:, :2] + pixel).prod(axis=1)
    area_b = (b[:, 2:] - b[:, :2] + pixel).prod(axis=1)
    return np.divide(inter, area_a + area_b - inter, out=np.zeros(len(a)), where=inter > 0)


def _average(is_true: np.ndarray, is_false: np.ndarray, num_objects: int, method: Method) -> float:
    if num_objects == 0:
        return -1.0
    true = np.cumsum(is_true)
    recall = true / num_objects
    precision = true / np.maximum(true + np.cumsum(is_false), 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or any higher
    if method == "area":
        return float(np.sum(np.diff(recall, prepend=0.0) * best))
    at = np.searchsorted(recall, np.arange(11) / 10, side="left")
    return float(np.mean(np.append(best, 0.0)[at]))
