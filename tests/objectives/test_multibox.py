"""SSD's objective against a slow float64 loop, and the choice of negatives by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.objectives.multibox import hardest, multibox_objective

from harmonic_jax.config import LossConfig, MultiBoxMatchConfig
from harmonic_jax.structures import GroundTruth, Predictions
from tests.objectives.multibox_reference import image_loss

NUM_CLASSES = 3
MATCH = MultiBoxMatchConfig()
objective = jax.jit(multibox_objective, static_argnames=("loss", "match"))


def random_case(seed: int, batch: int = 2) -> tuple:
    """Two levels of anchors, a few objects, and predictions near enough to overlap them."""
    rng = np.random.default_rng(seed)
    levels = []
    for count, size in ((60, 18.0), (40, 26.0)):
        centre = rng.uniform(10, 54, (count, 2))
        half = size / 2 * rng.uniform(0.7, 1.4, (count, 2))
        levels.append(np.concatenate([centre - half, centre + half], -1).astype(np.float32))
    corner = rng.uniform(0, 30, (batch, 5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 34, (batch, 5, 2))], -1)
    valid = np.arange(5) < np.array([[4], [2]])[:batch]
    truth = GroundTruth(
        jnp.asarray(np.where(valid[..., None], boxes, np.nan), jnp.float32),
        jnp.asarray(rng.integers(0, NUM_CLASSES, (batch, 5)), jnp.int32),
        jnp.asarray(valid),
    )

    def draw(scale: float, outputs: int) -> tuple:
        return tuple(
            jnp.asarray(rng.normal(0, scale, (batch, len(a), outputs)), jnp.float32) for a in levels
        )

    return Predictions(draw(2.0, NUM_CLASSES + 1), draw(1.5, 4)), tuple(levels), truth


LOSSES = {
    "baseline": LossConfig(hardet=False, smooth_l1_beta=1.0),
    "hardet": LossConfig(smooth_l1_beta=1.0),
    "ce factors": LossConfig(factor_source="ce", smooth_l1_beta=1.0),
    "other constants": LossConfig(
        alpha=0.7, gamma=0.5, margin=0.1, smooth_l1_beta=0.3, box_weight=2.0
    ),
}


@pytest.mark.parametrize(
    ("name", "ratio"),
    [*((name, 3.0) for name in LOSSES), ("hardet", 0.7), ("baseline", 1000.0)],
)
def test_equals_a_loop_over_anchors(name: str, ratio: float) -> None:
    loss = LOSSES[name]
    predictions, anchors, truth = random_case(seed=3)
    got = objective(
        predictions,
        anchors,
        truth,
        jnp.ones(2, bool),
        loss=loss,
        match=MultiBoxMatchConfig(negative_ratio=ratio),
    )
    want, num_positive = 0.0, 0
    for image in range(2):
        keep = np.asarray(truth.valid[image])
        total, count = image_loss(
            np.concatenate([x[image] for x in predictions.cls_logits]).astype(np.float64),
            np.concatenate([x[image] for x in predictions.deltas]).astype(np.float64),
            np.concatenate(anchors).astype(np.float64),
            np.asarray(truth.boxes[image], np.float64)[keep],
            np.asarray(truth.labels[image])[keep],
            loss,
            ratio=ratio,
        )
        want, num_positive = want + total, num_positive + count
    assert num_positive > 5
    assert int(got.num_positive) == int(got.normalizer) == num_positive
    np.testing.assert_allclose(got.total, want, rtol=2e-5)
    np.testing.assert_allclose(got.normalized()["loss"], want / num_positive, rtol=2e-5)


@pytest.mark.parametrize("name", ["baseline", "hardet"])
def test_gradient_equals_finite_differences(name: str) -> None:
    loss = LOSSES[name]
    predictions, anchors, truth = random_case(seed=4)

    def total(scale_logits: jax.Array, scale_deltas: jax.Array) -> jax.Array:
        moved = Predictions(
            tuple(x * scale_logits for x in predictions.cls_logits),
            tuple(x * scale_deltas for x in predictions.deltas),
        )
        return multibox_objective(
            moved, anchors, truth, jnp.ones(2, bool), loss=loss, match=MATCH
        ).total

    with jax.enable_x64(True):
        predictions = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), predictions)
        got = jax.jit(jax.grad(total, argnums=(0, 1)))(1.0, 1.0)
        value = jax.jit(total)
        eps = 1e-4  # boxes and anchors are float32, which smaller steps would show
        want = (
            (value(1 + eps, 1.0) - value(1 - eps, 1.0)) / (2 * eps),
            (value(1.0, 1 + eps) - value(1.0, 1 - eps)) / (2 * eps),
        )
    np.testing.assert_allclose(got, want, rtol=2e-4)


def test_an_image_that_is_not_real_counts_nowhere() -> None:
    predictions, anchors, truth = random_case(seed=5)
    settings = {"loss": LossConfig(), "match": MATCH}
    first = jax.tree.map(lambda x: x[:1], (predictions, truth))
    alone = objective(first[0], anchors, first[1], jnp.ones(1, bool), **settings)
    mask = jnp.array([True, False])
    masked = objective(predictions, anchors, truth, mask, **settings)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, masked)

    def total(logits: tuple) -> jax.Array:
        replaced = dataclasses.replace(predictions, cls_logits=logits)
        return multibox_objective(replaced, anchors, truth, mask, **settings).total

    grads = jax.jit(jax.grad(total))(predictions.cls_logits)
    assert all(not np.any(level[1]) and np.any(level[0]) for level in grads)


def test_images_without_objects_cost_nothing() -> None:
    predictions, anchors, truth = random_case(seed=6)
    empty = dataclasses.replace(truth, valid=jnp.zeros_like(truth.valid))

    def total(predictions: Predictions) -> jax.Array:
        sums = multibox_objective(
            predictions, anchors, empty, jnp.ones(2, bool), loss=LossConfig(), match=MATCH
        )
        return sums.total * sums.scale()

    value, grads = jax.jit(jax.value_and_grad(total))(predictions)
    assert float(value) == 0
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, np.zeros(g.shape)), grads)


def test_a_nan_shows_in_the_loss() -> None:
    predictions, anchors, truth = random_case(seed=7)
    broken = predictions.cls_logits[0].at[0, 3].set(jnp.nan)
    broken = dataclasses.replace(predictions, cls_logits=(broken, predictions.cls_logits[1]))
    sums = objective(broken, anchors, truth, jnp.ones(2, bool), loss=LossConfig(), match=MATCH)
    assert np.isnan(sums.total)


@pytest.mark.parametrize("num_values", [2, 5, 1000], ids=["many ties", "ties", "distinct"])
def test_hardest_takes_exactly_the_number_first_among_equals(num_values: int) -> None:
    rng = np.random.default_rng(num_values)
    loss = rng.integers(0, num_values, (6, 50)).astype(np.float32)
    is_candidate = rng.random((6, 50)) < 0.7
    is_candidate[4] = False
    num_positive = np.array([0, 1, 5, 40, 3, 16])
    taken = np.asarray(
        jax.jit(hardest, static_argnames="ratio")(loss, is_candidate, num_positive, ratio=3.0)
    )
    for row in range(6):
        candidates = np.flatnonzero(is_candidate[row])
        # A stable sort: among equal losses the lower index comes first.
        order = candidates[np.argsort(-loss[row, candidates], kind="stable")]
        expected = np.zeros(50, bool)
        expected[order[: 3 * num_positive[row]]] = True
        np.testing.assert_array_equal(taken[row], expected)
    assert taken.sum(1)[3] == is_candidate[3].sum()  # fewer than 120


def test_hardest_takes_infinite_losses_and_only_candidates() -> None:
    loss = np.array([[1.0, np.inf, np.nan, 3.0, np.inf]], np.float32)
    is_candidate = np.array([[True, True, True, True, False]])
    taken = hardest(loss, is_candidate, np.array([1]), ratio=2.0)
    assert taken.tolist() == [[False, True, True, False, False]]


@pytest.mark.parametrize(
    "mode", ["through", "stop", pytest.param("cls_only", marks=pytest.mark.slow)]
)
def test_200_steps_on_adversarial_targets_stay_finite(mode: str) -> None:
    """Tiny and huge boxes and confidently wrong classes, with a rate far too high."""
    predictions, anchors, truth = random_case(seed=8)
    boxes = truth.boxes.at[0, 0].set(jnp.array([5.0, 5.0, 5.0, 5.0]))
    boxes = boxes.at[0, 1].set(jnp.array([20.0, 20.0, 20.001, 20.001]))
    boxes = boxes.at[1, 0].set(jnp.array([-1e5, -1e5, 1e5, 1e5]))
    truth = dataclasses.replace(truth, boxes=boxes)
    predictions = dataclasses.replace(
        predictions, cls_logits=tuple(20 * x for x in predictions.cls_logits)
    )
    loss = LossConfig(smooth_l1_beta=1.0, factor_gradient=mode)

    def value(predictions: Predictions) -> jax.Array:
        sums = multibox_objective(
            predictions, anchors, truth, jnp.ones(2, bool), loss=loss, match=MATCH
        )
        return sums.total * sums.scale()

    def step(predictions: Predictions, _: None) -> tuple[Predictions, jax.Array]:
        loss_value, grads = jax.value_and_grad(value)(predictions)
        return jax.tree.map(lambda x, g: x - 10.0 * g, predictions, grads), loss_value

    final, values = jax.jit(lambda start: jax.lax.scan(step, start, None, length=200))(predictions)
    assert np.isfinite(values).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final))
