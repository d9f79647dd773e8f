"""RetinaNet as a whole: shapes, order, freezing, and what flax must be able to do with it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harmonic_jax.backbones.heads import DenseHead
from harmonic_jax.models import Frozen, build_model

from harmonic_jax.backbones.layers import normalize_images
from harmonic_jax.backbones.resnet import ResNet
from harmonic_jax.config import AnchorConfig, ResNetConfig, RetinaNetConfig
from harmonic_jax.detectors.parts.anchors import level_shapes

TINY = RetinaNetConfig(
    backbone=ResNetConfig(depth=18, width=8, norm="batch"), channels=16, head_convs=1
)
NUM_CLASSES = 3


def random_images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def with_backbone(**changes: object) -> RetinaNetConfig:
    return dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, **changes))


def random_model(config: RetinaNetConfig, dtype: jnp.dtype = jnp.float32) -> nnx.Module:
    """A model filled by NumPy: jax would compile a kernel for the shape of every leaf."""
    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: build_model(config, NUM_CLASSES, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)

    def fill(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        match path[-1]:
            case "kernel":
                spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5
                value = rng.normal(0, spread, leaf.shape)
            case "scale" | "var":
                value = rng.uniform(0.5, 1.5, leaf.shape)
            case _:
                value = rng.normal(0, 0.1, leaf.shape)
        return leaf.replace(jnp.asarray(value, leaf.dtype))

    return nnx.merge(graphdef, nnx.map_state(fill, state))


def leaf_names(state: nnx.State) -> set[str]:
    return {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


@pytest.mark.parametrize("levels", [(3, 5), (3, 7), (4, 8)])
def test_predictions_line_up_with_the_anchors(levels: tuple[int, int]) -> None:
    config = dataclasses.replace(
        TINY, levels=levels, anchors=AnchorConfig(scales=(1.0,), ratios=(1.0, 2.0))
    )
    model = nnx.eval_shape(lambda: build_model(config, NUM_CLASSES, rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((2, 109, 77, 3), jnp.uint8)
    predictions = nnx.eval_shape(lambda m, x: m(x), model, images)
    shapes = level_shapes((109, 77), levels)
    assert [x.shape for x in predictions.cls_logits] == [(2, h * w * 2, 3) for h, w in shapes]
    assert [x.shape for x in predictions.deltas] == [(2, h * w * 2, 4) for h, w in shapes]


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
    np.testing.assert_allclose(head.output.kernel[...].std(), 0.01, rtol=0.05)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 5, 16)), jnp.float32)
    np.testing.assert_allclose(head(x), np.full((1, 225, 3), -3.0), atol=0.6)


def test_images_are_normalised_with_imagenet_statistics() -> None:
    images = random_images((2, 3, 4))
    expected = (images / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    actual = normalize_images(jnp.asarray(images))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_padding_is_the_mean_colour_whatever_it_held() -> None:
    images = random_images((2, 6, 7))
    sizes = jnp.array([[6.0, 4.0], [2.0, 7.0]])
    actual = np.array(normalize_images(jnp.asarray(images), sizes))
    plain = np.asarray(normalize_images(jnp.asarray(images)))
    for image, (h, w) in enumerate([(6, 4), (2, 7)]):
        np.testing.assert_array_equal(actual[image, :h, :w], plain[image, :h, :w])
        actual[image, :h, :w] = 0.0
    assert (actual == 0).all()


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8)]
)
def test_other_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"images is .* it must be uint8 \[b, h, w, 3\]"):
        normalize_images(jnp.asarray(images))


def test_num_classes_is_checked() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        build_model(TINY, 0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("depth", "expected"),
    # torchvision's documented totals less the classifier's 1000 x (channels + 1).
    [
        (10, 5_418_792 - 513_000),
        (18, 11_689_512 - 513_000),
        (34, 21_797_672 - 513_000),
        (50, 25_557_032 - 2_049_000),
        (101, 44_549_160 - 2_049_000),
    ],
)
def test_number_of_backbone_parameters(depth: int, expected: int) -> None:
    config = ResNetConfig(depth=depth, norm="batch")
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected


@pytest.mark.parametrize(
    ("norm", "config", "expected"),
    # torchvision's documented totals of retinanet_resnet50_fpn and of its v2, 91 classes.
    [
        ("frozen", RetinaNetConfig(extra_levels_from="p5"), 34_014_999),
        ("batch", RetinaNetConfig(extra_levels_from="c5", head_norm="group"), 38_198_935),
    ],
)
def test_number_of_parameters(norm: str, config: RetinaNetConfig, expected: int) -> None:
    config = dataclasses.replace(config, backbone=ResNetConfig(depth=50, norm=norm))
    model = nnx.eval_shape(lambda: build_model(config, 91, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_frozen_stages_hold_nothing_that_is_trained(norm: str) -> None:
    model = random_model(with_backbone(frozen_stages=2, norm=norm))
    _, params, statistics, frozen = nnx.split(model, nnx.Param, nnx.BatchStat, Frozen)
    is_frozen = ("backbone/conv", "backbone/norm", "backbone/stages/0/")
    assert not [name for name in leaf_names(params) if name.startswith(is_frozen)]
    assert not [name for name in leaf_names(statistics) if name.startswith(is_frozen)]
    assert "backbone/stages/0/1/convs/1/kernel" in leaf_names(frozen)
    assert "backbone/stages/1/0/convs/0/kernel" in leaf_names(params)
    assert bool(leaf_names(statistics)) == (norm == "batch")
    trained_norms = [n for n in leaf_names(params) if n.startswith("backbone") and "scale" in n]
    assert bool(trained_norms) == (norm == "batch")


def test_all_stages_may_be_frozen() -> None:
    model = random_model(with_backbone(frozen_stages=5))
    assert not [n for n in leaf_names(nnx.state(model, nnx.Param)) if n.startswith("backbone")]


@contextlib.contextmanager
def graph_mode(enabled: bool) -> Iterator[None]:
    with nnx.set_graph_mode(enabled), nnx.set_graph_updates(enabled):
        yield


def make_init_and_step(config: RetinaNetConfig) -> tuple[Callable, Callable, list]:
    """A pure init and a pure step, as a training loop writes them; init notes its graphdefs."""
    model = nnx.eval_shape(lambda: build_model(config, NUM_CLASSES, rngs=nnx.Rngs(0)))
    graphdef = nnx.graphdef(model)
    graphdefs = [graphdef]

    def init(key: jax.Array) -> tuple[nnx.State, nnx.State]:
        model = build_model(config, NUM_CLASSES, rngs=nnx.Rngs(key))
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        graphdefs.append(graphdef)
        return params, rest

    def step(params: nnx.State, rest: nnx.State, images: jax.Array) -> tuple:
        def loss(params: nnx.State) -> tuple:
            model = nnx.merge(graphdef, params, rest, copy=True)
            model.train()
            predictions = model(images)
            outputs = predictions.cls_logits + predictions.deltas
            return sum((x**2).mean() for x in outputs), nnx.state(model, nnx.Not(nnx.Param))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return init, step, graphdefs


def test_flax_with_and_without_graphs_traces_the_same_program() -> None:
    programs = []
    for enabled in (True, False):
        with graph_mode(enabled):
            init, step, _ = make_init_and_step(with_backbone(frozen_stages=1))
            key, images = jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
            made = jax.eval_shape(init, key)
            programs.append(jax.jit(step).lower(*made, images).as_text())
    assert programs[0] == programs[1]


def test_a_step_under_plain_jit() -> None:
    config = with_backbone(frozen_stages=1)
    with graph_mode(False):
        init, step, graphdefs = make_init_and_step(config)
        params, rest = jax.jit(init)(jax.random.key(0))
        images = random_images((2, 64, 64))
        (loss, new_rest), grads = jax.jit(step)(params, rest, images)

    assert graphdefs[0] == graphdefs[1]  # of eval_shape, and of the initialised model
    assert jnp.isfinite(loss)
    # The score of every class starts at the prior.
    bias = np.asarray(params["cls_head"]["output"]["bias"][...], np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), config.prior, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert jax.tree.structure(new_rest) == jax.tree.structure(rest)
    old, new = nnx.to_flat_state(rest), nnx.to_flat_state(new_rest)
    for (path, before), (_, after) in zip(old, new, strict=True):
        moved = not np.array_equal(before[...], after[...])
        assert moved == isinstance(before, nnx.BatchStat), path
    for path, leaf in nnx.to_flat_state(grads):
        gradient = np.asarray(leaf[...])
        assert np.isfinite(gradient).all(), path
        assert (gradient != 0).any(), path


def test_bfloat16_stays_close_and_gives_float32() -> None:
    images = random_images((2, 64, 64))
    outputs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        graphdef, state = nnx.split(random_model(TINY, dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
        outputs.append(jax.jit(lambda s, x, g=graphdef: nnx.merge(g, s)(x))(state, images))
    for exact, rounded in zip(*map(jax.tree.leaves, outputs), strict=True):
        assert rounded.dtype == jnp.float32
        error = np.abs(np.asarray(rounded) - np.asarray(exact)).mean()
        assert 0 < error < 0.05 * np.asarray(exact).std()


def test_garbage_in_the_padding_changes_nothing() -> None:
    model = random_model(TINY)
    model.eval()
    graphdef, state = nnx.split(model)
    predict = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs))
    outputs = []
    for garbage in (0, 255):
        images = random_images((1, 64, 64))
        images[:, 50:], images[:, :, 40:] = garbage, garbage
        outputs.append(predict(state, images, jnp.array([[50.0, 40.0]])))
    jax.tree.map(np.testing.assert_array_equal, *outputs)
