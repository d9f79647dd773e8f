"""Every backbone: maps, published sizes, what is frozen; values of the published networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax.backbones import (
    BackboneConfig,
    EfficientNetLiteConfig,
    Frozen,
    ResNetConfig,
    VGGConfig,
    build_backbone,
)
from harmonic_jax.backbones.efficientnet import relu6
from harmonic_jax.backbones.layers import normalize_images
from harmonic_jax.pretrained.convert import fit_state
from harmonic_jax.pretrained.layout import Layout
from harmonic_jax.pretrained.torchvision import RESNET
from tests.ops.peers import torchvision_or_skip

SMALL = {
    "resnet": ResNetConfig(depth=18, width=8, norm="batch"),
    "resnext": ResNetConfig(depth=50, width=32, groups=4, width_per_group=8),
    "vgg": VGGConfig(width=4),
    "atrous vgg": VGGConfig(width=4, norm="batch", atrous=True),
    "lite 0": EfficientNetLiteConfig(),
    "lite 2": EfficientNetLiteConfig(variant=2, norm="frozen"),
}


def abstract(config: BackboneConfig, *filters: type) -> list:
    """The shapes of its variables, by kind."""
    made = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
    return nnx.split(made, *filters, ...)[1:]


def names(state: nnx.State) -> set[str]:
    return {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


@pytest.mark.parametrize("shape", [(96, 96), (81, 123), (33, 1)])
@pytest.mark.parametrize("name", SMALL)
def test_maps_have_the_strides_and_channels_of_the_settings(name, shape) -> None:
    config = SMALL[name]
    made = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((2, *shape, 3), jnp.uint8)
    maps = nnx.eval_shape(lambda backbone, images: backbone(images), made, images)
    expected = [
        (2, -(-shape[0] // stride), -(-shape[1] // stride), channels)
        for stride, channels in zip(config.strides, config.channels, strict=True)
    ]
    assert [x.shape for x in maps] == expected


@pytest.mark.parametrize(
    ("depth", "cardinality", "expected"),
    # torchvision's documented totals less the classifier's 1000 x (channels + 1); of depth 10, the
    # common implementation's; of ResNeXt-101 32x4d, the paper's 44.2 million.
    [
        (10, (1, 64), 5_418_792 - 513_000),
        (18, (1, 64), 11_689_512 - 513_000),
        (34, (1, 64), 21_797_672 - 513_000),
        (50, (1, 64), 25_557_032 - 2_049_000),
        (101, (1, 64), 44_549_160 - 2_049_000),
        (50, (32, 4), 25_028_904 - 2_049_000),
        (101, (32, 8), 88_791_336 - 2_049_000),
        (101, (64, 4), 83_455_272 - 2_049_000),
        (101, (32, 4), 44_177_704 - 2_049_000),
    ],
)
def test_published_numbers_of_parameters(depth, cardinality, expected) -> None:
    groups, width = cardinality
    config = ResNetConfig(depth=depth, groups=groups, width_per_group=width, norm="batch")
    params, _ = abstract(config, nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("variant", "expected"),
    # efficientnet-lite-pytorch's less the last convolution, its norm and the classifier.
    [(0, 4_652_008 - 1_693_160), (1, 5_416_680 - 1_693_160), (2, 6_092_072 - 1_734_120)],
)
def test_published_numbers_of_parameters_of_efficientnet_lite(variant, expected) -> None:
    params, _ = abstract(EfficientNetLiteConfig(variant=variant), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_relu6_has_no_slope_at_its_ends_in_both_modes() -> None:
    x, ones = jnp.array([-1.0, 0.0, 1e-3, 5.999, 6.0, 7.0]), jnp.ones(6)
    slope = [0, 0, 1, 1, 0, 0]
    values, forward = jax.jvp(relu6, (x,), (ones,))
    np.testing.assert_array_equal(values, np.clip(x, 0, 6))
    np.testing.assert_array_equal(forward, slope)
    np.testing.assert_array_equal(jax.grad(lambda x: relu6(x).sum())(x), slope)


@pytest.mark.parametrize(("stages", "first"), [(0, None), (1, 1), (3, 5), (5, 16)])
def test_stages_of_efficientnet_lite_may_be_frozen(stages: int, first: int | None) -> None:
    params, others = map(names, abstract(EfficientNetLiteConfig(frozen_stages=stages), nnx.Param))
    trained = {int(name.split("/")[1]) for name in params if name.startswith("blocks")}
    assert trained == set(range(first or 0, 16))
    assert ("stem/kernel" in params) == (first is None)
    assert {name for name in others if "kernel" in name}.isdisjoint(params)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_frozen_stages_hold_nothing_that_is_trained(norm: str) -> None:
    config = ResNetConfig(depth=18, width=8, frozen_stages=2, norm=norm)
    params, statistics, frozen, others = map(
        names, abstract(config, nnx.Param, nnx.BatchStat, Frozen)
    )
    is_frozen = ("conv/", "norm/", "stages/0/")
    assert not [name for name in params | statistics if name.startswith(is_frozen)]
    assert "stages/0/1/convs/1/kernel" in frozen
    assert "stages/1/0/convs/0/kernel" in params
    assert bool(statistics) == (norm == "batch")
    assert any("scale" in name for name in params) == (norm == "batch")
    assert not others


def test_stages_of_vgg_may_be_frozen_and_all_of_resnet() -> None:
    params, others = map(names, abstract(VGGConfig(width=4, frozen_stages=2), nnx.Param))
    assert {name.split("/")[1] for name in params if "stages" in name} == {"2", "3", "4"}
    assert {name.split("/")[1] for name in others} == {"0", "1"}
    params, _ = abstract(ResNetConfig(depth=18, width=8, frozen_stages=5), nnx.Param)
    assert not names(params)


def test_resnext_equals_torchvision() -> None:
    torch, torchvision = torchvision_or_skip()
    torch.manual_seed(0)
    theirs = torchvision.models.resnext50_32x4d(weights=None).eval()
    for module in theirs.modules():
        if hasattr(module, "running_mean"):
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    config = ResNetConfig(depth=50, groups=32, width_per_group=4, norm="batch")
    made = nnx.eval_shape(lambda: build_backbone(config, rngs=nnx.Rngs(0)))
    graphdef, params, others = nnx.split(made, nnx.Param, ...)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, others))
    state_dict = {k: v.numpy() for k, v in theirs.state_dict().items()}
    loaded = fit_state(*zeros, state_dict, Layout(RESNET, ignored=("fc.",)))

    @jax.jit
    def run(params: nnx.State, others: nnx.State, images: jax.Array) -> tuple:
        backbone = nnx.merge(graphdef, params, others)
        backbone.eval()
        return backbone(images)

    images = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), dtype=np.uint8)
    got = run(*loaded, images)
    with torch.no_grad():
        y = torch.from_numpy(np.array(normalize_images(jnp.asarray(images)))).permute(0, 3, 1, 2)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(y))))
        for i, actual in enumerate(got):
            y = getattr(theirs, f"layer{i + 1}")(y)
            expected = y.permute(0, 2, 3, 1).numpy()
            assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
