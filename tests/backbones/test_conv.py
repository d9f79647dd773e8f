"""Convolution against float64 NumPy written from its definition; its gradients against XLA's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax.backbones.conv import (
    LARGE_KERNEL,
    MAX_CELLS_AS_PATCHES,
    MAX_CELLS_OF_LARGE_KERNELS,
    Conv,
    Frozen,
    add_bias,
    convolve,
)


def reference(
    x: np.ndarray, kernel: np.ndarray, *, stride: int, padding: int, dilation: int = 1
) -> np.ndarray:
    """y[r, c] = sum over i, j of x[stride r + dilation i - padding, ..] kernel[i, j]."""
    size = kernel.shape[0]
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - dilation * (size - 1) - 1) // stride + 1 for n in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, kernel.shape[-1]))
    for row, column, i, j in np.ndindex(height, width, size, size):
        cells = x[:, stride * row + dilation * i, stride * column + dilation * j]
        y[:, row, column] += cells @ kernel[i, j]
    return y


def draw(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.fixture(params=["patches", "xla"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size: as a product of patches, and as XLA's convolution."""
    most = 2**31 if request.param == "patches" else -1
    monkeypatch.setattr("harmonic_jax.backbones.conv.MAX_CELLS_AS_PATCHES", most)


KEEPS_SIZE = [(size, size // 2, 1) for size in (1, 3, 7)]
OTHERS = [(3, 0, 1), (4, 1, 1), (3, 6, 6)]  # size, padding, dilation


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize(("size", "padding", "dilation"), KEEPS_SIZE + OTHERS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 4), (5, 8)])
def test_convolution(size: int, padding: int, dilation: int, shape: tuple[int, int]) -> None:
    """The default padding keeps the size."""
    rng, options = np.random.default_rng(0), {"padding": padding, "dilation": dilation}
    x, kernel = draw(rng, 2, *shape, 3), draw(rng, size, size, 3, 4)
    for stride in (1, 2) if min(shape) + 2 * padding >= size else ():
        expected = reference(np.asarray(x), np.asarray(kernel), stride=stride, **options)
        y = convolve(x, kernel, stride=stride, **options)
        np.testing.assert_allclose(y, expected, atol=1e-4)
        if (size, padding, dilation) in KEEPS_SIZE:
            assert y.shape == (2, -(-shape[0] // stride), -(-shape[1] // stride), 4)
            np.testing.assert_array_equal(convolve(x, kernel, stride=stride), y)


def xla(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, dilation: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def check_gradients(
    shape: tuple[int, ...], *, stride: int = 1, padding: int = 1, dilation: int = 1
) -> str:
    """Both gradients against XLA's; returns the program of ours."""
    rng = np.random.default_rng(1)
    x, kernel = draw(rng, *shape), draw(rng, 3, 3, shape[-1], 4)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    expected, pullback = jax.vjp(lambda x, k: xla(x, k, **options), x, kernel)
    actual, our_pullback = jax.vjp(lambda x, k: convolve(x, k, **options), x, kernel)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    cotangent = draw(rng, *expected.shape)
    for mine, theirs in zip(our_pullback(cotangent), pullback(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    return str(jax.make_jaxpr(our_pullback)(cotangent))


@pytest.mark.parametrize(
    ("shape", "kernel", "by_patches"),
    [
        ((2, 16, 16, 8), (3, 3, 8, 4), True),
        ((2, 16, 17, 8), (3, 3, 8, 4), False),
        ((1, 64, 128, 512), (3, 3, 512, 512), True),
        ((1, 64, 129, 512), (3, 3, 512, 512), False),
        ((2, 1, 2, 8), (3, 3, 8, 4), True),
    ],
)
def test_small_outputs_and_those_of_large_kernels_are_products_on_cpu_alone(
    shape: tuple[int, ...], kernel: tuple[int, ...], by_patches: bool
) -> None:
    cells = -(-shape[1] // 2) * -(-shape[2] // 2)
    large = math.prod(kernel) >= LARGE_KERNEL
    assert (cells <= (MAX_CELLS_OF_LARGE_KERNELS if large else MAX_CELLS_AS_PATCHES)) == by_patches
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (shape, kernel)]
    forward = jax.jit(lambda x, kernel: convolve(x, kernel, stride=2)).trace(*arrays)
    backward = jax.jit(jax.grad(lambda *a: convolve(*a, stride=2).sum(), (0, 1))).trace(*arrays)
    for platform in ("cpu", "tpu"):
        used = [
            "stablehlo.convolution" in program.lower(lowering_platforms=(platform,)).as_text()
            for program in (forward, backward)
        ]
        assert used == [not (by_patches and platform == "cpu")] * 2


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 2, 2, 3), (2, 1, 7, 3)])
def test_gradients_of_few_cells_are_those_of_xla(shape: tuple[int, ...], stride: int) -> None:
    check_gradients(shape, stride=stride)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"padding": 0}, {"stride": 2, "padding": 0}, {"padding": 6, "dilation": 6}],
)
@pytest.mark.parametrize(("at_once", "num_products"), [(6, 1), (5, 2), (3, 2), (2, 3), (0, 6)])
def test_gradients_are_those_of_xla(
    options: dict[str, int], at_once: int, num_products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the patches of as many of six images as may be multiplied at once."""
    height, width, num_in = 7, 10, 5
    options = {"stride": 1, "padding": 1, "dilation": 1, **options}
    more = 2 * (options["padding"] - options["dilation"])
    num_outputs = math.prod(-(-(n + more) // options["stride"]) for n in (height, width))
    limit = at_once * num_outputs * 9 * num_in
    monkeypatch.setattr("harmonic_jax.backbones.conv.MAX_NUMBERS_OF_PATCHES", limit)
    program = check_gradients((6, height, width, num_in), **options)
    assert f"length={num_products}" in program.replace(" ", "")


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 1, 8, 3)])
def test_no_images_and_no_cells_have_gradients_of_zeros(shape: tuple[int, ...]) -> None:
    x, kernel = jnp.ones(shape), jnp.ones((3, 3, 3, 2))
    loss = lambda x, kernel: convolve(x, kernel, stride=1, padding=0).sum()  # noqa: E731
    for gradient, array in zip(jax.grad(loss, (0, 1))(x, kernel), (x, kernel), strict=True):
        np.testing.assert_array_equal(gradient, jnp.zeros_like(array))


def test_a_gradient_in_bfloat16_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of each of 600 images: in bfloat16 the sum stays at 4096."""
    monkeypatch.setattr("harmonic_jax.backbones.conv.MAX_NUMBERS_OF_PATCHES", 0)
    x, kernel = jnp.ones((600, 3, 3, 1), jnp.bfloat16), jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda kernel: convolve(x, kernel, stride=1).astype(jnp.float32).sum())
    assert gradient(kernel)[1, 1, 0, 0] == jnp.bfloat16(5400)


def test_groups_equal_a_convolution_each() -> None:
    rng = np.random.default_rng(0)
    conv = Conv(12, 8, kernel_size=3, stride=2, groups=4, rngs=nnx.Rngs(0))
    assert conv.kernel.shape == (3, 3, 3, 8)
    for shape in ((7, 9), (3, 4)):
        x = draw(rng, 2, *shape, 12)
        parts = [
            reference(
                np.asarray(x)[..., 3 * g : 3 * g + 3],
                np.asarray(conv.kernel[...])[..., 2 * g : 2 * g + 2],
                stride=2,
                padding=1,
            )
            for g in range(4)
        ]
        np.testing.assert_allclose(conv(x), np.concatenate(parts, -1), rtol=1e-4, atol=1e-5)


def test_it_computes_in_its_dtype_and_keeps_float32_parameters() -> None:
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


def test_the_gradient_of_a_bias_is_summed_in_float32() -> None:
    """In bfloat16 a sum of ones stays at 256."""
    x = jnp.zeros((2, 40, 40, 1), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda bias: add_bias(x, bias).astype(jnp.float32).sum()))
    np.testing.assert_array_equal(gradient(jnp.zeros(1)), [3200.0])
