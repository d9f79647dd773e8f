"""Samples of anchors and RoIs, against slow loops over pairs of boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.assign.sampled import sample_anchors, sample_rois

from harmonic_jax.structures import GroundTruth

roi_samples = jax.jit(
    sample_rois,
    static_argnames=(
        "num_classes", "positive_iou", "negative_iou", "low_quality", "num_samples",
        "positive_fraction",
    ),
)  # fmt: skip
NUM_CLASSES = 4
ROIS = {
    "num_classes": NUM_CLASSES,
    "positive_iou": 0.5,
    "negative_iou": 0.5,
    "low_quality": False,
    "num_samples": 40,
    "positive_fraction": 0.25,
}
ANCHORS = {
    "positive_iou": 0.7,
    "negative_iou": 0.3,
    "low_quality": True,
    "num_samples": 32,
    "positive_fraction": 0.5,
}


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 40, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 30, (count, 2))], -1).astype(np.float32)


def truth(rng: np.random.Generator, num_valid: int, size: int = 5) -> GroundTruth:
    valid = np.arange(size) < num_valid
    boxes = np.where(valid[:, None], random_boxes(rng, size), np.nan)
    labels = rng.integers(0, NUM_CLASSES, size)
    return GroundTruth(jnp.asarray(boxes), jnp.asarray(labels, jnp.int32), jnp.asarray(valid))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    overlap = float(np.prod(sides.astype(np.float64)))
    areas = sum(float(np.prod((c[2:] - c[:2]).astype(np.float64))) for c in (a, b))
    return overlap / (areas - overlap)


@pytest.mark.parametrize("num_valid", [0, 1, 4])
def test_rois_have_the_label_and_box_of_their_object(num_valid: int) -> None:
    rng = np.random.default_rng(num_valid)
    objects = truth(rng, num_valid)
    real = np.asarray(objects.boxes)[:num_valid]
    near = real.repeat(8, 0) + rng.uniform(-4, 4, (8 * num_valid, 4)).astype(np.float32)
    boxes = np.concatenate([random_boxes(rng, 30), near])
    exists = rng.uniform(size=len(boxes)) < 0.8
    boxes[~exists] = np.nan
    rois = roi_samples(jax.random.key(1), boxes, exists, objects, **ROIS)
    rois = jax.tree.map(np.asarray, rois)
    every = [*boxes[exists], *real]
    num_positive = sum(max([iou(a, b) for b in real] or [0.0]) >= 0.5 for a in every)
    assert rois.is_positive.sum() == min(num_positive, 10)
    num_negative = min(len(every) - num_positive, 40 - min(num_positive, 10))
    assert rois.valid.sum() - rois.is_positive.sum() == num_negative
    candidates = {tuple(box) for box in every}
    for i in range(40):
        if not rois.valid[i]:
            np.testing.assert_array_equal(rois.boxes[i], np.zeros(4))
            assert rois.labels[i] == NUM_CLASSES
            continue
        assert tuple(rois.boxes[i]) in candidates
        table = [iou(rois.boxes[i], box) for box in real] or [0.0]
        assert rois.is_positive[i] == (max(table) >= 0.5)
        if rois.is_positive[i]:
            best = int(np.argmax(table))
            assert rois.objects[i] == best
            assert rois.labels[i] == objects.labels[best]
            np.testing.assert_array_equal(rois.targets[i], real[best])
        else:
            assert rois.labels[i] == NUM_CLASSES
            np.testing.assert_array_equal(rois.targets[i], rois.boxes[i])


def test_objects_are_proposals_too() -> None:
    objects = truth(np.random.default_rng(0), 4)
    nothing = np.zeros((6, 4), np.float32)
    rois = roi_samples(jax.random.key(0), nothing, np.zeros(6, bool), objects, **ROIS)
    drawn = {tuple(box) for box in np.asarray(rois.boxes)[np.asarray(rois.valid)].tolist()}
    assert drawn == {tuple(box) for box in np.asarray(objects.boxes)[:4].tolist()}
    assert np.asarray(rois.is_positive).sum() == 4


@pytest.mark.parametrize("num_valid", [0, 1, 4])
def test_anchors_are_sampled_over_all_levels(num_valid: int) -> None:
    rng = np.random.default_rng(num_valid)
    objects = truth(rng, num_valid)
    levels = [random_boxes(rng, 50), random_boxes(rng, 30)]
    every = np.concatenate(levels)
    samples = sample_anchors(jax.random.key(2), levels, objects, **ANCHORS)
    samples = jax.tree.map(np.asarray, samples)
    table = np.array([[iou(a, b) for b in np.asarray(objects.boxes)[:num_valid]] for a in every])
    table = table.reshape(len(every), num_valid)
    best = table.max(1, initial=0.0)
    positive = best >= 0.7
    for column in table.T:
        positive |= column == column.max()
    assert samples.valid.all()
    assert samples.is_positive.sum() == min(16, positive.sum())
    assert len(set(samples.rows.tolist())) == 32
    np.testing.assert_array_equal(samples.anchors, every[samples.rows])
    np.testing.assert_array_equal(samples.is_positive, positive[samples.rows])
    assert (best[samples.rows[~samples.is_positive]] < 0.3).all()
    for row, target in zip(samples.rows, samples.targets, strict=True):
        expected = objects.boxes[int(table[row].argmax())] if positive[row] else every[row]
        np.testing.assert_array_equal(target, expected)


def test_vmapped_samples_equal_a_loop() -> None:
    rng = np.random.default_rng(5)
    truths = [truth(rng, n) for n in (0, 2, 5)]
    boxes = np.stack([random_boxes(rng, 25) for _ in truths])
    exists = np.ones((3, 25), bool)
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *truths)
    levels = [random_boxes(rng, 40)]

    def both(key, boxes, exists, objects):
        return (
            sample_rois(key, boxes, exists, objects, **ROIS),
            sample_anchors(key, levels, objects, **ANCHORS),
        )

    together = jax.jit(jax.vmap(both))(keys, boxes, exists, stacked)
    one_image = jax.jit(both)
    for i, objects in enumerate(truths):
        alone = one_image(keys[i], boxes[i], exists[i], objects)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a, b[i]), alone, together)
