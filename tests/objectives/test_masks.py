"""What an objective does not count it does not see: rows that are ignored, not sampled, of other
classes or of images that are not real may hold NaN or infinities.

(`tests/objectives/test_rivals.py` has the same for the other losses of dense detectors.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.objectives.dense import dense_objective
from harmonic_jax.objectives.mask import mask_objective
from harmonic_jax.objectives.multibox import multibox_objective
from harmonic_jax.objectives.refinedet import refinedet_objective
from harmonic_jax.objectives.two_stage import roi_objective, rpn_objective

from harmonic_jax.config import LossConfig, MatchConfig, MultiBoxMatchConfig
from harmonic_jax.structures import Predictions
from tests.objectives import test_dense, test_multibox, test_refinedet, test_two_stage

REAL = jnp.array([True, False])
LOSS = LossConfig(box_weight=2.0)


def unmoved(gradients: Any) -> Any:
    """Rows whose gradient is exactly 0."""
    return jax.tree.map(
        lambda g: np.broadcast_to((g == 0).all(-1, keepdims=True), g.shape), gradients
    )


def of_second_image(gradients: Any) -> Any:
    return jax.tree.map(
        lambda g: np.arange(2).reshape(2, *[1] * (g.ndim - 1)) + 0 * g == 1, gradients
    )


def dense() -> tuple[Callable, Any, Callable]:
    predictions, anchors, truth = test_dense.random_case(3)

    def total(own: Predictions) -> jax.Array:
        return dense_objective(own, anchors, truth, REAL, loss=LOSS, match=MatchConfig()).total

    return total, predictions, unmoved


def multibox_free(gradients: Predictions) -> Predictions:
    """Of the logits every negative's is looked at, for the hardest are chosen."""
    return Predictions(of_second_image(gradients.cls_logits), unmoved(gradients.deltas))


def multibox() -> tuple[Callable, Any, Callable]:
    predictions, anchors, truth = test_multibox.random_case(3)

    def total(own: Predictions) -> jax.Array:
        return multibox_objective(
            own, anchors, truth, REAL, loss=LOSS, match=MultiBoxMatchConfig()
        ).total

    return total, predictions, multibox_free


def refinedet() -> tuple[Callable, Any, Callable]:
    arm, odm, anchors, truth = test_refinedet.random_modules(3)

    def total(own: tuple[Predictions, Predictions]) -> jax.Array:
        options = {"match": MultiBoxMatchConfig(), "min_objectness": 0.2}
        return refinedet_objective(*own, anchors, truth, REAL, loss=LOSS, **options).total

    return total, (arm, odm), lambda g: (of_second_image(g[0]), multibox_free(g[1]))


def roi() -> tuple[Callable, Any, Callable]:
    logits, deltas, samples = test_two_stage.roi_case(3)

    def total(own: tuple[jax.Array, jax.Array]) -> jax.Array:
        sums, _ = roi_objective(
            *own, samples, REAL, loss=LOSS, delta_weights=test_two_stage.WEIGHTS
        )
        return sums.total

    return total, (jnp.asarray(logits), jnp.asarray(deltas)), unmoved


def rpn() -> tuple[Callable, Any, Callable]:
    predictions, samples, _ = test_two_stage.rpn_case(3)

    def total(own: Predictions) -> jax.Array:
        return rpn_objective(own, samples, REAL, smooth_l1_beta=0.1).total

    return total, predictions, unmoved


def mask() -> tuple[Callable, Any, Callable]:
    _, _, samples = test_two_stage.roi_case(3)
    logits = np.random.default_rng(0).normal(size=(2, test_two_stage.S, 2, 2, test_two_stage.K))

    def total(own: jax.Array) -> jax.Array:
        return mask_objective(own, jnp.ones(own.shape[:-1]), samples, REAL).total

    # Each class by itself, as a row.
    return total, jnp.asarray(logits, jnp.float32), lambda g: g == 0


CASES = {f.__name__: f for f in (dense, multibox, refinedet, roi, rpn, mask)}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_counted_may_hold_anything(name: str) -> None:
    total, inputs, rows = CASES[name]()
    run = jax.jit(jax.value_and_grad(total))
    value, gradients = run(inputs)
    is_free = rows(gradients)
    assert all(0.4 < free.mean() < 1 for free in jax.tree.leaves(is_free))
    for fill in (np.nan, np.inf, -np.inf):
        spoilt = jax.tree.map(lambda x, free, f=fill: jnp.where(free, f, x), inputs, is_free)
        got, got_gradients = run(spoilt)
        np.testing.assert_allclose(got, value, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            got_gradients,
            gradients,
        )


@pytest.mark.parametrize("name", ["rpn", "roi", "mask"])
def test_debug_nans_finds_none(name: str) -> None:
    """Step by step, outside of jit; the others have loops of their own."""
    total, inputs, _ = CASES[name]()
    with jax.debug_nans(True):
        assert np.isfinite(total(inputs))
