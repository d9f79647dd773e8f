"""What every family minimises: against float64 loops over anchors and samples, and what it is
blind to. Losses that look at several anchors: `parts/test_rivals.py`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import config as c
from harmonic_jax.detectors.parts.objective import LossSums
from harmonic_jax.structures import Predictions
from tests.detectors import families, tiny
from tests.detectors.families import BOTH, FAMILIES, FIRST, Family
from tests.detectors.tiny import K

HARDET = c.LossConfig(box_weight=2.0)
BASELINE = c.LossConfig(hardet=False, cls_weight=1.5, box_weight=2.0, smooth_l1_beta=0.0)
OTHER = c.LossConfig(  # other constants, and factors of the cross entropy
    factor_source="ce",
    alpha=0.7,
    gamma=0.5,
    margin=0.1,
    focal_alpha=0.4,
    focal_gamma=1.5,
    smooth_l1_beta=0.3,
    cls_weight=0.5,
)


@functools.cache
def program(name: str) -> tuple[Family, Any]:
    """The family, and (inputs, truth, is real) -> ((total, sums), gradient), compiled once."""
    family = FAMILIES[name](3)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(inputs, truth, is_real):
        sums = family.sums(inputs, truth, is_real, HARDET)
        return sums.total, sums

    return family, run


def check(sums: LossSums, expected: tuple[float, float]) -> None:
    loss, num_positive = expected
    assert float(sums.num_positive) == num_positive
    np.testing.assert_allclose(sums.total * sums.scale(), loss, rtol=3e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_equals_a_loop(name: str) -> None:
    """Of two images, of the one that is real, and of images without objects."""
    family, run = program(name)
    for truth, is_real in ((family.truth, BOTH), (family.truth, FIRST), (family.without, BOTH)):
        (_, sums), gradient = run(family.inputs, truth, is_real)
        check(sums, family.loop(family.inputs, truth, is_real, HARDET))
        assert (float(sums.num_positive) >= 3) == (truth is family.truth)
        tiny.assert_all_finite(gradient)
    # Without objects, where negatives are chosen for each positive there are none.
    has_loss = name in ("retinanet", "rois", "rpn")
    assert any(np.any(leaf) for leaf in jax.tree.leaves((sums.total, gradient))) == has_loss


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_not_counted_may_hold_anything(name: str) -> None:
    """Rows that are ignored, not sampled, of other classes, of an image that is not real."""
    family, run = program(name)

    def first(inputs: Any) -> tuple[jax.Array, Any]:
        (total, _), gradient = run(inputs, family.truth, FIRST)
        return total, gradient

    value, gradients = first(family.inputs)
    is_free = family.free(gradients)
    parts = [np.asarray(free).ravel() for free in jax.tree.leaves(is_free)]
    assert all(free.mean() > 0.4 for free in parts)
    assert np.concatenate(parts).mean() < 0.98
    assert not any(np.any(leaf[1]) for leaf in jax.tree.leaves(gradients))
    for fill in (np.nan, np.inf, -np.inf):
        got, got_gradients = first(tiny.spoil(family.inputs, is_free, fill))
        np.testing.assert_allclose(got, value, rtol=1e-6)
        tiny.assert_close(got_gradients, gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (families.retinanet_family, OTHER),
        (functools.partial(families.ssd_family, ratio=1000.0), BASELINE),
        (functools.partial(families.ssd_family, ratio=0.7), OTHER),
        (families.roi_family, BASELINE),
        (families.roi_family, OTHER),
    ],
)
def test_other_losses_equal_a_loop(make: Callable[[int], Family], loss: c.LossConfig) -> None:
    """For SSD with all negatives, and with fewer than positives."""
    family = make(3)
    sums = jax.jit(lambda inputs: family.sums(inputs, family.truth, BOTH, loss))(family.inputs)
    check(sums, family.loop(family.inputs, family.truth, BOTH, loss))


def test_retinanet_without_matches_of_low_overlap() -> None:
    match = c.MatchConfig(low_quality=False)
    inputs, truth = families.retinanet_case(3)
    sums = jax.jit(
        lambda inputs: families.retinanet_sums(inputs, truth, BOTH, BASELINE, match=match)
    )(inputs)
    expected = families.retinanet_loop(inputs, truth, BOTH, BASELINE, match=match)
    check(sums, expected)
    assert 0 < expected[1] < families.retinanet_loop(inputs, truth, BOTH, BASELINE)[1]


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (families.retinanet_family, HARDET),
        (families.ssd_family, HARDET),
        (families.roi_family, dataclasses.replace(HARDET, factor_gradient="stop")),
    ],
)
def test_gradient_equals_finite_differences(make, loss: c.LossConfig) -> None:
    """Along the scale of logits and of deltas; with `stop` factors are constants, it is another.

    Boxes and anchors are float32, which steps below 1e-4 would show.
    """
    family = make(4)
    with jax.enable_x64(True):
        inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), family.inputs)
        logits, deltas = inputs if isinstance(inputs, tuple) else vars(inputs).values()

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1))
        def run(a: jax.Array, b: jax.Array) -> jax.Array:
            moved = jax.tree.map(lambda x: x * a, logits), jax.tree.map(lambda x: x * b, deltas)
            own = moved if isinstance(inputs, tuple) else Predictions(*moved)
            return family.sums(own, family.truth, BOTH, loss).total

        got, eps = np.array(run(1.0, 1.0)[1]), 1e-4
        want = np.array(
            [
                (run(1 + eps, 1.0)[0] - run(1 - eps, 1.0)[0]) / (2 * eps),
                (run(1.0, 1 + eps)[0] - run(1.0, 1 - eps)[0]) / (2 * eps),
            ]
        )
    assert np.isfinite(got).all()
    if loss.factor_gradient == "through":
        np.testing.assert_allclose(got, want, rtol=3e-4)
    else:
        assert (np.abs(got / want - 1) > 1e-3).any()


def test_means_of_positive_rois_are_logged() -> None:
    family, run = program("rois")
    (_, sums), _ = run(family.inputs, family.truth, BOTH)
    samples = family.truth
    probs = np.asarray(jax.nn.softmax(family.inputs[0]))
    own = np.take_along_axis(probs, np.asarray(samples.labels)[..., None], -1)[..., 0]
    log = sums.terms["log"].normalized()
    expected = own[np.asarray(samples.is_positive)].mean()
    np.testing.assert_allclose(log["positive_score"], expected, rtol=1e-5)
    (_, sums), _ = run(family.inputs, family.without, BOTH)
    assert {float(value) for value in sums.terms["log"].normalized().values()} == {0.0}


def test_without_their_filter_other_negatives_of_refinedet_would_be_the_hardest() -> None:
    """So that the loop above sees it work."""
    outputs, truth = families.refinedet_case(3)
    unfiltered = families.refinedet_loop(outputs, truth, BOTH, HARDET, min_objectness=0.0)[0]
    assert unfiltered > 1.005 * families.refinedet_loop(outputs, truth, BOTH, HARDET)[0]


def test_the_odms_losses_do_not_reach_the_arm() -> None:
    family, run = program("refinedet")
    # With another ODM, its losses change, and through refined anchors would their gradient.
    odm = jax.tree.map(lambda x: 3.0 * x, family.inputs.odm)
    first, second = (
        run(own, family.truth, BOTH)[1].arm
        for own in (family.inputs, family.inputs._replace(odm=odm))
    )
    tiny.assert_same(first, second)
    assert any(np.any(level) for level in first.cls_logits)
    assert any(np.any(level) for level in first.deltas)


def test_a_nan_shows_in_the_loss_of_hard_negatives() -> None:
    family, run = program("ssd")
    first, *others = family.inputs.cls_logits
    broken = Predictions((first.at[0, 3].set(jnp.nan), *others), family.inputs.deltas)
    assert np.isnan(run(broken, family.truth, BOTH)[0][0])


@pytest.mark.parametrize("name", ["ssd", "refinedet"])
def test_200_steps_on_adversarial_targets_stay_finite(name: str) -> None:
    """Empty, tiny and huge boxes and confidently wrong classes, with a rate far too high."""
    family, loss = FAMILIES[name](8), c.LossConfig(smooth_l1_beta=1.0)
    boxes = family.truth.boxes.at[0, 0].set(jnp.array([5.0, 5.0, 5.0, 5.0]))
    boxes = boxes.at[0, 1].set(jnp.array([20.0, 20.0, 20.001, 20.001]))
    boxes = boxes.at[1, 0].set(jnp.array([-1e5, -1e5, 1e5, 1e5]))
    truth = dataclasses.replace(family.truth, boxes=boxes)

    def value(inputs: Any) -> jax.Array:
        sums = family.sums(inputs, truth, BOTH, loss)
        return sums.total * sums.scale()

    def step(inputs: Any, _: None) -> tuple[Any, jax.Array]:
        loss_value, grads = jax.value_and_grad(value)(inputs)
        return jax.tree.map(lambda x, g: x - 10.0 * g, inputs, grads), loss_value

    wrong = jax.tree.map(lambda x: 20.0 * x if x.shape[-1] == K + 1 else x, family.inputs)
    last, values = jax.jit(lambda start: jax.lax.scan(step, start, None, length=200))(wrong)
    tiny.assert_all_finite((last, values))
