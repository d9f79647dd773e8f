"""The dense head's order and start, the norm of feature vectors, the transposed convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax.backbones.conv import he_normal
from harmonic_jax.detectors.parts.heads import ConvTranspose, DenseHead, L2Norm


def test_outputs_run_over_rows_columns_anchors_and_classes() -> None:
    """The 1x1 centre of the kernel copies the cell's number; the bias numbers the channels."""
    head = DenseHead(8, 3, num_anchors=2, num_convs=0, norm="none", rngs=nnx.Rngs(0))
    head.output.kernel[...] = jnp.zeros((3, 3, 8, 6)).at[1, 1, 0].set(100.0)
    head.output.bias[...] = jnp.arange(6.0)
    cells = jnp.zeros((1, 2, 5, 8)).at[0, :, :, 0].set(jnp.arange(10.0).reshape(2, 5))
    expected = 100 * np.arange(10)[:, None, None] + np.arange(6).reshape(1, 2, 3)
    np.testing.assert_array_equal(head(cells)[0], expected.reshape(20, 3))


@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_head_starts_at_its_bias_with_small_weights(norm: str) -> None:
    head = DenseHead(16, 3, num_anchors=9, num_convs=1, norm=norm, bias=-3.0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(head.output.bias[...], np.full(27, -3.0))
    for layer in (head.convs[0], head.output):
        np.testing.assert_allclose(np.std(layer.kernel[...]), 0.01, rtol=0.05)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 5, 16)), jnp.float32)
    np.testing.assert_allclose(head(x), np.full((1, 225, 3), -3.0), atol=0.6)


def test_l2_norm() -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 8)).astype(np.float32)
    x[0, 0, 0], x[0, 0, 1] = 0, 1e-9
    layer = L2Norm(8, scale=20.0)
    length = np.sqrt(np.square(x, dtype=np.float64).sum(-1, keepdims=True))
    np.testing.assert_allclose(layer(jnp.asarray(x)), 20 * x / np.maximum(length, 1e-12), rtol=1e-5)
    gradient = jax.grad(lambda x: layer(x).sum())(jnp.asarray(x))
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[0, 0, 0])
    assert layer(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_transposed_convolution(size: int, shape: tuple[int, int]) -> None:
    """Tap (y, x) of cell (r, c) adds to the output (2 r + y - padding, 2 c + x - padding)."""
    layer = ConvTranspose(3, 4, size=size, kernel_init=he_normal, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = np.random.default_rng(2).standard_normal((2, *shape, 3)).astype(np.float32)
    kernel, padding = np.asarray(layer.kernel[...], np.float64), (size - 2) // 2
    height, width = 2 * shape[0], 2 * shape[1]
    expected = np.tile(np.arange(4.0), (2, height, width, 1))
    for r, c, i, j in np.ndindex(*shape, size, size):
        row, column = 2 * r + i - padding, 2 * c + j - padding
        if 0 <= row < height and 0 <= column < width:
            expected[:, row, column] += x[:, r, c] @ kernel[i, j]
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)
