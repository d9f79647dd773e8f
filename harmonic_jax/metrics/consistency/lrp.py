"""Localization Recall Precision error, and its least value over all score thresholds."""

import numpy as np

from harmonic_jax.metrics.consistency.bootstrap import chunks_of, ratio
from harmonic_jax.metrics.consistency.greedy import Greedy

PARTS = ("oLRP", "oLRP_loc", "oLRP_FP", "oLRP_FN", "LRP")


def lrp_errors(
    greedy: Greedy,
    area: int,
    score: np.ndarray,
    label: np.ndarray,
    image: np.ndarray,
    num_objects: np.ndarray,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """LRP and optimal LRP of each class, for every resample.

    Of the detections with a score >= s, with t the matching's IoU threshold:

        LRP(s)  = (sum over TP of (1 - IoU) / (1 - t) + FP + FN) / (TP + FP + FN)
        oLRP    = min over s of LRP(s);   at that s:
        loc     = mean over TP of 1 - IoU,   FP part = FP / (TP + FP),   FN part = FN / objects

    "LRP" is the value with all detections. One of no detection is 1.

    Args:
      greedy: the matching; IoU .5 in the report, as in the papers.
      area: which of COCO's ranges: 0 all, 1 small, ..
      score, label, image: [d], of every detection.
      num_objects: [b, k], weighted number of objects of each class.
      weights: [b, images].

    Returns:
      `PARTS`, each [b, k]; NaN for a class without objects, and for loc and the FP part of one
      without true positives.

    Source: Oksuz et al., Localization Recall Precision, ECCV 2018, and One Metric to Measure them
    All, TPAMI 2021; of equal minima the first, as in the authors' code.
    """
    is_true, is_false = greedy.is_true[:, area], greedy.is_false[:, area]
    rows = np.flatnonzero(is_true | is_false)
    rows = rows[np.lexsort((image[rows], -score[rows], label[rows]))]
    bounds = np.searchsorted(label[rows], np.arange(num_objects.shape[1] + 1))
    result = {name: np.full(num_objects.shape, np.nan) for name in PARTS}
    for k in np.flatnonzero(num_objects.any(axis=0)).tolist():
        of_class = rows[bounds[k] : bounds[k + 1]]
        done = 0
        for part in chunks_of(weights, len(of_class)):
            span = slice(done, done + len(part))
            values = _of_class(
                is_true[of_class],
                1.0 - greedy.iou[of_class, area],
                part[:, image[of_class]].astype(np.float64),
                num_objects[span, k],
                greedy.threshold,
            )
            for name, value in zip(PARTS, values, strict=True):
                result[name][span, k] = np.where(num_objects[span, k] > 0, value, np.nan)
            done += len(part)
    return result


def _of_class(
    is_true: np.ndarray, loss: np.ndarray, of_row: np.ndarray, n: np.ndarray, threshold: float
) -> tuple[np.ndarray, ...]:
    """One class, best detection first; `of_row` [b, d], `n` [b] objects.

    The error can fall only where a true positive comes in, so only those places are looked at.
    """
    ones = np.ones(len(of_row))
    hits = np.flatnonzero(is_true)
    false = np.cumsum(of_row * ~is_true, axis=1)
    all_false = false[:, -1] if false.shape[1] else 0.0 * ones
    if hits.size == 0:
        return ones, ones * np.nan, ones * np.nan, ones, ones
    true = np.cumsum(of_row[:, hits], axis=1)
    total = np.cumsum(of_row[:, hits] * loss[hits], axis=1)
    fp = false[:, hits]
    least = n[:, None]
    errors = ratio(total / (1.0 - threshold) + fp + (least - true), least + fp)
    errors[true == 0] = np.inf  # a true positive of weight 0
    at = np.argmin(errors, axis=1)[:, None]
    tp, fp, loc, best = (np.take_along_axis(a, at, 1)[:, 0] for a in (true, fp, total, errors))
    some = tp > 0
    last = total[:, -1] / (1.0 - threshold) + all_false + n - true[:, -1]
    return (
        np.where(some, best, 1.0),
        ratio(loc, tp),
        np.where(some, ratio(fp, tp + fp), np.nan),
        np.where(some, 1.0 - ratio(tp, n), 1.0),
        ratio(last, n + all_false),
    )
