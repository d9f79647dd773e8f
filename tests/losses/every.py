"""One call of every public function of `harmonic_jax.losses` and `losses.rivals`, and its formula.

A new function has to be added here: tests/losses/test_every_function.py refuses to run without it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax import losses
from harmonic_jax.losses import rivals
from tests.losses import reference

N = 12
_RNG = np.random.default_rng(0)
LABELS = _RNG.integers(0, 5, N)  # 4 is background
CLASS_LABELS = LABELS % 4
CLASSES = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
OBJECTS = np.array([4, 4, 7, 7, 7, 0, 0, 1, 2, 3, 3, 5])
LOGITS = _RNG.normal(0, 2, (N, 4))
PROB, IOU, ENTROPY = _RNG.uniform(0.05, 0.95, (3, N))
LOSS, LOC_LOSS, CROSS_ENTROPY = _RNG.uniform(0.01, 4, (3, N))
DELTAS, TARGETS = _RNG.normal(0, 1, (2, N, 4))
MASK_LOGITS, MASKS = _RNG.normal(0, 2, (N, 3, 3)), _RNG.uniform(0, 1, (N, 3, 3))


def valid_pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of boxes of 1 to 60 pixels; about half of them overlap."""
    rng = np.random.default_rng(0)
    low, size = rng.uniform(0, 60, (2, n, 2)), rng.uniform(1, 60, (2, n, 2))
    pred, target = np.concatenate([low, low + size], axis=-1)
    return pred, target


PAIRS = list(valid_pairs(N))


class Case(NamedTuple):
    # (*floats, rows=, change=, **options): what is done to the integers, `rows` chosen first
    call: Callable[..., Any]
    floats: list[np.ndarray]  # [n, ...] each
    expected: Callable[..., Any]  # (*floats, **options) in NumPy, of all rows
    options: tuple[dict, ...] = ()  # that are compared with NumPy beside the defaults
    moves: tuple[int, ...] = (0,)  # the arguments that the gradient reaches
    # (floats, **options) -> the formula whose constants are computed from these floats
    held: Callable[..., Any] | None = None
    of_batch: bool = False  # a sample's value depends on the others
    has_axis: bool = False  # and sums over the devices of an axis


def with_integers(function: Callable[..., Any], *integers: np.ndarray, at: int = 1) -> Callable:
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


def _pairs(f: Callable[..., float]) -> Callable[..., np.ndarray]:
    def of_all(*arrays: np.ndarray, **options: Any) -> np.ndarray:
        return np.array([f(*row, **options) for row in zip(*arrays, strict=True)])

    return of_all


def _on_labels(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda logits, *rest, **options: f(logits, LABELS, *rest, **options)


def _weights_held(expected: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """Weights are constants, though they are computed from the loss that they multiply."""

    def held(floats: list[np.ndarray], **options: Any) -> Callable[..., np.ndarray]:
        weights = expected(*floats, **options) / floats[0]
        return lambda loss, *_: weights * loss

    return held


def _hardet(*names: str) -> dict[str, Any]:
    """The formula on arrays of these names, and with the factors that a mode stops held."""

    def expected(*arrays: np.ndarray, factor_gradient: str = "through", **options: Any) -> Any:
        return reference.hardet(dict(zip(names, arrays, strict=True)), **options)

    def held(floats: list[np.ndarray], factor_gradient: str = "through", **options: Any) -> Any:
        fixed = dict(zip(names, floats, strict=True))
        return lambda *arrays: reference.hardet(
            dict(zip(names, arrays, strict=True)), fixed, factor_gradient, **options
        )

    modes = ({"factor_gradient": "stop"}, {"factor_gradient": "cls_only", "box_weight": 2.0})
    others = {"alpha": 0.7, "gamma": 0.3, "margin": 0.05, "cls_weight": 1.5, "box_weight": 0.5}
    return {
        "expected": expected,
        "held": held,
        "options": (*modes, others),
        "moves": tuple(range(len(names))),
    }


def _hardet_from_ce(*arrays: Any, **options: Any) -> Any:
    return losses.hardet_loss(*arrays[:5], factor_source="ce", cross_entropy=arrays[5], **options)


def _ciou_held(floats: list[np.ndarray]) -> Callable[..., np.ndarray]:
    weights = _pairs(reference.ciou_weight)(*floats)
    return lambda *boxes: _pairs(reference.ciou_loss)(*boxes, weights)


def _target_held(floats: list[np.ndarray], **options: Any) -> Callable[..., np.ndarray]:
    return lambda x, u: reference.ia_bce(x, LABELS, u, fixed=floats[0], **options)


def _with_default(f: Callable, **default: Any) -> Callable:
    """A function whose option has no default, with this one."""
    return lambda *arrays, **options: f(*arrays, **default | options)


_PARTS = ["cls_loss", "smooth_l1", "prob", "iou", "entropy"]
_PLAIN = {
    "harmonic_loss": Case(
        losses.harmonic_loss,
        [LOSS, LOC_LOSS],
        lambda c, l: (1 + np.exp(-l)) * c + (1 + np.exp(-c)) * l,
        moves=(0, 1),
    ),
    "task_contrastive_loss": Case(
        losses.task_contrastive_loss,
        [PROB, IOU, ENTROPY],
        lambda p, u, h, margin=0.2: np.maximum(0, np.abs(p - u) - margin) / (1 + np.exp(h)),
        ({"margin": 0.05},),
        moves=(0, 1, 2),
    ),
    "harmonic_iou_loss": Case(
        losses.harmonic_iou_loss,
        [IOU],
        reference.harmonic_iou,
        tuple({"gamma": gamma} for gamma in (0.0, 0.5, 1.0, 2.0)),
    ),
    "hardet_loss": Case(
        losses.hardet_loss, [LOSS, LOC_LOSS, PROB, IOU, ENTROPY], **_hardet(*_PARTS)
    ),
    "hardet_loss from cross entropy": Case(
        _hardet_from_ce,
        [LOSS, LOC_LOSS, PROB, IOU, ENTROPY, CROSS_ENTROPY],
        **_hardet(*_PARTS, "cross_entropy"),
    ),
    "smooth_l1_loss": Case(
        losses.smooth_l1_loss,
        [DELTAS, TARGETS],
        reference.smooth_l1,
        ({"beta": 0.11}, {"beta": 3.0}),
        moves=(0, 1),
    ),
    "mask_loss": Case(losses.mask_loss, [MASK_LOGITS, MASKS], reference.mask_loss),
    "softmax_entropy": Case(
        losses.softmax_entropy,
        [LOGITS],
        lambda x: -(reference.softmax(x) * np.log(reference.softmax(x))).sum(-1),
    ),
    "sigmoid_entropy": Case(
        losses.sigmoid_entropy,
        [LOGITS],
        np.vectorize(lambda x: reference.bce(reference.sigmoid(x), reference.sigmoid(x))),
    ),
    **{
        name: Case(getattr(losses, name), PAIRS, _pairs(formula), moves=(0, 1))
        for name, formula in {
            "aligned_iou": reference.iou,
            "iou_loss": lambda a, b: 1 - reference.iou(a, b),
            "giou_loss": reference.giou_loss,
            "diou_loss": reference.diou_loss,
            "eiou_loss": reference.eiou_loss,
        }.items()
    },
    "ciou_loss": Case(
        losses.ciou_loss, PAIRS, _pairs(reference.ciou_loss), moves=(0, 1), held=_ciou_held
    ),
    "inner_iou_loss": Case(
        _with_default(rivals.inner_iou_loss, ratio=0.7),
        PAIRS,
        _with_default(_pairs(reference.inner_iou_loss), ratio=0.7),
        ({"ratio": 1.4}, {"ratio": 1.0}),
        moves=(0, 1),
    ),
    "nwd_loss": Case(
        _with_default(rivals.nwd_loss, constant=12.8),
        PAIRS,
        _with_default(_pairs(reference.nwd_loss), constant=12.8),
        ({"constant": 40.0},),
        moves=(0, 1),
    ),
    "iou_balanced_cls_loss": Case(
        rivals.iou_balanced_cls_loss,
        [LOSS, IOU],
        reference.iou_balanced_cls,
        ({"exponent": 0.7},),
        held=_weights_held(reference.iou_balanced_cls),
        of_batch=True,
        has_axis=True,
    ),
    "iou_balanced_loc_loss": Case(
        rivals.iou_balanced_loc_loss, [LOSS, IOU], reference.iou_balanced_loc, ({"exponent": 0.7},)
    ),
    "carl_loss": Case(
        rivals.carl_loss,
        [PROB, LOSS],
        reference.carl,
        ({"exponent": 2.0, "bias": 0.0},),
        moves=(0, 1),
        of_batch=True,
        has_axis=True,
    ),
    "correlation_loss": Case(
        rivals.correlation_loss,
        [PROB, IOU],
        reference.correlation,
        ({"kind": "pearson"},),
        of_batch=True,
        has_axis=True,
    ),
}


def _isr(loss: np.ndarray, iou: np.ndarray, **options: Any) -> np.ndarray:
    return reference.isr(loss, iou, CLASSES, OBJECTS, **options)


_FOCAL = ((0.25, 0.5), (None, 1.0), (0.9, 0.0), (0.0, 3.5))
WITH_INTEGERS = {
    "softmax_cross_entropy": Case(
        with_integers(losses.softmax_cross_entropy, CLASS_LABELS),
        [LOGITS],
        lambda x: -np.log(reference.softmax(x)[np.arange(N), CLASS_LABELS]),
    ),
    "sigmoid_cross_entropy": Case(
        with_integers(losses.sigmoid_cross_entropy, LABELS),
        [LOGITS],
        lambda x: reference.focal(x, LABELS, None, 0.0),
    ),
    "sigmoid_focal_loss": Case(
        with_integers(losses.sigmoid_focal_loss, LABELS),
        [LOGITS],
        _on_labels(reference.focal),
        tuple({"alpha": alpha, "gamma": gamma} for alpha, gamma in _FOCAL),
    ),
    "quality_focal_loss": Case(
        with_integers(rivals.quality_focal_loss, LABELS),
        [LOGITS, IOU],
        _on_labels(reference.quality_focal),
        ({"beta": 0.5}, {"beta": 0.0}),
    ),
    "varifocal_loss": Case(
        with_integers(rivals.varifocal_loss, LABELS),
        [LOGITS, IOU],
        _on_labels(reference.varifocal),
        ({"alpha": 0.5, "gamma": 1.5},),
    ),
    "ia_bce_loss": Case(
        with_integers(rivals.ia_bce_loss, LABELS),
        [LOGITS, IOU],
        _on_labels(reference.ia_bce),
        ({"alpha": 0.6, "gamma": 1.5},),
        held=_target_held,
    ),
    "matchability_aware_loss": Case(
        with_integers(rivals.matchability_aware_loss, LABELS),
        [LOGITS, IOU],
        _on_labels(reference.matchability_aware),
        ({"gamma": 0.5},),
    ),
    "position_supervised_loss": Case(
        with_integers(rivals.position_supervised_loss, LABELS),
        [LOGITS, IOU],
        _on_labels(reference.position_supervised),
        ({"gamma": 1.5},),
    ),
    "task_alignment": Case(
        functools.partial(with_integers(rivals.task_alignment, OBJECTS, at=2), num_objects=8),
        [PROB, IOU],
        lambda p, u, **options: reference.task_alignment(p, u, OBJECTS, **options),
        ({"alpha": 0.5, "beta": 2.0},),
        moves=(),
        of_batch=True,
    ),
    "isr_loss": Case(
        with_integers(rivals.isr_loss, CLASSES, OBJECTS, at=2),
        [LOSS, IOU],
        _isr,
        ({"exponent": 1.0, "bias": 0.3},),
        held=_weights_held(_isr),
        of_batch=True,
    ),
}
CASES = {
    name: case._replace(call=with_integers(case.call)) for name, case in _PLAIN.items()
} | WITH_INTEGERS
