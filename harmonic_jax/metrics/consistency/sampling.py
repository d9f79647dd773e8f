"""All numbers of one set of detections, each for every resample of the images.

A resample of n images with replacement is a row of weights, whole numbers that sum to n. Each
metric takes all rows at once and returns one value a row; the first row, all ones, gives the
number itself, so there is one formula and no second one for the resamples.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from harmonic_jax.metrics.coco import AT_75, coco_matchings
from harmonic_jax.metrics.consistency.measures import (
    D_ECE_BINS,
    LAECE_BINS,
    Rows,
    agreement,
    average_precisions,
    calibration_error,
    error_costs,
    grouped_means,
    lrp_errors,
    mean_of_classes,
    objects_of_classes,
    spearman,
)
from harmonic_jax.metrics.consistency.study import (
    AREA_NAMES,
    Study,
    area_ranges,
    best_of_each_object,
    ranked_by_iou,
)
from harmonic_jax.metrics.matching import AREA_RANGES, Positives
from harmonic_jax.metrics.params import COCO_PARAMS

CONFIDENCE = 0.95
RESAMPLES = 1000
FEWEST_RESAMPLES = 100
_WORK = 50_000_000  # rows of a table times resamples, of a metric that sorts or ranks
OVERALL = "overall"
NEED_SCORES_IN_RANGE = ("mean_gap", "high_score_low_iou", "LaECE", "D_ECE")
Place = tuple[str, str]  # ("overall", ""), ("areas", "small") or ("classes", name)
Values = dict[str, np.ndarray]
Found = Iterator[tuple[Place, Values]]


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Values of every metric at every place, for the images as they are and for resamples.

    Attributes:
      values: {place: {metric: float64 [1 + resamples]}}; NaN where there is no value. Metrics that
        are costly on large data have fewer resamples: the first ones, so that those of two
        detectors on the same images always belong together.
      scores_in_range: all scores lie in [0, 1]; where not, what compares them with IoU or with
        precision has no value.
    """

    values: dict[Place, Values]
    num_images: int
    resamples: int
    seed: int
    scores_in_range: bool = True


def by_section(items: Mapping[Place, Any]) -> dict[str, Any]:
    """What is at each place as it is written: {"overall": .., "areas": {..}, "classes": {..}}."""
    sections: dict[str, Any] = {OVERALL: items[OVERALL, ""], "areas": {}, "classes": {}}
    for (section, name), item in items.items():
        if section != OVERALL:
            sections[section][name] = item
    return sections


def bootstrap_weights(num_images: int, resamples: int, *, seed: int) -> np.ndarray:
    """How often each image counts: int32 [1 + resamples, num_images], the first row all ones.

    Example:
      >>> weights = bootstrap_weights(3, 2, seed=0)
      >>> weights[0].tolist(), weights.sum(axis=1).tolist()
      ([1, 1, 1], [3, 3, 3])
    """
    weights = np.ones((1 + resamples, num_images), np.int32)
    if num_images:
        rng, chance = np.random.default_rng(seed), np.full(num_images, 1 / num_images)
        for row in weights[1:]:
            row[:] = rng.multinomial(num_images, chance)
    return weights


def affordable_resamples(num_rows: int, most: int) -> int:
    """Resamples of a metric whose work grows with the rows: fewer for large data sets."""
    return min(most, max(FEWEST_RESAMPLES, _WORK // max(num_rows, 1)))


def percentile_interval(samples: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile interval of resampled values; NaN marks a resample without a value.

    None where fewer than half of the resamples have one: the rest would tell of few images.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Example:
      >>> percentile_interval(np.arange(101.0))
      (2.5, 97.5)
      >>> percentile_interval(np.array([1.0, np.nan, np.nan]))
    """
    defined = samples[np.isfinite(samples)]
    if defined.size == 0 or 2 * defined.size < samples.size:
        return None
    tail = round(50.0 * (1.0 - CONFIDENCE), 9)  # 2.5, not a little more
    low, high = np.percentile(defined, [tail, 100.0 - tail])
    return float(low), float(high)


def sample_metrics(case: Study, *, resamples: int, seed: int) -> Samples:
    """Computes everything.

    Args:
      case: the tables, matched.
      resamples: >= 0; metrics that rank or sort take fewer where there are many detections.
      seed: of the resamples. Two detectors on one ground truth need the same.
    """
    weights = bootstrap_weights(len(case.truth.image_ids), resamples, seed=seed)
    costly = weights[: 1 + affordable_resamples(len(case.found.labels), resamples)]
    values: dict[Place, Values] = {(OVERALL, ""): {}}
    values |= {("areas", name): {} for name in AREA_NAMES}
    values |= {("classes", name): {} for name in case.truth.class_names}
    parts = (
        _average_precisions(case, costly),
        _agreements(case, weights, costly),
        _calibrations_and_lrp(case, weights, costly),
        _errors(case, costly),
        _nms(case, weights),
    )
    for part in parts:
        for place, found in part:
            values[place] |= found
    in_range = bool(((case.found.scores >= 0) & (case.found.scores <= 1)).all())
    if not in_range:
        for here in values.values():
            here |= {name: here[name] * np.nan for name in NEED_SCORES_IN_RANGE}
    return Samples(values, len(case.truth.image_ids), resamples, seed, in_range)


def _spread(section: str, names: tuple[str, ...], values: Values) -> Found:
    """[b, k] of each metric -> [b] at each of k places."""
    for i, name in enumerate(names):
        yield (section, name), {metric: column[:, i] for metric, column in values.items()}


def _place(area: int) -> Place:
    return (OVERALL, "") if area == 0 else ("areas", AREA_NAMES[area - 1])


def _of_classes(case: Study, area: int, values: Values) -> Found:
    """A metric that is a mean over classes: the mean, and for all sizes the classes as well."""
    yield _place(area), {name: mean_of_classes(column) for name, column in values.items()}
    if area == 0:
        yield from _spread("classes", case.truth.class_names, values)


def _by_rows(
    case: Study,
    area_range: np.ndarray,
    label: np.ndarray,
    measure: Callable[[np.ndarray, int], Values],
) -> Found:
    """A metric of rows: of all of them, of each area range and of each class."""
    yield from _spread(OVERALL, ("",), measure(np.zeros(len(label), np.int64), 1))
    yield from _spread("areas", AREA_NAMES, measure(area_range, len(AREA_NAMES)))
    names = case.truth.class_names
    yield from _spread("classes", names, measure(label, len(names)))


def _average_precisions(case: Study, weights: np.ndarray) -> Found:
    """COCO's, and those of the same boxes better ranked or better chosen."""
    matched = {"AP": case.matching}
    tables = {"AP_ranked_by_iou": ranked_by_iou(case.overlaps)}
    if case.raw_overlaps is not None:
        tables["AP_best_raw"] = best_of_each_object(case.raw_overlaps)
    for name, table in tables.items():
        (matched[name],) = coco_matchings(case.truth, table, case.iou_type, COCO_PARAMS)
    for area in range(len(AREA_RANGES)):
        objects = objects_of_classes(case, case.matching.is_counted[:, area], weights)
        at_thresholds = {
            name: average_precisions(matching, area, objects, weights)
            for name, matching in matched.items()
        }
        values = {name: precision.mean(axis=0) for name, precision in at_thresholds.items()}
        values["AP_headroom"] = values["AP_ranked_by_iou"] - values["AP"]
        values |= {"AP50": at_thresholds["AP"][0], "AP75": at_thresholds["AP"][AT_75]}
        yield from _of_classes(case, area, values)


def _agreements(case: Study, weights: np.ndarray, costly: np.ndarray) -> Found:
    pairs = case.pairs

    def measure(group: np.ndarray, num_groups: int) -> Values:
        rows = Rows(pairs.score, pairs.iou, pairs.image, group, num_groups)
        return agreement(rows, weights) | {"spearman": spearman(rows, costly)}

    yield from _by_rows(case, pairs.area_range, pairs.label, measure)


def _calibrations_and_lrp(case: Study, weights: np.ndarray, costly: np.ndarray) -> Found:
    names = case.truth.class_names
    for area in range(len(AREA_RANGES)):
        any_iou, half = case.matching_any.positives(0, area), case.matching.positives(0, area)
        objects = objects_of_classes(case, half.is_counted, weights)
        rows = _counted_rows(case, any_iou, any_iou.iou, by_class=True)
        laece = calibration_error(rows, weights, num_bins=LAECE_BINS)
        yield from _of_classes(case, area, {"LaECE": np.where(objects > 0, laece, np.nan)})
        rows = _counted_rows(case, half, half.is_true, by_class=False)
        d_ece = calibration_error(rows, weights, num_bins=D_ECE_BINS)
        yield _place(area), {"D_ECE": d_ece[:, 0]}
        if area == 0:
            rows = _counted_rows(case, half, half.is_true, by_class=True)
            d_ece = calibration_error(rows, weights, num_bins=D_ECE_BINS)
            yield from _spread("classes", names, {"D_ECE": d_ece})
        yield from _of_classes(case, area, lrp_errors(case, half, objects[: len(costly)], costly))


def _errors(case: Study, weights: np.ndarray) -> Found:
    for area, values in enumerate(error_costs(case, weights)):
        yield from _of_classes(case, area, values)


def _counted_rows(
    case: Study, positives: Positives, quality: np.ndarray, *, by_class: bool
) -> Rows:
    """Detections that are true or false positives, by class or all together."""
    use = positives.is_true | positives.is_false
    label = case.found.labels[use]
    groups = (label, len(case.truth.class_names)) if by_class else (np.zeros_like(label), 1)
    return Rows(case.found.scores[use], quality[use], case.overlaps.image[use], *groups)


def _nms(case: Study, weights: np.ndarray) -> Found:
    """The mean over objects of the best IoU before NMS less the best one after."""
    best, truth = case.best_boxes, case.truth
    if best is None:
        return
    image, loss = case.overlaps.object_image[best.object], best.before - best.after

    def measure(group: np.ndarray, num_groups: int) -> Values:
        return {"nms_mean_loss": grouped_means(loss, image, group, num_groups, weights)}

    area_range = area_ranges(truth.area[best.object])
    yield from _by_rows(case, area_range, truth.labels[best.object], measure)
