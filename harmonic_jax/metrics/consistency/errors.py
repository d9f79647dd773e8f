"""TIDE: why detections are wrong, and what AP at IoU .5 each kind of error costs."""

import dataclasses

import numpy as np

from harmonic_jax.metrics.consistency.average_precision import mean_precision, needed_positives
from harmonic_jax.metrics.consistency.bootstrap import chunks_of, grouped_sums
from harmonic_jax.metrics.consistency.greedy import Greedy
from harmonic_jax.metrics.consistency.overlaps import Overlaps
from harmonic_jax.metrics.consistency.pairs import best_objects
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

KINDS = ("class", "location", "both", "duplicate", "background")  # of false positives
FOREGROUND, BACKGROUND = 0.5, 0.1
_NONE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """The kind of every false positive, and the objects that nothing could find.

    Attributes:
      kind: int64 [d], into `KINDS`; -1: a true positive, or left out.
      claims: int64 [d], the object that a "class" or "location" error would find if it were
        mended: the best such detection of an object not found otherwise; -1: it would vanish.
      is_missed: bool [g], objects to find that no detection takes, and that mending no detection
        would find.
      is_unfound: bool [g], objects to find that no detection takes.
    """

    kind: np.ndarray
    claims: np.ndarray
    is_missed: np.ndarray
    is_unfound: np.ndarray


def find_errors(
    overlaps: Overlaps, greedy: Greedy, truth: GroundTruthTable, found: DetectionTable
) -> Errors:
    """Sorts false positives at IoU .5 by the first rule that holds:

        location    IoU in [.1, .5] with an object of its class
        class       IoU >= .5 with an object of another class
        duplicate   IoU >= .5 with an object of its class, which another detection takes
        background  IoU <= .1 with every object
        both        else

    Crowd regions and difficult objects are no objects here. What COCO leaves out (detections on
    them, beyond the best 100 of image and class) is no error.

    Args:
      greedy: the matching at IoU .5.

    Source: Bolya et al., TIDE, ECCV 2020, in the order of the authors' code.
    """
    counted = ~overlaps.is_ignored_object[overlaps.object]
    own, own_object = best_objects(overlaps, counted & overlaps.same_class)
    other, other_object = best_objects(overlaps, counted & ~overlaps.same_class)
    is_found = np.zeros(len(truth.labels), bool)
    is_found[greedy.object[greedy.is_true[:, 0], 0]] = True
    taken, _ = best_objects(overlaps, counted & overlaps.same_class & is_found[overlaps.object])
    rules = [
        (own >= BACKGROUND) & (own <= FOREGROUND),
        other >= FOREGROUND,
        taken >= FOREGROUND,
        np.maximum(own, other) <= BACKGROUND,
    ]
    names = ("location", "class", "duplicate", "background")
    kinds = [KINDS.index(name) for name in names]
    kind = np.select(rules, kinds, default=KINDS.index("both"))
    kind = np.where(greedy.is_false[:, 0], kind, _NONE)

    wished = np.where(kind == KINDS.index("location"), own_object, -1)
    wished = np.where(kind == KINDS.index("class"), other_object, wished)
    is_unfound = greedy.is_counted[:, 0] & ~is_found
    wished = np.where((wished >= 0) & np.append(is_unfound, False)[wished], wished, -1)
    rows = np.flatnonzero(wished >= 0)
    order = rows[np.lexsort((rows, -found.scores[rows], wished[rows]))]
    best = order[np.flatnonzero(np.diff(wished[order], prepend=-1))]
    claims = np.full(len(kind), -1, np.int64)
    claims[best] = wished[best]
    is_missed = is_unfound.copy()
    is_missed[claims[best]] = False
    return Errors(kind, claims, is_missed, is_unfound)


def error_costs(
    errors: Errors,
    overlaps: Overlaps,
    greedy: Greedy,
    truth: GroundTruthTable,
    found: DetectionTable,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """AP50 gained in each class if one kind of error were mended, for every resample.

    "class" and "location" errors: the best detection of each object not found otherwise becomes a
    true positive, with its score, of the object's class; the others vanish. "both", "duplicate",
    "background": they vanish. "missed": these objects are not asked for. "false_positive": all
    false positives come last. "false_negative": no object that is not found is asked for. At
    least 0, as in the authors' code. The numbers of a data set are the means over its classes.

    Returns:
      "AP50", "dAP_class", .., "dAP_false_negative", each [b, k] in fractions of 1; NaN for a class
      without objects. (tidecv counts a class with detections and no objects as AP 0.)

    Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, 2020.
    """
    num_classes = len(truth.class_names)
    is_true, is_false = greedy.is_true[:, 0], greedy.is_false[:, 0]
    counted = greedy.is_counted[:, 0]

    def ap(
        true: np.ndarray, false: np.ndarray, label: np.ndarray, objects: np.ndarray
    ) -> np.ndarray:
        number = grouped_sums(
            objects[:, None].astype(np.float64),
            overlaps.object_image,
            truth.labels,
            num_classes,
            weights,
        )[..., 0].astype(np.int64)
        return _average_precision(true, false, label, found.scores, overlaps.image, number, weights)

    base = ap(is_true, is_false, found.labels, counted)
    has_objects = np.isfinite(base)
    fixed = {}
    for i, name in enumerate(KINDS):
        of_kind = errors.kind == i
        mended = of_kind & (errors.claims >= 0)
        label = (
            np.where(mended, truth.labels[errors.claims], found.labels)
            if mended.any()
            else (found.labels)
        )
        fixed[name] = ap(is_true | mended, is_false & ~of_kind, label, counted)
    fixed["missed"] = ap(is_true, is_false, found.labels, counted & ~errors.is_missed)
    fixed["false_positive"] = ap(is_true, is_false & False, found.labels, counted)
    fixed["false_negative"] = ap(is_true, is_false, found.labels, counted & ~errors.is_unfound)
    # A class whose objects are all missed has no AP once they are not asked for: it gains nothing.
    gains = {
        f"dAP_{name}": np.where(has_objects, np.maximum(np.nan_to_num(value) - base, 0.0), np.nan)
        for name, value in fixed.items()
    }
    return {"AP50": base} | gains


def count_errors(
    errors: Errors,
    image: np.ndarray,
    label: np.ndarray,
    object_image: np.ndarray,
    object_label: np.ndarray,
    num_classes: int,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """How many there are of each kind and class, "num_class", .., "num_missed", each [b, k]."""
    is_kind = errors.kind[:, None] == np.arange(len(KINDS))
    sums = grouped_sums(is_kind.astype(np.float64), image, label, num_classes, weights)
    missed = grouped_sums(
        errors.is_missed[:, None].astype(np.float64),
        object_image,
        object_label,
        num_classes,
        weights,
    )
    counts = {f"num_{name}": sums[..., i] for i, name in enumerate(KINDS)}
    return counts | {"num_missed": missed[..., 0]}


def _average_precision(
    is_true: np.ndarray,
    is_false: np.ndarray,
    label: np.ndarray,
    score: np.ndarray,
    image: np.ndarray,
    objects: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """AP at one threshold of each class, [b, k]; NaN without objects."""
    rows = np.flatnonzero(is_true | is_false)
    rows = rows[np.lexsort((image[rows], -score[rows], label[rows]))]
    bounds = np.searchsorted(label[rows], np.arange(objects.shape[1] + 1))
    result = np.full(objects.shape, np.nan)
    for k in np.flatnonzero(objects.any(axis=0)).tolist():
        of_class, done = rows[bounds[k] : bounds[k + 1]], 0
        true = is_true[of_class]
        for part in chunks_of(weights, len(of_class)):
            span = slice(done, done + len(part))
            of_row = part[:, image[of_class]]
            false = np.cumsum(of_row * ~true, axis=1)[:, true]
            result[span, k] = mean_precision(
                of_row[:, true], false, needed_positives(objects[span, k])
            )
            done += len(part)
    result[objects == 0] = np.nan
    return result
