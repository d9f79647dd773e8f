"""The modules of two-stage detectors: shapes, orders, statistics, ResNeXt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harmonic_jax.backbones.fpn import FeaturePyramid
from harmonic_jax.backbones.roi_heads import BoxHead, MaskHead, Upsample
from harmonic_jax.backbones.rpn import RPNHead
from harmonic_jax.models import FasterRCNN, MaskRCNN, build_model

from harmonic_jax.backbones.conv import Conv, convolve
from harmonic_jax.backbones.norm import BatchNorm
from harmonic_jax.backbones.resnet import ResNet
from harmonic_jax.config import (
    BoxHeadConfig,
    ConfigError,
    FasterRCNNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    ResNetConfig,
    RPNConfig,
)
from harmonic_jax.detectors.parts.anchors import level_shapes
from harmonic_jax.pretrained.convert import fit_state
from harmonic_jax.pretrained.layout import Layout
from harmonic_jax.pretrained.torchvision import RESNET
from tests.detectors.two_stage_peer import import_torchvision

K = 3
TINY = MaskRCNNConfig(
    backbone=ResNetConfig(depth=18, width=8, norm="batch"),
    channels=16,
    box_head=BoxHeadConfig(num_hidden=8),
    mask_head=MaskHeadConfig(num_convs=1, channels=8),
)


@pytest.mark.parametrize("levels", [(2, 5), (2, 6), (3, 7)])
def test_shapes(levels: tuple[int, int]) -> None:
    model = nnx.eval_shape(
        lambda: build_model(dataclasses.replace(TINY, levels=levels), K, rngs=nnx.Rngs(0))
    )
    assert isinstance(model, MaskRCNN)
    images = jax.ShapeDtypeStruct((2, 160, 96, 3), jnp.uint8)
    boxes = jax.ShapeDtypeStruct((2, 5, 4), jnp.float32)

    def run(model: MaskRCNN, images: jax.Array, boxes: jax.Array) -> tuple:
        features = model.features(images)
        return (
            features,
            model.propose(features),
            model.classify(features, boxes),
            model.segment(features, boxes, jnp.ones(boxes.shape[:2], bool)),
        )

    features, proposals, (logits, deltas), masks = nnx.eval_shape(run, model, images, boxes)
    shapes = level_shapes((160, 96), levels)
    assert [x.shape for x in features] == [(2, h, w, 16) for h, w in shapes]
    assert [x.shape for x in proposals.cls_logits] == [(2, h * w * 3, 1) for h, w in shapes]
    assert [x.shape for x in proposals.deltas] == [(2, h * w * 3, 4) for h, w in shapes]
    assert logits.shape == (2, 5, K + 1)
    assert deltas.shape == (2, 5, K + 1, 4)
    assert masks.shape == (2, 5, 28, 28, K + 1)


def test_a_faster_rcnn_has_no_masks() -> None:
    fields = {f.name: getattr(TINY, f.name) for f in dataclasses.fields(FasterRCNNConfig)}
    model = nnx.eval_shape(lambda: build_model(FasterRCNNConfig(**fields), K, rngs=nnx.Rngs(0)))
    assert type(model) is FasterRCNN


def test_rpn_outputs_run_over_rows_columns_anchors() -> None:
    head = RPNHead(8, num_anchors=2, num_convs=1, rngs=nnx.Rngs(0))
    head.convs[0].kernel[...] = jnp.zeros((3, 3, 8, 8)).at[1, 1, 0, 0].set(1.0)
    for layer, size in ((head.objectness, 2), (head.deltas, 8)):
        layer.kernel[...] = jnp.zeros((1, 1, 8, size)).at[0, 0, 0].set(100.0)
        layer.bias[...] = jnp.arange(float(size))
    cells = jnp.zeros((1, 2, 3, 8)).at[0, :, :, 0].set(jnp.arange(6.0).reshape(2, 3))
    logits, deltas = head(cells)
    numbers = 100 * np.arange(6)[:, None]
    np.testing.assert_array_equal(logits[0], (numbers + np.arange(2)).reshape(12, 1))
    np.testing.assert_array_equal(deltas[0], (numbers + np.arange(8)).reshape(12, 4))


def test_heads_start_with_small_weights_and_no_preference() -> None:
    head = BoxHead(BoxHeadConfig(num_hidden=64), 8, 30, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(head.logits.kernel[...].std(), 0.01, rtol=0.05)
    np.testing.assert_allclose(head.deltas.kernel[...].std(), 0.001, rtol=0.05)
    masks = MaskHead(MaskHeadConfig(num_convs=1, channels=64), 8, 30, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(masks.output.kernel[...].std(), 0.001, rtol=0.05)
    rpn = RPNHead(64, num_anchors=3, num_convs=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(rpn.objectness.kernel[...].std(), 0.01, rtol=0.15)
    for layer in (head.logits, head.deltas, masks.output, rpn.objectness):
        np.testing.assert_array_equal(layer.bias[...], 0.0)


def test_upsampling_writes_each_cell_into_four() -> None:
    rng = np.random.default_rng(0)
    layer = Upsample(3, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.array([1.0, -1.0])
    x = rng.normal(size=(2, 3, 4, 3)).astype(np.float32)
    got, kernel = np.asarray(layer(jnp.asarray(x))), np.asarray(layer.kernel[...])
    assert got.shape == (2, 6, 8, 2)
    for i in range(6):
        for j in range(8):
            want = x[:, i // 2, j // 2] @ kernel[i % 2, j % 2] + np.array([1.0, -1.0])
            np.testing.assert_allclose(got[:, i, j], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("layers", ["two_fc", "four_conv_fc"])
def test_padding_changes_nothing(norm: str, layers: str) -> None:
    """Neither what the other RoIs say nor the running statistics."""
    if layers == "two_fc" and norm != "none":
        with pytest.raises(ConfigError, match=r"box_head\.norm"):
            BoxHeadConfig(layers=layers, norm=norm)
        return
    config = BoxHeadConfig(layers=layers, norm=norm, num_hidden=8, pool_size=3)
    rois = np.random.default_rng(0).normal(size=(9, 3, 3, 8)).astype(np.float32)
    rois[5:] *= 1e3

    def run(rois: np.ndarray, where: np.ndarray | None) -> tuple:
        head = BoxHead(config, 8, K, rngs=nnx.Rngs(0))
        head.train()
        outputs = head(jnp.asarray(rois), where)
        return outputs, nnx.to_pure_dict(nnx.state(head, nnx.BatchStat))

    outputs, statistics = run(rois, jnp.arange(9) < 5)
    expected, expected_statistics = run(rois[:5], None)
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(got[:5], want, rtol=1e-4, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        statistics,
        expected_statistics,
    )
    assert bool(jax.tree.leaves(statistics)) == (norm == "batch")


def test_no_row_leaves_statistics_alone_and_gradients_finite() -> None:
    norm = BatchNorm(4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 4)), jnp.float32)
    norm(x, jnp.zeros(3, bool))
    np.testing.assert_array_equal(norm.mean[...], 0.0)
    np.testing.assert_array_equal(norm.var[...], 1.0)
    grad = jax.grad(lambda x: BatchNorm(4)(x, jnp.zeros(3, bool)).sum())(x)
    assert np.isfinite(grad).all()


def test_pyramid_with_norms_and_pooled_levels() -> None:
    features = [jnp.ones((1, 9, 13, 4)), jnp.ones((1, 5, 7, 8)), jnp.ones((1, 3, 4, 8))]
    fpn = FeaturePyramid(
        [4, 8, 8], 16, num_extra=2, extra_levels_from="pool", norm="batch", rngs=nnx.Rngs(0)
    )
    assert fpn.laterals[0].bias is None
    assert len(fpn.lateral_norms) == len(fpn.output_norms) == 3
    fpn.eval()
    levels = fpn(features)
    assert [x.shape[1:3] for x in levels] == [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]
    np.testing.assert_array_equal(levels[3], levels[2][:, ::2, ::2])
    np.testing.assert_array_equal(levels[4], levels[3][:, ::2, ::2])
    doubled = fpn.output_norms[0]
    doubled.scale[...] = 2 * doubled.scale[...]
    np.testing.assert_allclose(fpn(features)[0], 2 * levels[0], rtol=1e-5)


def test_grouped_convolution_equals_one_for_each_group() -> None:
    rng = np.random.default_rng(0)
    conv = Conv(12, 8, kernel_size=3, stride=2, groups=4, rngs=nnx.Rngs(0))
    assert conv.kernel.shape == (3, 3, 3, 8)
    for shape in ((7, 9), (3, 4)):
        x = jnp.asarray(rng.normal(size=(2, *shape, 12)), jnp.float32)
        parts = [
            convolve(x[..., 3 * g : 3 * g + 3], conv.kernel[..., 2 * g : 2 * g + 2], stride=2)
            for g in range(4)
        ]
        np.testing.assert_allclose(conv(x), jnp.concatenate(parts, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "groups", "width_per_group", "expected"),
    # torchvision's documented totals less the classifier's; of 32x4d, the paper's 44.2 million.
    [
        (50, 32, 4, 25_028_904 - 2_049_000),
        (101, 32, 8, 88_791_336 - 2_049_000),
        (101, 64, 4, 83_455_272 - 2_049_000),
        (101, 32, 4, 44_177_704 - 2_049_000),
    ],
)
def test_number_of_resnext_parameters(
    depth: int, groups: int, width_per_group: int, expected: int
) -> None:
    config = ResNetConfig(depth=depth, groups=groups, width_per_group=width_per_group, norm="batch")
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected


def test_resnext_equals_torchvision() -> None:
    torchvision = import_torchvision()
    import torch

    torch.manual_seed(0)
    theirs = torchvision.models.resnext50_32x4d(weights=None).eval()
    for module in theirs.modules():
        if hasattr(module, "running_mean"):
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    config = ResNetConfig(depth=50, groups=32, width_per_group=4, norm="batch")
    ours = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, rest))
    state_dict = {k: v.numpy() for k, v in theirs.state_dict().items()}
    loaded = fit_state(*zeros, state_dict, Layout(RESNET, ignored=("fc.",)))

    @jax.jit
    def run(params: nnx.State, rest: nnx.State, x: jax.Array) -> tuple:
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        return model(x)

    x = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype(np.float32)
    got = run(*loaded, x)
    with torch.no_grad():
        y = torch.from_numpy(x).permute(0, 3, 1, 2)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(y))))
        for i, actual in enumerate(got):
            y = getattr(theirs, f"layer{i + 1}")(y)
            expected = y.permute(0, 2, 3, 1).numpy()
            assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_configs_name_what_is_wrong() -> None:
    wrong = {
        "backbone.groups": lambda: ResNetConfig(depth=18, groups=32),
        "backbone.width_per_group": lambda: ResNetConfig(depth=50, width=8, width_per_group=4),
        "rpn.num_samples": lambda: RPNConfig(num_samples=0),
        "box_head.positive_fraction": lambda: BoxHeadConfig(positive_fraction=0.0),
        "box_head.delta_weights": lambda: BoxHeadConfig(delta_weights=(1.0, 1.0, 0.0, 1.0)),
        "model.levels": lambda: FasterRCNNConfig(levels=(1, 5)),
        "model.channels": lambda: FasterRCNNConfig(channels=12, fpn_norm="group"),
        "mask_head.channels": lambda: MaskHeadConfig(channels=12, norm="group"),
    }
    for field, make in wrong.items():
        with pytest.raises(ConfigError, match=field):
            make()
