"""The whole objective against a slow float64 loop over anchors, written from the formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.objectives.dense import dense_objective

from harmonic_jax.config import LossConfig, MatchConfig
from harmonic_jax.structures import GroundTruth, Predictions

NUM_CLASSES = 3
objective = jax.jit(dense_objective, static_argnames=("loss", "match"))


def random_case(seed: int, batch: int = 2):
    """Two levels of anchors, a few objects, and predictions near enough to overlap them."""
    rng = np.random.default_rng(seed)
    levels = []
    for count, size in ((60, 18.0), (60, 26.0)):
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
    predictions = Predictions(
        tuple(
            jnp.asarray(rng.normal(-1, 2, (batch, len(a), NUM_CLASSES)), jnp.float32)
            for a in levels
        ),
        tuple(jnp.asarray(rng.normal(0, 0.3, (batch, len(a), 4)), jnp.float32) for a in levels),
    )
    return predictions, tuple(levels), truth


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0.0) * max(h, 0.0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inter / (area - inter)


def assign(anchors: np.ndarray, boxes: np.ndarray, match: MatchConfig) -> list[int | None]:
    """For each anchor the index of its box, -1 for background, None for ignored."""
    table = np.array([[iou(a, b) for b in boxes] for a in anchors])
    result: list[int | None] = []
    for row in table:
        best = int(row.argmax())
        if row[best] >= match.positive_iou:
            result.append(best)
        else:
            result.append(None if row[best] >= match.negative_iou else -1)
    if match.low_quality:
        for column in range(len(boxes)):
            for n in np.flatnonzero(table[:, column] == table[:, column].max()):
                result[n] = int(table[n].argmax())
    return result


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def focal(logits: np.ndarray, label: int, loss: LossConfig) -> float:
    total = 0.0
    for k, x in enumerate(logits):
        p = sigmoid(x) if k == label else 1 - sigmoid(x)
        a = loss.focal_alpha if k == label else 1 - loss.focal_alpha
        total += -a * (1 - p) ** loss.focal_gamma * math.log(p)
    return total


def positive_terms(logits, label, deltas, anchor, box, loss: LossConfig) -> float:
    size = anchor[2:] - anchor[:2]
    centre = anchor[:2] + size / 2
    want = np.concatenate(
        [((box[:2] + box[2:]) / 2 - centre) / size, np.log((box[2:] - box[:2]) / size)]
    )
    beta = loss.smooth_l1_beta
    smooth = sum(d * d / 2 / beta if d < beta else d - beta / 2 for d in np.abs(deltas - want))
    cls = focal(logits, label, loss)
    if not loss.hardet:
        return cls + loss.box_weight * smooth
    new_centre, new_size = centre + deltas[:2] * size, size * np.exp(deltas[2:])
    decoded = np.concatenate([new_centre - new_size / 2, new_centre + new_size / 2])
    u, p = iou(decoded, box), sigmoid(logits[label])
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    hiou = loss.alpha * (1 + u) ** loss.gamma * (1 - u)
    loc = loss.box_weight * smooth + hiou  # but the factor is of the unweighted loss
    contrast = max(0.0, abs(p - u) - loss.margin) / (1 + math.exp(entropy))
    source = cls if loss.factor_source == "loss" else -math.log(p)
    return (1 + math.exp(-smooth - hiou)) * cls + (1 + math.exp(-source)) * loc + contrast


def reference(predictions, anchors, truth, loss, match) -> tuple[float, int]:
    total, num_positive = 0.0, 0
    all_anchors = np.concatenate(anchors).astype(np.float64)
    for image in range(len(truth.valid)):
        keep = np.asarray(truth.valid[image])
        boxes = np.asarray(truth.boxes[image], np.float64)[keep]
        labels = np.asarray(truth.labels[image])[keep]
        logits = np.concatenate([level[image] for level in predictions.cls_logits])
        deltas = np.concatenate([level[image] for level in predictions.deltas])
        for n, box_index in enumerate(assign(all_anchors, boxes, match)):
            if box_index is None:
                continue
            if box_index < 0:
                total += focal(logits[n].astype(np.float64), -1, loss)
                continue
            num_positive += 1
            total += positive_terms(
                logits[n].astype(np.float64),
                labels[box_index],
                deltas[n].astype(np.float64),
                all_anchors[n],
                boxes[box_index],
                loss,
            )
    return total, num_positive


LOSSES = {
    "baseline": LossConfig(hardet=False),
    "hardet": LossConfig(),
    "ce factors": LossConfig(factor_source="ce"),
    "other constants": LossConfig(
        alpha=0.7, gamma=0.5, margin=0.1, focal_alpha=0.4, focal_gamma=1.5, box_weight=2.0
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("low_quality", [True, False])
def test_equals_a_loop_over_anchors(loss: LossConfig, low_quality: bool) -> None:
    match = MatchConfig(low_quality=low_quality)
    predictions, anchors, truth = random_case(seed=3)
    got = objective(predictions, anchors, truth, jnp.ones(2, bool), loss=loss, match=match)
    want, num_positive = reference(predictions, anchors, truth, loss, match)
    assert num_positive > 5
    assert int(got.num_positive) == num_positive
    np.testing.assert_allclose(got.total, want, rtol=2e-5)
    np.testing.assert_allclose(got.normalized()["loss"], want / num_positive, rtol=2e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_gradient_equals_finite_differences(loss: LossConfig) -> None:
    predictions, anchors, truth = random_case(seed=4)

    def total(scale_logits, scale_deltas):
        moved = Predictions(
            tuple(x * scale_logits for x in predictions.cls_logits),
            tuple(x * scale_deltas for x in predictions.deltas),
        )
        return objective(
            moved, anchors, truth, jnp.ones(2, bool), loss=loss, match=MatchConfig()
        ).total

    with jax.enable_x64(True):
        predictions = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), predictions)
        got = jax.grad(total, argnums=(0, 1))(1.0, 1.0)
        eps = 1e-4  # the boxes and anchors are float32, which smaller steps would show
        want = (
            (total(1 + eps, 1.0) - total(1 - eps, 1.0)) / (2 * eps),
            (total(1.0, 1 + eps) - total(1.0, 1 - eps)) / (2 * eps),
        )
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_an_image_that_is_not_real_counts_nowhere() -> None:
    predictions, anchors, truth = random_case(seed=5)
    settings = {"loss": LossConfig(), "match": MatchConfig()}
    first = jax.tree.map(lambda x: x[:1], (predictions, truth))
    alone = objective(first[0], anchors, first[1], jnp.ones(1, bool), **settings)
    masked = objective(predictions, anchors, truth, jnp.array([True, False]), **settings)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, masked)

    def total(logits):
        replaced = dataclasses.replace(predictions, cls_logits=logits)
        mask = jnp.array([True, False])
        return objective(replaced, anchors, truth, mask, **settings).total

    grads = jax.grad(total)(predictions.cls_logits)
    assert all(not np.any(level[1]) and np.any(level[0]) for level in grads)


def test_images_without_objects_train_as_background() -> None:
    predictions, anchors, truth = random_case(seed=6)
    empty = dataclasses.replace(truth, valid=jnp.zeros_like(truth.valid))
    got = objective(
        predictions, anchors, empty, jnp.ones(2, bool), loss=LossConfig(), match=MatchConfig()
    )
    want = sum(
        focal(row.astype(np.float64), -1, LossConfig())
        for level in predictions.cls_logits
        for row in np.asarray(level).reshape(-1, NUM_CLASSES)
    )
    assert float(got.num_positive) == 0
    np.testing.assert_allclose(got.total, want, rtol=2e-5)
    np.testing.assert_allclose(got.normalized()["loss"], want, rtol=2e-5)
