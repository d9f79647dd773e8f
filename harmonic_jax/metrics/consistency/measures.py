"""The definitions, each for every resample of the images at once.

`weights` [b, images] say how often each image counts.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from harmonic_jax.metrics.coco import hits_of, precision_curves
from harmonic_jax.metrics.consistency.study import AREA_NAMES, Study, area_ranges
from harmonic_jax.metrics.matching import Matching, Positives, best_objects

HIGH = 0.5
LAECE_BINS = 25
D_ECE_BINS = 10
KINDS = ("class", "location", "both", "duplicate", "background")  # of false positives
FOREGROUND, BACKGROUND = 0.5, 0.1
_NO_VARIANCE = 1e-13
_AT_ONCE = 4_000_000


def grouped_sums(
    values: np.ndarray, image: np.ndarray, group: np.ndarray, num_groups: int, weights: np.ndarray
) -> np.ndarray:
    """Weighted sums of rows, `values` [n] or [n, m], by group 0..k-1: [b, k] or [b, k, m].

    Example:
      >>> values, image = np.array([1.0, 2.0, 4.0]), np.array([0, 1, 1])
      >>> grouped_sums(values, image, np.zeros(3, int), 1, np.array([[1, 1], [0, 2]])).tolist()
      [[7.0], [12.0]]
    """
    # Rows of one image and group have one weight: they are summed once, not at every resample.
    cell, entry = np.unique(group * weights.shape[1] + image, return_inverse=True)
    columns = values.reshape(len(values), math.prod(values.shape[1:])).T
    sums = np.stack([np.bincount(entry, column, len(cell)) for column in columns], axis=1)
    cell_group, cell_image = np.divmod(cell, max(weights.shape[1], 1))
    result = np.zeros((len(weights), num_groups, len(columns)))
    rows = np.arange(len(cell))
    for k, part, here, counts in by_group(rows, cell_group, num_groups, cell_image, weights):
        result[part, k] = counts @ sums[here]
    return result.reshape(len(weights), num_groups, *values.shape[1:])


def grouped_means(
    values: np.ndarray, image: np.ndarray, group: np.ndarray, num_groups: int, weights: np.ndarray
) -> np.ndarray:
    """Weighted means of rows [n] by group, [b, k]; NaN for a group without any."""
    columns = np.stack([values, np.ones_like(values)], axis=1)
    sums = grouped_sums(columns, image, group, num_groups, weights)
    return ratio(sums[..., 0], sums[..., 1])


def by_group(
    rows: np.ndarray, group: np.ndarray, num_groups: int, image: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[int, slice, np.ndarray, np.ndarray]]:
    """Goes through groups of rows, and through resamples as far as a table of them fits in memory.

    Yields a group, the resamples, the group's of `rows`, which are ordered by group, [m], and how
    often each of these counts in each of the resamples, [.., m].
    """
    bounds = np.searchsorted(group[rows], np.arange(num_groups + 1))
    for k in range(num_groups):
        here = rows[bounds[k] : bounds[k + 1]]
        step = max(1, _AT_ONCE // max(len(here), 1))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            yield k, part, here, weights[part, image[here]]


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element by element, NaN where the denominator is 0 or less."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    out = np.full(shape, np.nan)
    np.divide(numerator, denominator, out=out, where=np.broadcast_to(denominator > 0, shape))
    return out


def mean_of_classes(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


class Rows(NamedTuple):
    """Detections in groups.

    Attributes:
      score: float64 [n].
      quality: [n], how good each is: its IoU, or whether it is right.
      image: int64 [n], its column of the weights.
      group: int64 [n], 0..k-1, a class or a range of areas.
    """

    score: np.ndarray
    quality: np.ndarray
    image: np.ndarray
    group: np.ndarray
    num_groups: int

    def sums(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted sums of values of the rows, [n] or [n, m], by group: [b, k] or [b, k, m]."""
        return grouped_sums(values, self.image, self.group, self.num_groups, weights)


def agreement(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    """How well scores s tell the IoUs u of their boxes, each [b, k]; NaN where it has no value.

        pearson             cov(s, u) / (sd(s) sd(u)); variances divide by n
        mean_gap            mean |s - u|
        high_score_low_iou  share with u < .5 among those with s >= .5

    Example:
      >>> s, u, zeros = np.array([0.9, 0.5, 0.1]), np.array([0.8, 0.4, 0.0]), np.zeros(3, int)
      >>> values = agreement(Rows(s, u, zeros, zeros, 1), np.ones((1, 1)))
      >>> {name: round(float(value[0, 0]), 3) for name, value in values.items()}
      {'pearson': 1.0, 'mean_gap': 0.1, 'high_score_low_iou': 0.5}
    """
    # Sums of squares lose least about a point near the mean.
    s, u, is_high = rows.score - 0.5, rows.quality - 0.5, rows.score >= HIGH
    gap, is_bad = np.abs(rows.score - rows.quality), is_high & (rows.quality < HIGH)
    columns = (np.ones_like(s), s, u, s * s, u * u, s * u, gap, is_high, is_bad)
    sums = rows.sums(np.stack(columns, axis=1), weights)
    n, high, high_bad = (sums[..., i] for i in (0, 7, 8))
    mean_s, mean_u, ss, uu, su, mean_gap = (ratio(sums[..., i], n) for i in range(1, 7))
    cov = su - mean_s * mean_u
    return {
        "pearson": _correlation(cov, ss - mean_s**2, uu - mean_u**2),
        "mean_gap": mean_gap,
        "high_score_low_iou": ratio(high_bad, high),
    }


def spearman(rows: Rows, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks, equal values sharing their mean rank: [b, k].

    An image that counts m times has its rows m times in the ranking.

    Example:
      >>> s, u, zeros = np.array([0.9, 0.5, 0.1]), np.array([0.4, 0.3, 0.0]), np.zeros(3, int)
      >>> round(float(spearman(Rows(s, u, zeros, zeros, 1), np.ones((1, 1)))[0, 0]), 6)
      1.0
    """
    result = np.full((len(weights), rows.num_groups), np.nan)
    order = np.argsort(rows.group, kind="stable")
    groups = by_group(order, rows.group, rows.num_groups, rows.image, weights)
    for k, part, here, counts in groups:
        n = counts.sum(axis=1)
        r, q = (_mean_ranks(values[here], counts) for values in (rows.score, rows.quality))
        for ranks in (r, q):
            ranks -= ratio((ranks * counts).sum(axis=1), n)[:, None]
        cov, var_r, var_q = (
            ratio((x * counts).sum(axis=1), n.astype(float) ** 3) for x in (r * q, r * r, q * q)
        )
        result[part, k] = _correlation(cov, var_r, var_q)
    return result


def _mean_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[n] values, of which each counts so often, [b, n] -> their mean ranks, [b, n]."""
    distinct, tie = np.unique(values, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.searchsorted(tie[order], np.arange(len(distinct)))
    if not len(values):
        return np.zeros(counts.shape)
    size = np.add.reduceat(counts[:, order], starts, axis=1)
    return (np.cumsum(size, axis=1) - (size - 1) / 2)[:, tie]


def _correlation(cov: np.ndarray, var_a: np.ndarray, var_b: np.ndarray) -> np.ndarray:
    defined = (var_a > _NO_VARIANCE) & (var_b > _NO_VARIANCE)
    return np.clip(ratio(cov, np.where(defined, np.sqrt(np.abs(var_a * var_b)), 0.0)), -1.0, 1.0)


def calibration_error(rows: Rows, weights: np.ndarray, *, num_bins: int) -> np.ndarray:
    """sum_j |D_j| / |D| * |mean_j(s) - mean_j(q)| over bins of scores of equal width, [b, k].

    LaECE (at IoU 0, LaECE_0 of 2024): q is the IoU with the object that a detection takes in a
    one-to-one matching at any IoU, 0 where it takes none; 25 bins; the mean over classes. D-ECE: q
    is whether a detection is right at IoU .5; 10 bins. NaN for a group without rows.

    Source: Oksuz et al., Towards Building Self-Aware Object Detectors, CVPR 2023; Kuzucu et al., On
    Calibration of Object Detectors, ECCV 2024; Kueppers et al., Multivariate Confidence Calibration
    for Object Detection, CVPR workshops 2020, with the score as the only dimension.
    """
    gap = rows.score - rows.quality
    n = rows.sums(np.ones_like(gap), weights)
    cell = rows.group * num_bins + score_bins(rows.score, num_bins)
    sums = grouped_sums(gap, rows.image, cell, rows.num_groups * num_bins, weights)
    return ratio(np.abs(sums).reshape(*n.shape, num_bins).sum(axis=-1), n)


def score_bins(score: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin of each score: bin j holds (j / n, (j + 1) / n], the first one 0 as well.

    Example:
      >>> score_bins(np.array([0.0, 0.1, 0.11, 1.0]), 10).tolist()
      [0, 0, 1, 9]
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    return np.clip(np.searchsorted(edges, score, side="left") - 1, 0, num_bins - 1)


def lrp_errors(
    case: Study, positives: Positives, num_objects: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Optimal localization recall precision of each class.

    Of the detections with a score >= s, with t = .5 the matching's IoU threshold:

        LRP(s)  = (sum over TP of (1 - IoU) / (1 - t) + FP + FN) / (TP + FP + FN)
        oLRP    = min over s of LRP(s);   at that s:
        loc     = mean over TP of 1 - IoU,   FP part = FP / (TP + FP),   FN part = FN / objects

    Each [b, k], for [b, k] objects; NaN for a class without objects, and for loc and the FP part of
    one without true positives, whose oLRP is 1.

    Source: Oksuz et al., Localization Recall Precision, ECCV 2018, and One Metric to Measure them
    All, TPAMI 2021; of equal minima the first, as in the authors' code.
    """
    label, image = case.found.labels, case.overlaps.image
    rows = _ranked(case, positives.is_true | positives.is_false, label)
    result = np.full((4, *num_objects.shape), np.nan)
    for k, part, here, counts in by_group(rows, label, num_objects.shape[1], image, weights):
        n, is_true = num_objects[part, k], positives.is_true[here]
        result[:, part, k] = np.array([1.0, np.nan, np.nan, 1.0])[:, None]
        if is_true.any():
            # The error can fall only where a true positive comes in: no other place is looked at.
            fp = np.cumsum(counts * ~is_true, axis=1)[:, is_true]
            true = np.cumsum(counts[:, is_true], axis=1)
            loss = np.cumsum(counts[:, is_true] * (1.0 - positives.iou[here[is_true]]), axis=1)
            errors = ratio(loss / 0.5 + fp + (n[:, None] - true), n[:, None] + fp)
            errors[true == 0] = np.inf  # a true positive of weight 0
            at = np.argmin(errors, axis=1)[:, None]
            tp, fp, loc, best = (
                np.take_along_axis(a, at, 1)[:, 0] for a in (true, fp, loss, errors)
            )
            values = np.stack([best, ratio(loc, tp), ratio(fp, tp + fp), 1.0 - ratio(tp, n)])
            result[:, part, k] = np.where(tp > 0, values, result[:, part, k])
        result[:, part, k] = np.where(n > 0, result[:, part, k], np.nan)
    return dict(zip(("oLRP", "oLRP_loc", "oLRP_FP", "oLRP_FN"), result, strict=True))


def average_precisions(
    matching: Matching, area: int, num_objects: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """COCO's AP of each class at every threshold, [t, b, k]; NaN for a class without objects.

    Matching is done within images, so a resample changes only how often each detection and object
    counts: these are the numbers of a data set with so many copies of each image.
    """
    result = np.full((matching.num_thresholds, *num_objects.shape), np.nan)
    classes = num_objects.shape[1]
    overlaps = matching.overlaps
    groups = by_group(overlaps.order, overlaps.found.labels, classes, overlaps.image, weights)
    for k, part, rows, counts in groups:
        if num_objects[:, k].any():
            is_sized, objects = matching.is_sized[rows, area], num_objects[part, k]
            curves = precision_curves(counts, is_sized, *hits_of(matching, rows, area), objects)
            result[:, part, k] = np.where(objects > 0, curves.mean(axis=-1), np.nan)
    return result


def find_errors(case: Study) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sorts false positives at IoU .5 by the first rule that holds:

        location    IoU in [.1, .5] with an object of its class
        class       IoU >= .5 with an object of another class
        duplicate   IoU >= .5 with an object of its class, which another detection takes
        background  IoU <= .1 with every object
        both        else

    Crowd regions and difficult objects are no objects here. What COCO leaves out (detections on
    them, beyond the best 100 of image and class) is no error.

    Returns:
      The kind of every detection, int64 [d] into `KINDS`; -1: a true positive, or left out. The
      object that a "class" or "location" error would find if it were mended, int64 [d]: the best
      such detection of an object not found otherwise has it, others -1. The objects that no
      detection takes, and that mending none would find, bool [g]. The area range of every
      detection, int64 [d] into `AREA_NAMES`: of a "class" or "location" error its object's, of all
      others that of the detection's own area.

    Source: Bolya et al., TIDE, ECCV 2020, in the order of the authors' code.
    """
    overlaps, positives = case.overlaps, case.positives
    counted = ~overlaps.is_ignored_object[overlaps.object]
    own, own_object = best_objects(overlaps, overlaps.of_own_class)
    other, other_object = best_objects(overlaps, counted & ~overlaps.same_class)
    taken, _ = best_objects(overlaps, overlaps.of_own_class & case.is_found[overlaps.object])
    rules = {
        "location": (own >= BACKGROUND) & (own <= FOREGROUND),
        "class": other >= FOREGROUND,
        "duplicate": taken >= FOREGROUND,
        "background": np.maximum(own, other) <= BACKGROUND,
    }
    kind = np.select(list(rules.values()), list(map(KINDS.index, rules)), KINDS.index("both"))
    kind = np.where(positives.is_false, kind, -1)

    wished = np.where(kind == KINDS.index("location"), own_object, -1)
    wished = np.where(kind == KINDS.index("class"), other_object, wished)
    area = np.where(wished >= 0, np.append(case.truth.area, 0.0)[wished], overlaps.area)
    is_missed = positives.is_counted & ~case.is_found
    wished = np.where((wished >= 0) & np.append(is_missed, False)[wished], wished, -1)
    rows = np.flatnonzero(wished >= 0)
    order = rows[np.lexsort((rows, -case.found.scores[rows], wished[rows]))]
    best = order[np.flatnonzero(np.diff(wished[order], prepend=-1))]
    claims = np.full(len(kind), -1, np.int64)
    claims[best] = wished[best]
    is_missed[claims[best]] = False
    return kind, claims, is_missed, area_ranges(area)


def error_costs(case: Study, weights: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """AP50 gained in each class if one kind of error were mended: errors of all sizes, then those
    of each area range alone. AP50 stays that of objects of all sizes.

    "class" and "location" errors: the best detection of each object not found otherwise becomes a
    true positive, with its score, of the object's class; the others vanish. "both", "duplicate",
    "background": they vanish. "missed": these objects are not asked for. At least 0, as in the
    authors' code. The numbers of a data set are the means over its classes.

    Each [b, k] in fractions of 1; NaN for a class without objects (tidecv: AP 0 if it is detected).

    Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, 2020; by
    area as the qualifiers of the authors' code.
    """
    truth, positives = case.truth, case.positives
    kind, claims, is_missed, area = find_errors(case)
    is_true, is_false, labels = positives.is_true, positives.is_false, case.found.labels
    objects = objects_of_classes(case, positives.is_counted, weights)
    base = _ap50(case, is_true, is_false, labels, objects, weights)
    for ranges in (range(len(AREA_NAMES)), *([a] for a in range(len(AREA_NAMES)))):
        fixed = {}
        for i, name in enumerate(KINDS):
            of_kind = (kind == i) & np.isin(area, ranges)
            mended = of_kind & (claims >= 0)
            label = labels.copy()
            label[mended] = truth.labels[claims[mended]]
            still_false = is_false & ~of_kind
            fixed[name] = _ap50(case, is_true | mended, still_false, label, objects, weights)
        is_asked_for = positives.is_counted & ~(
            is_missed & np.isin(area_ranges(truth.area), ranges)
        )
        asked_for = objects_of_classes(case, is_asked_for, weights)
        fixed["missed"] = _ap50(case, is_true, is_false, labels, asked_for, weights)
        # A class whose objects are all missed has no AP once they are not asked for: it gains 0.
        gains = {name: np.maximum(np.nan_to_num(ap) - base, 0.0) for name, ap in fixed.items()}
        yield {f"dAP_{name}": np.where(objects > 0, gain, np.nan) for name, gain in gains.items()}


def objects_of_classes(case: Study, is_counted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many of the objects bool [g] each class has, int64 [b, k]."""
    rows = np.flatnonzero(is_counted)
    image, label = case.overlaps.object_image[rows], case.truth.labels[rows]
    ones = np.ones(len(rows))
    return grouped_sums(ones, image, label, len(case.truth.class_names), weights).astype(np.int64)


def _ap50(
    case: Study,
    is_true: np.ndarray,
    is_false: np.ndarray,
    label: np.ndarray,
    objects: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """AP at one threshold of each class, [b, k]; NaN without objects."""
    image = case.overlaps.image
    rows = _ranked(case, is_true | is_false, label)
    result = np.full(objects.shape, np.nan)
    for k, part, here, counts in by_group(rows, label, objects.shape[1], image, weights):
        if objects[:, k].any():
            hits = np.flatnonzero(is_true[here])
            all_true = np.ones((len(hits), 1), bool)
            every = np.ones(len(here), bool)
            curves = precision_curves(counts, every, hits, all_true, all_true, objects[part, k])
            result[part, k] = curves[0].mean(axis=-1)
    result[objects == 0] = np.nan
    return result


def _ranked(case: Study, use: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Rows in use by class, then best first, then by image."""
    rows = np.flatnonzero(use)
    return rows[np.lexsort((case.overlaps.image[rows], -case.found.scores[rows], label[rows]))]
