"""One call of every loss of this room, as a function of float arrays [n, ...] and a mask."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax.losses import quality
from tests.losses.quality import reference
from tests.losses.test_localization import valid_pairs

N = 12
_RNG = np.random.default_rng(0)
LABELS = _RNG.integers(0, 5, N)  # 4 is background
CLASSES = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
OBJECTS = np.array([4, 4, 7, 7, 7, 0, 0, 1, 2, 3, 3, 5])
LOGITS, BINS = _RNG.normal(0, 2, (N, 4)), _RNG.normal(0, 1, (N, 6))
PROB, IOU, LOSS = _RNG.uniform(0.05, 0.95, (3, N))
SIDES = _RNG.uniform(0, 5, N)
DELTAS, TARGETS = _RNG.normal(0, 0.5, (2, N, 4))
PRED, TARGET = (boxes[:N] for boxes in valid_pairs())


class Case(NamedTuple):
    # (*floats, rows=, change=, **options): what is done to the integers, `rows` chosen first
    call: Callable[..., Any]
    floats: list[np.ndarray]
    expected: Callable[..., Any]  # (*floats, **options) in NumPy, of all rows
    moves: tuple[int, ...] = (0,)  # the arguments that the gradient reaches
    of_batch: bool = False  # a sample's value depends on the others
    has_axis: bool = False  # and sums over the devices of an axis


def with_integers(function: Callable[..., Any], *integers: np.ndarray, at: int) -> Callable:
    """The function, its integer arguments put in at their place."""

    def call(
        *floats: Any,
        rows: Any = slice(None),
        change: Callable[[jax.Array], jax.Array] = lambda array: array,
        **options: Any,
    ) -> Any:
        own = [change(jnp.asarray(array)[rows]) for array in integers]
        return function(*floats[:at], *own, *floats[at:], **options)

    return call


def _with(name: str, *integers: np.ndarray, at: int) -> Callable[..., Any]:
    return with_integers(getattr(quality, name), *integers, at=at)


def _pairs(f: Callable[..., float]) -> Callable[..., np.ndarray]:
    def of_all(pred: np.ndarray, target: np.ndarray, **options: Any) -> np.ndarray:
        return np.array([f(a, b, **options) for a, b in zip(pred, target, strict=True)])

    return of_all


def _on_labels(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda logits, *rest, **options: f(logits, LABELS, *rest, **options)


CASES = {
    "quality_focal_loss": Case(
        _with("quality_focal_loss", LABELS, at=1),
        [LOGITS, IOU],
        _on_labels(reference.quality_focal),
    ),
    "task_aligned_loss": Case(
        _with("task_aligned_loss", LABELS, at=1),
        [LOGITS, IOU],
        lambda x, y, gamma=2.0: reference.quality_focal(x, LABELS, y, beta=gamma),
    ),
    "varifocal_loss": Case(
        _with("varifocal_loss", LABELS, at=1), [LOGITS, IOU], _on_labels(reference.varifocal)
    ),
    "distribution_focal_loss": Case(
        _with("distribution_focal_loss", at=2), [BINS, SIDES], reference.distribution_focal
    ),
    "task_alignment": Case(
        functools.partial(_with("task_alignment", OBJECTS, at=2), num_objects=8),
        [PROB, IOU],
        lambda p, u, **options: reference.task_alignment(p, u, OBJECTS, **options),
        moves=(),
        of_batch=True,
    ),
    "iou_balanced_cls_loss": Case(
        _with("iou_balanced_cls_loss", at=2),
        [LOSS, IOU],
        reference.iou_balanced_cls,
        of_batch=True,
        has_axis=True,
    ),
    "iou_balanced_loc_loss": Case(
        _with("iou_balanced_loc_loss", at=2), [LOSS, IOU], reference.iou_balanced_loc
    ),
    "isr_loss": Case(
        _with("isr_loss", CLASSES, OBJECTS, at=2),
        [LOSS, IOU],
        lambda loss, iou, **options: reference.isr(loss, iou, CLASSES, OBJECTS, **options),
        of_batch=True,
    ),
    "carl_loss": Case(
        _with("carl_loss", at=2),
        [PROB, LOSS],
        reference.carl,
        moves=(0, 1),
        of_batch=True,
        has_axis=True,
    ),
    "ghm_cls_loss": Case(
        _with("ghm_cls_loss", LABELS, at=1),
        [LOGITS],
        _on_labels(reference.ghm_cls),
        of_batch=True,
        has_axis=True,
    ),
    "ghm_loc_loss": Case(
        _with("ghm_loc_loss", at=2),
        [DELTAS, TARGETS],
        reference.ghm_loc,
        moves=(0, 1),
        of_batch=True,
        has_axis=True,
    ),
    "correlation_loss": Case(
        _with("correlation_loss", at=2),
        [PROB, IOU],
        reference.correlation,
        of_batch=True,
        has_axis=True,
    ),
    "balanced_l1_loss": Case(
        _with("balanced_l1_loss", at=2),
        [DELTAS * 2, TARGETS],
        reference.balanced_l1,
        moves=(0, 1),
    ),
    "eiou_loss": Case(
        _with("eiou_loss", at=2), [PRED, TARGET], _pairs(reference.eiou), moves=(0, 1)
    ),
    "alpha_iou_loss": Case(
        _with("alpha_iou_loss", at=2), [PRED, TARGET], _pairs(reference.alpha_iou), moves=(0, 1)
    ),
    "siou_loss": Case(
        _with("siou_loss", at=2), [PRED, TARGET], _pairs(reference.siou), moves=(0, 1)
    ),
}
