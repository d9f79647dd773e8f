"""RefineDet's objective against a slow float64 loop; what is a constant of what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.objectives.refinedet import refinedet_objective

from harmonic_jax.config import LossConfig, MultiBoxMatchConfig
from harmonic_jax.structures import GroundTruth, Predictions
from tests.objectives.multibox_reference import decode, image_loss, softmax
from tests.objectives.test_multibox import random_case

MATCH = MultiBoxMatchConfig()
# High, so that many of the random anchors fall below it.
MIN_OBJECTNESS = 0.2


def random_modules(seed: int) -> tuple[Predictions, Predictions, tuple, GroundTruth]:
    odm, anchors, truth = random_case(seed)
    rng = np.random.default_rng(seed + 100)

    def draw(scale: float, outputs: int) -> tuple:
        return tuple(
            jnp.asarray(rng.normal(0, scale, (2, len(a), outputs)), jnp.float32) for a in anchors
        )

    return Predictions(draw(1.5, 2), draw(1.0, 4)), odm, anchors, truth


def of_image(levels: tuple, image: int) -> np.ndarray:
    return np.concatenate([level[image] for level in levels]).astype(np.float64)


def reference(
    arm: Predictions,
    odm: Predictions,
    anchors: tuple,
    truth: GroundTruth,
    loss: LossConfig,
    images: tuple[int, ...],
) -> tuple[float, int]:
    """The loss, and the number of the ODM's positives."""
    sums = np.zeros(4)
    flat = np.concatenate(anchors).astype(np.float64)
    for image in images:
        keep = np.asarray(truth.valid[image])
        boxes = np.asarray(truth.boxes[image], np.float64)[keep]
        labels = np.asarray(truth.labels[image])[keep]
        arm_logits, arm_deltas = of_image(arm.cls_logits, image), of_image(arm.deltas, image)
        plain = dataclasses.replace(loss, hardet=False)
        first = image_loss(arm_logits, arm_deltas, flat, boxes, 0 * labels, plain)
        second = image_loss(
            of_image(odm.cls_logits, image),
            of_image(odm.deltas, image),
            np.array([decode(d, a) for d, a in zip(arm_deltas, flat, strict=True)]),
            boxes,
            labels,
            loss,
            objectness=np.array([softmax(row)[0] for row in arm_logits]),
            min_objectness=MIN_OBJECTNESS,
        )
        sums += np.array([*first, *second])
    return sums[0] / sums[1] + sums[2] / sums[3], int(sums[3])


@pytest.mark.parametrize(
    "loss",
    [LossConfig(smooth_l1_beta=1.0), LossConfig(hardet=False, smooth_l1_beta=1.0)],
    ids=["hardet", "baseline"],
)
def test_equals_a_loop_over_anchors(loss: LossConfig) -> None:
    arm, odm, anchors, truth = random_modules(seed=3)

    @jax.jit
    def objective(is_real: jax.Array) -> object:
        return refinedet_objective(
            arm,
            odm,
            anchors,
            truth,
            is_real,
            loss=loss,
            match=MATCH,
            min_objectness=MIN_OBJECTNESS,
        )

    for is_real, images in (([True, True], (0, 1)), ([False, True], (1,))):
        got = objective(jnp.array(is_real))
        want, num_positive = reference(arm, odm, anchors, truth, loss, images)
        assert int(got.num_positive) == num_positive >= 3
        assert int(got.normalizer) == len(images)
        np.testing.assert_allclose(got.normalized()["loss"], want, rtol=3e-5)


def test_the_filter_of_negatives_matters() -> None:
    """Without it, other negatives would be the hardest: the reference above sees it work."""
    arm, odm, anchors, truth = random_modules(seed=3)
    objective = functools.partial(
        refinedet_objective,
        arm,
        odm,
        anchors,
        truth,
        jnp.ones(2, bool),
        loss=LossConfig(),
        match=MATCH,
    )
    values = [
        float(jax.jit(lambda m=m: objective(min_objectness=m))().total)
        for m in (0.0, MIN_OBJECTNESS)
    ]
    assert values[0] > values[1] * 1.02


def test_the_odms_losses_do_not_reach_the_arm() -> None:
    arm, odm, anchors, truth = random_modules(seed=4)

    def total(arm: Predictions, odm_scale: float) -> jax.Array:
        # With another ODM, its losses change, and through refined anchors would their gradient.
        scaled = jax.tree.map(lambda x: odm_scale * x, odm)
        return refinedet_objective(
            arm,
            scaled,
            anchors,
            truth,
            jnp.ones(2, bool),
            loss=LossConfig(),
            match=MATCH,
            min_objectness=MIN_OBJECTNESS,
        ).total

    gradient = jax.jit(jax.grad(total))
    first, second = gradient(arm, 1.0), gradient(arm, 3.0)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert all(np.any(level) for level in (*first.cls_logits, *first.deltas))


def test_images_without_objects_cost_nothing() -> None:
    arm, odm, anchors, truth = random_modules(seed=5)
    empty = dataclasses.replace(truth, valid=jnp.zeros_like(truth.valid))

    def loss(arm: Predictions, odm: Predictions) -> jax.Array:
        sums = refinedet_objective(
            arm,
            odm,
            anchors,
            empty,
            jnp.ones(2, bool),
            loss=LossConfig(),
            match=MATCH,
            min_objectness=0.01,
        )
        return sums.total * sums.scale()

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(arm, odm)
    assert float(value) == 0
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, np.zeros(g.shape)), grads)


@pytest.mark.parametrize(
    "mode",
    ["through", *(pytest.param(m, marks=pytest.mark.slow) for m in ("stop", "cls_only"))],
)
def test_200_steps_on_adversarial_targets_stay_finite(mode: str) -> None:
    """Tiny and huge boxes and confidently wrong classes, with a rate far too high."""
    arm, odm, anchors, truth = random_modules(seed=8)
    boxes = truth.boxes.at[0, 0].set(jnp.array([5.0, 5.0, 5.0, 5.0]))
    boxes = boxes.at[0, 1].set(jnp.array([20.0, 20.0, 20.001, 20.001]))
    boxes = boxes.at[1, 0].set(jnp.array([-1e5, -1e5, 1e5, 1e5]))
    truth = dataclasses.replace(truth, boxes=boxes)
    odm = dataclasses.replace(odm, cls_logits=tuple(20 * x for x in odm.cls_logits))
    loss = LossConfig(smooth_l1_beta=1.0, factor_gradient=mode)

    def value(modules: tuple[Predictions, Predictions]) -> jax.Array:
        sums = refinedet_objective(
            *modules,
            anchors,
            truth,
            jnp.ones(2, bool),
            loss=loss,
            match=MATCH,
            min_objectness=0.01,
        )
        return sums.total * sums.scale()

    def step(modules: tuple, _: None) -> tuple[tuple, jax.Array]:
        loss_value, grads = jax.value_and_grad(value)(modules)
        return jax.tree.map(lambda x, g: x - 10.0 * g, modules, grads), loss_value

    final, values = jax.jit(lambda start: jax.lax.scan(step, start, None, length=200))((arm, odm))
    assert np.isfinite(values).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final))
