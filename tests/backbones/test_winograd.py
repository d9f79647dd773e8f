"""Convolution by Winograd's products: against float64 NumPy, and its gradients against XLA's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.backbones import winograd
from harmonic_jax.backbones.conv import convolve
from harmonic_jax.backbones.winograd import (
    LEAST_CHANNELS,
    LEAST_PRODUCTS,
    convolve_winograd,
    winograd_gradients,
)
from tests.backbones.test_conv import draw, reference, xla

SHAPES = [(1, 1), (2, 3), (3, 2), (5, 8), (7, 7)]


@pytest.fixture(params=[(6, 1), (5, 2), (2, 3), (0, 6)])
def num_loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of six images of 7 x 7 cells with 5 channels at the most, so many at once."""
    at_once, loops = request.param
    monkeypatch.setattr(winograd, "MAX_NUMBERS_OF_IMAGES", at_once * 7 * 7 * 5)
    return loops


@pytest.mark.parametrize(("num_in", "num_out"), [(3, 5), (5, 3)])
def test_it_works_on_some_images_at_a_time(num_in: int, num_out: int, num_loops: int) -> None:
    rng = np.random.default_rng(0)
    x, kernel = draw(rng, 6, 7, 7, num_in), draw(rng, 3, 3, num_in, num_out)
    y = convolve_winograd(x, kernel)
    expected = reference(np.asarray(x), np.asarray(kernel), stride=1, padding=1)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    trace = jax.make_jaxpr(lambda *a: winograd_gradients(*a))  # a new function: traced anew
    program = str(trace(x, kernel, y)).replace(" ", "")
    assert program.count(f"length={num_loops}") == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_of_every_parity(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x, kernel = draw(rng, 2, *shape, 4), draw(rng, 3, 3, 4, 6)
    expected = reference(np.asarray(x), np.asarray(kernel), stride=1, padding=1)
    np.testing.assert_allclose(convolve_winograd(x, kernel), expected, atol=1e-4)
    grad = draw(rng, *expected.shape)
    of_xla = jax.vjp(lambda *a: xla(*a, stride=1, padding=1, dilation=1), x, kernel)[1](grad)
    for mine, theirs in zip(winograd_gradients(x, kernel, grad), of_xla, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_error_is_that_of_float32_at_many_channels() -> None:
    rng = np.random.default_rng(2)
    x, kernel = draw(rng, 1, 6, 6, 512), draw(rng, 3, 3, 512, 64) / math.sqrt(9 * 512)
    expected = reference(np.asarray(x), np.asarray(kernel), stride=1, padding=1)
    np.testing.assert_allclose(convolve_winograd(x, kernel), expected, atol=1e-5)


def test_a_cell_that_is_not_finite_reaches_its_own_square_alone() -> None:
    x = jnp.zeros((1, 8, 8, 2)).at[0, 3, 3, 0].set(jnp.nan)
    y = convolve_winograd(x, jnp.ones((3, 3, 2, 2)))
    assert jnp.isnan(y[0, 2:5, 2:5]).all()
    assert jnp.isfinite(y[0, 6:]).all()
    assert jnp.isfinite(y[0, :, 6:]).all()


LARGE = (math.ceil(LEAST_PRODUCTS / (9 * 128 * 128 * 32)), 32)


@pytest.mark.parametrize(
    ("size", "channels", "kernel_size", "options", "dtype", "is_ours"),
    [
        (LARGE, 128, 3, {}, jnp.float32, True),
        ((LARGE[0] - 1, 32), 128, 3, {}, jnp.float32, False),
        ((999, 999), LEAST_CHANNELS, 3, {}, jnp.float32, True),
        ((999, 999), LEAST_CHANNELS - 1, 3, {}, jnp.float32, False),
        (LARGE, 128, 3, {}, jnp.bfloat16, False),
        (LARGE, 128, 5, {}, jnp.float32, False),
        (LARGE, 128, 3, {"stride": 2}, jnp.float32, False),
        (LARGE, 128, 3, {"padding": 0}, jnp.float32, False),
        (LARGE, 128, 3, {"dilation": 2}, jnp.float32, False),
        (LARGE, 128, 3, {"dilation": 2, "padding": 1}, jnp.float32, False),
    ],
)
def test_large_convolutions_of_a_processor_are_winograds(
    size: tuple[int, int],
    channels: int,
    kernel_size: int,
    options: dict[str, int],
    dtype: jnp.dtype,
    is_ours: bool,
) -> None:
    options = {"stride": 1} | options
    shapes = (1, *size, channels), (kernel_size, kernel_size, channels, channels)
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    forward = jax.jit(lambda *a: convolve(*a, **options)).trace(*arrays)
    backward = jax.jit(
        lambda *a: jax.vjp(lambda *a: convolve(*a, **options), *a)[1](convolve(*a, **options))
    ).trace(*arrays)
    for program in (forward, backward):
        for platform in ("cpu", "tpu"):
            text = program.lower(lowering_platforms=(platform,)).as_text()
            assert ("stablehlo.convolution" not in text) == (is_ours and platform == "cpu")


def test_convolve_has_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmonic_jax.backbones.conv.is_worth_winograd", lambda *_: True)
    rng = np.random.default_rng(3)
    x, kernel = draw(rng, 2, 4, 5, 3), draw(rng, 3, 3, 3, 4)
    y, pullback = jax.vjp(lambda *a: convolve(*a, stride=1), x, kernel)
    expected, of_xla = jax.vjp(lambda *a: xla(*a, stride=1, padding=1, dilation=1), x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for mine, theirs in zip(pullback(y), of_xla(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
