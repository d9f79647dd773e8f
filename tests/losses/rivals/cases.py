"""One call of every loss of this room, as a function of float arrays [n, ...] and a mask."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax.losses import rivals
from tests.losses.rivals import reference

N = 12
_RNG = np.random.default_rng(0)
LABELS = _RNG.integers(0, 5, N)  # 4 is background
CLASSES = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
OBJECTS = np.array([4, 4, 7, 7, 7, 0, 0, 1, 2, 3, 3, 5])
LOGITS = _RNG.normal(0, 2, (N, 4))
PROB, IOU, LOSS = _RNG.uniform(0.05, 0.95, (3, N))


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
    return with_integers(getattr(rivals, name), *integers, at=at)


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
    "correlation_loss": Case(
        _with("correlation_loss", at=2),
        [PROB, IOU],
        reference.correlation,
        of_batch=True,
        has_axis=True,
    ),
}
