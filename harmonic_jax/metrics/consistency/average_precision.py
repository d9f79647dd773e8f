"""Average precision of every resample at once, from one matching.

Matching is done within images, so a resample changes only how often each detection and object
counts. The numbers equal `coco.coco_metrics` of a data set with so many copies of each image.
"""

import numpy as np

from harmonic_jax.metrics.coco import RECALLS
from harmonic_jax.metrics.coco_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    match_detections,
    unpack,
)
from harmonic_jax.metrics.consistency.bootstrap import chunks_of, grouped_sums
from harmonic_jax.metrics.consistency.overlaps import Overlaps
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

AREAS = tuple(AREA_RANGES)
_T = len(IOU_THRESHOLDS)
_AT_75 = int(np.flatnonzero(IOU_THRESHOLDS == 0.75)[0])


class ResampledAP:
    """COCO's matching of one set of detections, ready to be weighed.

    Args:
      truth: the annotated images.
      found: of these images and classes.
      overlaps: of the two; only images and ranks are read.
    """

    def __init__(self, truth: GroundTruthTable, found: DetectionTable, overlaps: Overlaps) -> None:
        self._matching = match_detections(truth, found, "bbox")
        self._overlaps, self._labels = overlaps, truth.labels
        self._num_classes = len(truth.class_names)
        # The matching's own order: class, falling score, image id, row.
        rows = np.flatnonzero(overlaps.rank < MAX_DETECTIONS)
        keys = (rows, found.image_id[rows], -found.scores[rows], found.labels[rows])
        self._image = overlaps.image[rows[np.lexsort(keys)]]
        assert (self._matching.label == np.sort(found.labels[rows])).all()

    def of_classes(self, weights: np.ndarray, *, area: str = "all") -> dict[str, np.ndarray]:
        """AP, AP50 and AP75 of each class, [b, k] each; NaN for a class without objects."""
        a = AREAS.index(area)
        counted = self._matching.is_counted[:, a].astype(np.float64)[:, None]
        objects = grouped_sums(
            counted, self._overlaps.object_image, self._labels, self._num_classes, weights
        )[..., 0].astype(np.int64)
        precision = np.full((_T, *objects.shape), np.nan)
        bounds = np.searchsorted(self._matching.label, np.arange(self._num_classes + 1))
        for k in np.flatnonzero(objects.any(axis=0)).tolist():
            rows, done = slice(bounds[k], bounds[k + 1]), 0
            for part in chunks_of(weights, bounds[k + 1] - bounds[k]):
                span = slice(done, done + len(part))
                precision[:, span, k] = self._of_class(rows, a, part, objects[span, k])
                done += len(part)
        precision[:, objects == 0] = np.nan
        return {"AP": precision.mean(axis=0), "AP50": precision[0], "AP75": precision[_AT_75]}

    def _of_class(
        self, rows: slice, a: int, weights: np.ndarray, objects: np.ndarray
    ) -> np.ndarray:
        """Mean precision at each threshold, [thresholds, b]."""
        bits = slice(a * _T, (a + 1) * _T)
        hits = np.flatnonzero(unpack(self._matching.matched[rows])[:, bits].any(axis=1))
        matched = unpack(self._matching.matched[rows][hits])[:, bits]
        true = matched & ~unpack(self._matching.ignored[rows][hits])[:, bits]
        is_sized = self._matching.is_sized[rows, a]
        of_row = weights[:, self._image[rows]]
        sized = np.cumsum(of_row * is_sized, axis=1)[:, hits]
        of_row = of_row[:, hits]
        needed = needed_positives(objects)
        result = np.zeros((_T, len(weights)))
        for t in range(_T):
            # A false positive is of the right size and unmatched.
            false = sized - np.cumsum(of_row * (matched[:, t] & is_sized[hits]), axis=1)
            is_true = true[:, t]
            result[t] = mean_precision(of_row[:, is_true], false[:, is_true], needed)
        return result


def needed_positives(objects: np.ndarray) -> np.ndarray:
    """The least number of true positives m with m / n >= r, of n objects, at least 1.

    Args:
      objects: int64 [b].

    Returns:
      int64 [b, 101], for the recalls r = 0, .01, .., 1.

    Example:
      >>> needed_positives(np.array([10]))[0, [0, 1, 30, 31, 100]].tolist()
      [1, 1, 3, 4, 10]
    """
    n = np.maximum(objects, 1)[:, None]
    guess = np.ceil(RECALLS * n).astype(np.int64)
    # The product is rounded; the comparison that counts is that of the quotients.
    guess -= (guess - 1) / n >= RECALLS
    guess += guess / n < RECALLS
    return np.maximum(guess, 1)


def mean_precision(of_true: np.ndarray, false: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """The mean of `interpolated_precision` over the recalls, [b].

    Example:
      >>> once, false = np.array([[1, 1]]), np.array([[0, 2]])
      >>> round(float(mean_precision(once, false, needed_positives(np.array([2])))[0]), 4)
      0.7525
    """
    precision: np.ndarray = interpolated_precision(of_true, false, needed).mean(axis=1)
    return precision


def interpolated_precision(
    of_true: np.ndarray, false: np.ndarray, needed: np.ndarray
) -> np.ndarray:
    """The best precision at each recall or a higher one, [b, 101]; 0 where it is not reached.

    Args:
      of_true: int64 [b, p], how often each true positive counts, best first.
      false: int64 [b, p], the false positives before each.
      needed: int64 [b, 101], as `needed_positives` gives them.
    """
    if of_true.shape[1] == 0:
        return np.zeros(needed.shape)
    true = np.cumsum(of_true, axis=1)
    precision = true / (false + true + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # One search for all resamples: each has a stretch of the number line for itself.
    stride = int(max(true.max(), needed.max())) + 1
    start = np.arange(len(true))[:, None]
    place = np.searchsorted((true + start * stride).ravel(), (needed + start * stride).ravel())
    place = place.reshape(needed.shape) - start * true.shape[1]
    return np.take_along_axis(np.hstack([best, np.zeros((len(best), 1))]), place, axis=1)
