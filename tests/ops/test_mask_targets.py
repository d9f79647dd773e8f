"""Masks of objects cut to boxes, against a slow loop over samples."""

import math

import jax
import numpy as np
import pytest

from harmonic_jax.ops.mask_targets import crop_masks

crop = jax.jit(crop_masks, static_argnames=("size", "sampling_ratio"))


def reference(grid: np.ndarray, frame: np.ndarray, box: np.ndarray, size: int, ratio: int):
    """The mean of bilinear samples of a grid that is surrounded by zeros, in float64."""
    m = len(grid)
    padded = np.zeros((m + 2, m + 2))
    padded[1:-1, 1:-1] = grid / 255

    def sample(x: float, y: float) -> float:
        u = (x - frame[0]) / (frame[2] - frame[0]) * m + 0.5  # 1 is the first cell's center
        v = (y - frame[1]) / (frame[3] - frame[1]) * m + 0.5
        i, j = math.floor(v), math.floor(u)
        if not (0 <= i <= m and 0 <= j <= m):
            return 0.0
        a, b = v - i, u - j
        top = (1 - b) * padded[i, j] + b * padded[i, j + 1]
        bottom = (1 - b) * padded[i + 1, j] + b * padded[i + 1, j + 1]
        return (1 - a) * top + a * bottom

    steps = (np.arange(size * ratio) + 0.5) / (size * ratio)
    xs, ys = box[0] + steps * (box[2] - box[0]), box[1] + steps * (box[3] - box[1])
    fine = np.array([[sample(x, y) for x in xs] for y in ys])
    return fine.reshape(size, ratio, size, ratio).mean((1, 3))


@pytest.mark.parametrize("ratio", [1, 2])
def test_equals_a_loop_over_samples(ratio: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (3, 12, 12), dtype=np.uint8)
    corner = rng.uniform(-20, 40, (3, 2))
    frames = np.concatenate([corner, corner + rng.uniform(5, 60, (3, 2))], -1).astype(np.float32)
    objects = rng.integers(0, 3, 20)
    boxes = (frames[objects] + rng.uniform(-15, 15, (20, 4))).astype(np.float32)
    got = crop(values, frames, objects, boxes, size=7, sampling_ratio=ratio)
    want = np.stack(
        [
            reference(values[g], frames[g].astype(np.float64), box, 7, ratio)
            for g, box in zip(objects, boxes.astype(np.float64), strict=True)
        ]
    )
    assert want.std() > 0.1
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_the_frame_itself_gives_the_grid_back() -> None:
    values = np.random.default_rng(0).integers(0, 256, (1, 14, 14), dtype=np.uint8)
    frames = np.array([[3.0, -5.0, 80.0, 40.0]], np.float32)
    got = crop(values, frames, np.array([0]), frames, size=14, sampling_ratio=1)
    np.testing.assert_allclose(got[0], values[0] / 255, atol=1e-5)


def test_a_full_mask_ends_where_its_frame_ends() -> None:
    """At a threshold of one half; the box reaches out by half of the frame on every side."""
    values = np.full((1, 56, 56), 255, np.uint8)
    frames = np.array([[10.0, 20.0, 30.0, 50.0]], np.float32)
    box = np.array([[0.0, 5.0, 40.0, 65.0]], np.float32)
    inside = np.zeros(28, bool)
    inside[7:21] = True
    got = np.asarray(crop(values, frames, np.array([0]), box, size=28)[0]) >= 0.5
    np.testing.assert_array_equal(got, inside[:, None] & inside[None, :])


def test_no_frame_no_mask() -> None:
    """What padding may hold: frames without an area or of NaN."""
    values = np.full((3, 8, 8), 255, np.uint8)
    frames = np.array([[0, 0, 0, 0], [np.nan] * 4, [5, 5, 1, 1]], np.float32)
    boxes = np.array([[0, 0, 9, 9], [0, 0, 0, 0], [0, 0, 9, 9]], np.float32)
    got = np.asarray(crop(values, frames, np.arange(3), boxes, size=4))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[:2], np.zeros((2, 4, 4)))


def test_a_target_has_no_gradient() -> None:
    """Where the frame is empty it would not be finite."""
    values = np.full((2, 4, 4), 255, np.uint8)
    frames = np.array([[0, 0, 0, 0], [0, 0, 8, 8]], np.float32)

    def total(frames: jax.Array, boxes: jax.Array) -> jax.Array:
        return crop_masks(values, frames, np.array([0, 1]), boxes, size=2).sum()

    for gradient in jax.grad(total, (0, 1))(frames, frames):
        np.testing.assert_array_equal(gradient, np.zeros((2, 4)))
