"""Convolution and pooling against float64 NumPy written from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax.backbones.conv import (
    MAX_CELLS_AS_PATCHES,
    MAX_NUMBERS_OF_FAST_GRADIENT,
    Conv,
    Frozen,
    add_bias,
    convolve,
)
from harmonic_jax.backbones.layers import max_pool


def reference_convolution(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """y[b, r, c, o] = sum over i, j, k of x[b, stride r + i - p, stride c + j - p, k] kernel."""
    size, padding = kernel.shape[0], (kernel.shape[0] - 1) // 2
    b, h, w, _ = x.shape
    y = np.zeros((b, -(-h // stride), -(-w // stride), kernel.shape[-1]))
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            for i in range(size):
                for j in range(size):
                    r, c = stride * row + i - padding, stride * column + j - padding
                    if 0 <= r < h and 0 <= c < w:
                        y[:, row, column] += x[:, r, c] @ kernel[i, j]
    return y


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 8)])
def test_convolution(size: int, stride: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *shape, 3))
    kernel = rng.standard_normal((size, size, 3, 4))
    y = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), stride=stride)
    np.testing.assert_allclose(y, reference_convolution(x, kernel, stride), rtol=1e-4, atol=1e-4)


def test_sizes_on_both_sides_of_the_threshold_are_tested() -> None:
    assert 2 * 3 <= MAX_CELLS_AS_PATCHES < 5 * 8


@pytest.mark.parametrize("shape", [(2, 2), (1, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_patches_and_xla_have_the_same_gradient(shape: tuple[int, int], stride: int) -> None:
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, *shape, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4)), jnp.float32)

    def xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    y, pullback = jax.vjp(xla, x, kernel)
    ours, our_pullback = jax.vjp(lambda x, k: convolve(x, k, stride=stride), x, kernel)
    cotangent = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    np.testing.assert_allclose(ours, y, atol=1e-5)
    for actual, expected in zip(our_pullback(cotangent), pullback(cotangent), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(("padding", "dilation"), [(1, 1), (0, 1), (6, 6)])
def test_the_gradient_on_large_maps_is_xla_s(padding: int, dilation: int) -> None:
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.standard_normal((3, 43, 37, 111)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 111, 2)), jnp.float32)
    assert x.size > MAX_NUMBERS_OF_FAST_GRADIENT

    def xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((padding, padding), (padding, padding)),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel, stride=1, padding=padding, dilation=dilation)

    expected, pullback = jax.vjp(xla, x, kernel)
    actual, our_pullback = jax.vjp(ours, x, kernel)
    np.testing.assert_array_equal(actual, expected)
    cotangent = jnp.asarray(rng.standard_normal(expected.shape), jnp.float32)
    for mine, theirs in zip(our_pullback(cotangent), pullback(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-2)
    assert "while" in jax.jit(our_pullback).lower(cotangent).as_text()  # not XLA's on this CPU


def test_a_convolution_computes_in_its_dtype_and_keeps_float32_parameters() -> None:
    conv = Conv(3, 4, kernel_size=3, bias=0.5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert conv.kernel.dtype == conv.bias.dtype == jnp.float32
    y = conv(jnp.zeros((1, 6, 6, 3)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, np.full((1, 6, 6, 4), 0.5))


def test_what_is_not_trainable_is_no_param() -> None:
    conv = Conv(3, 4, kernel_size=1, bias=0.0, trainable=False, rngs=nnx.Rngs(0))
    _, params, frozen = nnx.split(conv, nnx.Param, Frozen)
    assert not jax.tree.leaves(params)
    assert len(jax.tree.leaves(frozen)) == 2


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 4), (7, 9)])
def test_max_pool(shape: tuple[int, int]) -> None:
    h, w = shape
    x = np.random.default_rng(2).standard_normal((2, h, w, 3)).astype(np.float32)
    y = np.full((2, (h + 1) // 2, (w + 1) // 2, 3), -np.inf, np.float32)
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            rows = slice(max(2 * row - 1, 0), 2 * row + 2)
            columns = slice(max(2 * column - 1, 0), 2 * column + 2)
            y[:, row, column] = x[:, rows, columns].max((1, 2))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), y)


@pytest.mark.parametrize("num_values", [1, 3, 1000], ids=["equal", "ties", "distinct"])
def test_max_pool_sends_the_gradient_to_the_first_maximum(num_values: int) -> None:
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.integers(0, num_values, (2, 7, 8, 3)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((2, 4, 4, 3)), jnp.float32)
    values, expected = np.asarray(x), np.zeros(x.shape, np.float32)
    for b, row, column, c in np.ndindex(weights.shape):
        rows = range(max(2 * row - 1, 0), min(2 * row + 2, 7))
        columns = range(max(2 * column - 1, 0), min(2 * column + 2, 8))
        # max() returns the first of equal values.
        cell = max(((i, j) for i in rows for j in columns), key=lambda ij: values[b, *ij, c])
        expected[b, *cell, c] += weights[b, row, column, c]
    actual = jax.grad(lambda x: (weights * max_pool(x)).sum())(x)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_max_pool_passes_nan_on() -> None:
    x = np.ones((1, 4, 4, 1), np.float32)
    for cell in np.ndindex(4, 4):
        x[0, *cell] = np.nan
        y = np.asarray(max_pool(jnp.asarray(x)))[0, :, :, 0]
        windows = [
            np.isnan(x[0, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]).any()
            for i, j in np.ndindex(2, 2)
        ]
        np.testing.assert_array_equal(np.isnan(y).ravel(), windows)
        x[0, *cell] = 1.0


def test_the_gradient_of_a_bias_is_summed_in_float32() -> None:
    """In bfloat16 a sum of ones stays at 256."""
    x = jnp.zeros((2, 40, 40, 1), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda bias: add_bias(x, bias).astype(jnp.float32).sum()))
    np.testing.assert_array_equal(gradient(jnp.zeros(1)), [3200.0])
