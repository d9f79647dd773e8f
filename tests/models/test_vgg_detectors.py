"""VGG-16, SSD and RefineDet: layers against PyTorch, shapes against the assignment's."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harmonic_jax.backbones.deconv import Doubling
from harmonic_jax.backbones.multibox_head import L2Norm
from harmonic_jax.backbones.pooling import max_pool

from harmonic_jax.backbones.conv import convolve
from harmonic_jax.config import DefaultBoxConfig, ModelConfig, RefineDetConfig, SSDConfig, VGGConfig
from harmonic_jax.detectors import build_model
from harmonic_jax.detectors.parts.anchors import level_shapes

BACKBONE = VGGConfig(width=4, norm="batch")
SMALL_SSD = SSDConfig(
    backbone=BACKBONE,
    fc6_dilation=2,
    extra_layers=("3x3/2", "4x4"),
    default_boxes=DefaultBoxConfig(
        sizes=(16.0, 28.0, 44.0, 60.0, 76.0),
        max_ratios=(2, 3, 2, 1),
        steps=(8.0, 16.0, 0.0, 0.0),
    ),
)
SMALL_REFINEDET = RefineDetConfig(backbone=BACKBONE, channels=16, fc6_dilation=1)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is the oracle")


@functools.cache
def split(config: ModelConfig) -> tuple:
    abstract = nnx.eval_shape(lambda: build_model(config, 3, rngs=nnx.Rngs(0)))
    graphdef, *states = nnx.split(abstract, nnx.Param, ...)
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:  # positive for variances
        return jnp.asarray(rng.uniform(0.1, 0.2, leaf.shape), leaf.dtype)

    return graphdef, *jax.tree.map(draw, states)


@functools.cache
def forward(config: ModelConfig) -> Any:
    graphdef, params, rest = split(config)

    @jax.jit
    def forward(images: jax.Array, image_size: jax.Array | None) -> Any:
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        return model(images, image_size)

    return forward


@pytest.mark.parametrize(("padding", "size"), [(0, 3), (1, 4), (1, 3), (6, 3)])
@pytest.mark.parametrize("side", [3, 7], ids=["patches", "xla"])
def test_convolutions_with_padding_and_holes(
    torch: Any, padding: int, size: int, side: int
) -> None:
    dilation = 6 if padding == 6 else 1
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, side, side + 1, 3)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 3, 4)).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(kernel).permute(3, 2, 0, 1),
        padding=padding,
        dilation=dilation,
    ).permute(0, 2, 3, 1)
    y = convolve(x, kernel, stride=1, padding=padding, dilation=dilation)
    np.testing.assert_allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 2, 0), (3, 1, 1)], ids=["2x2/2", "3x3/1"]
)
@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (75, 2)])
@pytest.mark.parametrize("num_values", [3, 1000], ids=["ties", "distinct"])
def test_max_pool(
    torch: Any, size: int, stride: int, padding: int, shape: tuple[int, int], num_values: int
) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, num_values, (2, *shape, 3)).astype(np.float32)
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    expected = torch.nn.functional.max_pool2d(theirs, size, stride, padding, ceil_mode=True)
    pool = functools.partial(max_pool, size=size, stride=stride, padding=padding)
    y, pullback = jax.vjp(pool, jnp.asarray(x))
    np.testing.assert_array_equal(y, expected.detach().permute(0, 2, 3, 1))
    weights = rng.standard_normal(y.shape).astype(np.float32)
    expected.backward(torch.from_numpy(weights).permute(0, 3, 1, 2))
    np.testing.assert_allclose(
        pullback(jnp.asarray(weights))[0], theirs.grad.permute(0, 2, 3, 1), atol=1e-6
    )


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_doubling_is_a_transposed_convolution(
    torch: Any, size: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(2)
    layer = Doubling(3, 4, size=size, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = rng.standard_normal((2, *shape, 3)).astype(np.float32)
    theirs = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(np.array(layer.kernel[...])).permute(2, 3, 0, 1),
        torch.arange(4.0),
        stride=2,
        padding=(size - 2) // 2,
    )
    np.testing.assert_allclose(layer(jnp.asarray(x)), theirs.permute(0, 2, 3, 1), atol=1e-5)


def test_l2_norm(torch: Any) -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 8)).astype(np.float32)
    x[0, 0, 0], x[0, 0, 1] = 0, 1e-9
    layer = L2Norm(8, scale=20.0)
    expected = 20 * torch.nn.functional.normalize(torch.from_numpy(x), dim=-1)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-5)
    gradient = jax.grad(lambda x: layer(x).sum())(jnp.asarray(x))
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[0, 0, 0])
    assert layer(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(96, 96), (81, 123)])
def test_levels_are_those_of_the_assignment(shape: tuple[int, int]) -> None:
    images = jax.ShapeDtypeStruct((2, *shape, 3), jnp.uint8)
    ssd = jax.eval_shape(forward(SMALL_SSD), images, None)
    cells = [h * w for h, w in SMALL_SSD.level_shapes(shape)]
    for level, count, boxes in zip(range(4), cells, (4, 6, 4, 2), strict=True):
        assert ssd.cls_logits[level].shape == (2, count * boxes, 4)
        assert ssd.deltas[level].shape == (2, count * boxes, 4)
    arm, odm = jax.eval_shape(forward(SMALL_REFINEDET), images, None)
    for level, (h, w) in enumerate(level_shapes(shape, (3, 6))):
        assert arm.cls_logits[level].shape == (2, 3 * h * w, 2)
        assert odm.cls_logits[level].shape == (2, 3 * h * w, 4)
        assert arm.deltas[level].shape == odm.deltas[level].shape == (2, 3 * h * w, 4)


def test_published_sizes() -> None:
    """The networks of the papers: number of boxes and of parameters."""

    def outputs(config: ModelConfig, side: int) -> tuple[Any, int]:
        model = nnx.eval_shape(lambda: build_model(config, 20, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(model)
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        found = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, images)
        return found, sum(leaf.size for leaf in jax.tree.leaves(state))

    found, num_parameters = outputs(SSDConfig(), 300)
    assert sum(level.shape[1] for level in found.deltas) == 8732
    # 26.3M: torchvision's ssd300_vgg16 with 21 classes.
    assert num_parameters == 26_285_486
    found, _ = outputs(RefineDetConfig(), 320)
    assert [level.shape[1] for level in found.odm.deltas] == [4800, 1200, 300, 75]


def test_padding_holds_nothing() -> None:
    """What lies outside of the image changes no output."""
    run = forward(SMALL_SSD)
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    other = images.copy()
    other[:, 64:], other[:, :, 80:] = 7, 250
    size = np.array([[64.0, 80.0]], np.float32)
    first, second = run(images, size), run(other, size)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    size[:] = 96
    assert not np.array_equal(first.deltas[0], run(other, size).deltas[0])


def test_frozen_stages_are_no_params() -> None:
    config = dataclasses.replace(
        SMALL_SSD, backbone=VGGConfig(width=4, norm="none", frozen_stages=2)
    )
    _, params, rest = split(config)
    trained = params["backbone"]["stages"]
    assert set(trained) == {2, 3, 4}
    assert set(rest["backbone"]["stages"]) == {0, 1}
