"""The depthwise convolution against XLA's grouped one, value and gradient, on every border."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.backbones import depthwise
from harmonic_jax.backbones.depthwise import depthwise_convolve, same_padding


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize("at_once", [0, 2**22])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_equals_xla_in_value_and_gradients(
    size: int, stride: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images one after another, and all at once."""
    monkeypatch.setattr(depthwise, "_NUMBERS_AT_ONCE", at_once)
    for height, width in [(1, 1), (2, 3), (6, 7), (9, 4)]:
        x, kernel = draw(0, 2, height, width, 3), draw(1, size, size, 1, 3)
        expected, xla_vjp = jax.vjp(lambda *a: xla(*a, stride), x, kernel)
        y, vjp = jax.vjp(lambda *a: depthwise_convolve(*a, stride), x, kernel)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        grad = draw(2, *y.shape)
        for ours, theirs in zip(vjp(grad), xla_vjp(grad), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_sums_of_bfloat16_are_float32() -> None:
    """A sum of 512 ones in bfloat16 would stop at 256."""
    x, kernel = jnp.ones((2, 16, 16, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    y, vjp = jax.vjp(lambda *a: depthwise_convolve(*a, 1), x, kernel)
    grad_x, grad_kernel = vjp(jnp.ones_like(y))
    assert y.dtype == grad_x.dtype == grad_kernel.dtype == jnp.bfloat16
    assert float(grad_kernel[0, 0, 0, 0]) == 512


@pytest.mark.parametrize("length", range(1, 12))
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_padding_gives_as_many_outputs_as_same(length: int, size: int, stride: int) -> None:
    before, after = same_padding(length, size, stride)
    assert (before + length + after - size) // stride + 1 == -(-length // stride)
    assert before <= after <= before + 1
