"""Deformable attention against float64 loops and torch's grid_sample, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from harmonic_jax.ops.deformable_attention import deformable_attention

SIZES, HEADS, CHANNELS, QUERIES, POINTS = ((5, 7), (3, 2)), 2, 3, 4, 3


def inputs(seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    levels = [rng.normal(size=(*size, HEADS, CHANNELS)) for size in SIZES]
    shape = (QUERIES, HEADS, len(SIZES), POINTS)
    return levels, rng.uniform(-0.2, 1.2, (*shape, 2)), rng.normal(size=shape)


def loop(levels: list[np.ndarray], points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    result = np.zeros((QUERIES, HEADS, CHANNELS))
    for q, m, level, p in np.ndindex(weights.shape):
        values = levels[level][:, :, m]
        height, width = values.shape[:2]
        x, y = points[q, m, level, p] * (width, height) - 0.5
        for row, column in np.ndindex(height, width):
            share = max(1 - abs(x - column), 0) * max(1 - abs(y - row), 0)
            result[q, m] += weights[q, m, level, p] * share * values[row, column]
    return result


def test_equals_a_loop() -> None:
    levels, points, weights = inputs(0)
    points[0, 0, 0, 0] = (0.5 / 7, 4.5 / 5)  # a cell itself, in the last row
    points[0, 0, 0, 1] = (9.0, -9.0)  # far outside
    found = deformable_attention(levels, points, weights)
    np.testing.assert_allclose(found, loop(levels, points, weights), atol=2e-6)
    halves = [jnp.asarray(level, jnp.bfloat16) for level in levels]
    exact = [np.asarray(level, np.float64) for level in halves]
    found = deformable_attention(halves, points, weights)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loop(exact, points, weights), atol=2e-6)


def test_equals_grid_sample() -> None:
    torch = pytest.importorskip("torch")
    levels, points, weights = inputs(1)
    total = np.zeros((QUERIES, HEADS, CHANNELS))
    for i, level in enumerate(levels):
        maps = torch.tensor(level.transpose(2, 3, 0, 1))  # heads, channels, rows, columns
        grid = torch.tensor(2 * points[:, :, i].transpose(1, 0, 2, 3) - 1)
        read = torch.nn.functional.grid_sample(maps, grid, align_corners=False).numpy()
        total += np.einsum("mcqp,qmp->qmc", read, weights[:, :, i])
    np.testing.assert_allclose(deformable_attention(levels, points, weights), total, atol=2e-6)


def test_gradient_equals_finite_differences() -> None:
    levels, points, weights = (jax.tree.map(jnp.float32, part) for part in inputs(2))
    # Away from the cells' centres, where the slope jumps.
    scale = np.array(SIZES)[None, None, :, None, ::-1]
    cells = points * scale - 0.5
    cells = jnp.floor(cells) + jnp.clip(cells - jnp.floor(cells), 0.1, 0.9)
    points = (cells + 0.5) / scale
    check_grads(
        deformable_attention, (levels, points, weights), 1, ["rev"], eps=3e-3, atol=2e-2, rtol=2e-2
    )
