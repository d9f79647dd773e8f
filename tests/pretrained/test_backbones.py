"""ImageNet backbones: names, layouts and refusals. ResNet's outputs: see test_torchvision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from harmonic_jax.backbones.conv import convolve
from harmonic_jax.backbones.layers import normalize_images
from harmonic_jax.config import (
    RefineDetConfig,
    ResNetConfig,
    RetinaNetConfig,
    VGGConfig,
)
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import WeightsError, load_backbone
from harmonic_jax.pretrained.torchvision import backbone_layout
from tests.pretrained.torch_layout import random_state_dict

WIDTH = 4
VGG = RefineDetConfig(backbone=VGGConfig(width=WIDTH, normalization="torchvision"))
VGG_LAYERS = (4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M")
StateDict = dict[str, np.ndarray]


def retinanet(**backbone: Any) -> RetinaNetConfig:
    backbone = {"depth": 18, "width": 8, "norm": "batch", **backbone}
    return RetinaNetConfig(backbone=ResNetConfig(**backbone), channels=8, head_convs=0)


def filled_state(config: Any) -> tuple[Any, nnx.State, nnx.State]:
    """graphdef, params and the rest of a model; every value is 7."""
    model = nnx.eval_shape(lambda: build_model(config, 2, rngs=nnx.Rngs(0)))
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    return graphdef, *jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), tuple(states))


def load(config: Any, state_dict: StateDict, folder: Path) -> tuple[nnx.State, nnx.State]:
    path = folder / "weights.safetensors"
    arrays = {name: np.ascontiguousarray(array) for name, array in state_dict.items()}
    safetensors.numpy.save_file(arrays, path)
    states = jax.tree.map(jnp.asarray, filled_state(config)[1:])
    return load_backbone(*states, path, config)


def arrays_of(*states: nnx.State) -> dict[str, np.ndarray]:
    return {
        "/".join(map(str, path)): np.asarray(leaf[...])
        for state in states
        for path, leaf in nnx.to_flat_state(state)
    }


def resnet18(width: int = 8) -> StateDict:
    """A classifier's state dict."""
    config = retinanet(width=width)
    fc = {"fc.weight": np.zeros((10, 8 * width), np.float32), "fc.bias": np.zeros(10, np.float32)}
    return random_state_dict(config, 2, backbone_layout(config.backbone, {})) | fc


@pytest.fixture(scope="module")
def vgg() -> StateDict:
    """A classifier's state dict, a sixteenth as wide as torchvision's."""
    layout = backbone_layout(VGG.backbone, {"classifier.0.weight": np.zeros(1)})
    last = {"classifier.6.weight": np.zeros((10, 64 * WIDTH), np.float32)}
    return random_state_dict(VGG, 2, layout) | last


def test_resnet_d_has_timm_s_names() -> None:
    """Of its resnet50d: the stem's convolutions, and shortcuts behind a pool."""
    config = retinanet(depth=50, width=64, variant="d")
    names = set(random_state_dict(config, 2, backbone_layout(config.backbone, {})))
    stem = {name for name in names if name.startswith("conv1.") and "num_batches" not in name}
    assert len(stem) == 3 + 2 * 4
    assert names >= {
        "conv1.0.weight", "conv1.1.running_var", "conv1.3.weight", "conv1.4.bias", "conv1.6.weight",
        "bn1.running_mean", "layer1.0.downsample.1.weight", "layer2.0.downsample.2.weight",
        "layer4.2.bn3.bias",
    }  # fmt: skip
    assert not any(name.startswith("layer1.1.downsample") for name in names)


@pytest.mark.parametrize("changes", [{}, {"norm": "frozen"}, {"frozen_stages": 3}])
def test_every_array_of_a_resnet_is_replaced(tmp_path: Path, changes: dict) -> None:
    """By those of these names; the classifier and the rest of the detector stay."""
    state, config = resnet18(), retinanet(**changes)
    after = load(config, state, tmp_path)
    assert jax.tree.structure(after) == jax.tree.structure(filled_state(config)[1:])
    names = {
        "conv/kernel": "conv1.weight",
        "norm/mean": "bn1.running_mean",
        "stages/0/1/convs/1/kernel": "layer1.1.conv2.weight",
        "stages/0/1/norms/0/scale": "layer1.1.bn1.weight",
        "stages/2/0/norms/1/bias": "layer3.0.bn2.bias",
        "stages/3/0/shortcut/0/kernel": "layer4.0.downsample.0.weight",
        "stages/3/0/shortcut/1/var": "layer4.0.downsample.1.running_var",
    }
    found = arrays_of(*after)
    for ours, theirs in names.items():
        array = state[theirs]
        expected = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        np.testing.assert_array_equal(found[f"backbone/{ours}"], expected)
    loaded = [array for path, array in found.items() if path.startswith("backbone/")]
    assert len(loaded) == sum(not n.startswith("fc.") and "tracked" not in n for n in state)
    assert len({array.tobytes() for array in loaded}) == len(loaded)  # each another
    for path, array in found.items():
        assert (array == 7).all() == (not path.startswith("backbone/")), path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.1.bn2.running_var"), r"layer2\.1\.bn2\.running_var is missing"),
        (lambda s: s.update(extra=s["bn1.bias"]), "extra is not part of the model"),
        (
            lambda s: s.update({"conv1.weight": s["conv1.weight"][:, :, :3, :3]}),
            r"conv1\.weight is float32\[8, 3, 3, 3\], the model needs float32\[8, 3, 7, 7\]",
        ),
        (
            lambda s: s.update({"bn1.bias": s["bn1.bias"].astype(np.float64)}),
            r"bn1\.bias is float64\[8\], the model needs float32\[8\]",
        ),
        (lambda s: s["bn1.bias"].__setitem__(3, np.nan), r"bn1\.bias holds NaN or inf \(1 of 8"),
        (
            lambda s: s["layer4.1.bn2.running_var"].fill(-np.inf),
            r"layer4\.1\.bn2\.running_var holds NaN or inf \(64 of 64",
        ),
        (lambda s: s.update(resnet18(width=16)), r"and \d+ more$"),
    ],
    ids=["missing", "extra", "shape", "dtype", "NaN", "inf", "width"],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Callable, message: str) -> None:
    state = resnet18()
    change(state)
    with pytest.raises(WeightsError, match=message) as caught:
        load(retinanet(), state, tmp_path)
    assert "weights.safetensors for ResNet-18 of width 8" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_widened_which_loses_nothing(tmp_path: Path, dtype: str) -> None:
    halves = {n: a.astype(dtype) if a.ndim else a for n, a in resnet18().items()}
    params, _ = load(retinanet(), halves, tmp_path)
    expected = halves["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["backbone"]["conv"]["kernel"][...], expected)


def test_vggs_features_are_torchvisions(vgg: StateDict, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torchvision is the oracle")
    try:
        from torchvision.models.vgg import make_layers
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    features = make_layers(list(VGG_LAYERS))
    features.load_state_dict(
        {
            name.removeprefix("features."): torch.from_numpy(array)
            for name, array in vgg.items()
            if name.startswith("features.")
        }
    )
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    x = torch.from_numpy(np.array(normalize_images(jnp.asarray(images)))).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = [features[:23](x), features[:30](x)]  # conv4_3 and conv5_3, rectified
    graphdef = filled_state(VGG)[0]
    params, model_state = load(VGG, vgg, tmp_path)

    @jax.jit
    def run(params: nnx.State, model_state: nnx.State) -> tuple:
        return nnx.merge(graphdef, params, model_state).backbone(images)

    for ours, theirs in zip(run(params, model_state)[1:3], expected, strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-4)


def test_fc6_sees_what_the_linear_layer_saw(vgg: StateDict, tmp_path: Path) -> None:
    """On a 7 x 7 map that is 0 between the cells that are kept, both say the same."""
    params, model_state = load(VGG, vgg, tmp_path)
    rng = np.random.default_rng(2)
    x = np.zeros((1, 7, 7, 8 * WIDTH), np.float32)
    x[:, ::3, ::3] = rng.standard_normal((1, 3, 3, 8 * WIDTH))

    def layer(name: str, x: jax.Array, dilation: int) -> jax.Array:
        leaves = params["backbone"][name]["conv"]
        y = convolve(x, leaves["kernel"][...], stride=1, dilation=dilation)
        return jax.nn.relu(y + leaves["bias"][...].reshape(1, 1, 1, -1))

    fc6 = layer("fc6", jnp.asarray(x), VGG.backbone.fc6_dilation)
    flat = x.transpose(0, 3, 1, 2).reshape(-1)  # channels first
    expected = vgg["classifier.0.weight"] @ flat + vgg["classifier.0.bias"]
    np.testing.assert_allclose(fc6[0, 3, 3], np.maximum(expected, 0)[::4], rtol=1e-4, atol=1e-5)
    # Likewise fc7, where only the inputs that are kept are not 0.
    inputs = np.zeros(64 * WIDTH, np.float32)
    inputs[::4] = fc6[0, 3, 3]
    expected = vgg["classifier.3.weight"] @ inputs + vgg["classifier.3.bias"]
    fc7 = layer("fc7", fc6, 1)
    np.testing.assert_allclose(fc7[0, 3, 3], np.maximum(expected, 0)[::4], rtol=1e-4, atol=1e-5)
    for path, array in arrays_of(params, model_state).items():
        assert (array == 7).all() == (not path.startswith("backbone/")), path


@pytest.mark.parametrize("kind", ["NaN", "missing", "reduced"])
def test_kinds_of_vgg_files(vgg: StateDict, tmp_path: Path, kind: str) -> None:
    """Without a classifier fc6 and fc7 stay; the reduced network has them as convolutions."""
    features = {name: array for name, array in vgg.items() if name.startswith("features")}
    first = features["features.0.weight"].transpose(2, 3, 1, 0)
    fc = {"fc6": np.float32(7), "fc7": np.float32(7)}
    if kind == "NaN":
        state_dict = features | {n: np.full_like(vgg[n], np.nan) for n in vgg.keys() - features}
    elif kind == "missing":
        state_dict = features
    else:
        state_dict = {name.removeprefix("features."): array for name, array in features.items()}
        num_fc, rng = 16 * WIDTH, np.random.default_rng(3)
        for number, shape in (("31", (num_fc, 8 * WIDTH, 3, 3)), ("33", (num_fc, num_fc, 1, 1))):
            state_dict[f"{number}.weight"] = rng.standard_normal(shape).astype(np.float32)
            state_dict[f"{number}.bias"] = rng.standard_normal(num_fc).astype(np.float32)
        fc = {
            n: state_dict[f"{i}.weight"].transpose(2, 3, 1, 0)
            for n, i in (("fc6", 31), ("fc7", 33))
        }
    found = arrays_of(load(VGG, state_dict, tmp_path)[0])
    np.testing.assert_array_equal(found["backbone/stages/0/0/conv/kernel"], first)
    for name, kernel in fc.items():
        np.testing.assert_array_equal(found[f"backbone/{name}/conv/kernel"] - kernel, 0)


def test_timm_s_vgg_is_the_same_network(vgg: StateDict, tmp_path: Path) -> None:
    """With its fully connected layers as convolutions, and other names for them."""
    timm = {name: array for name, array in vgg.items() if name.startswith("features")}
    for theirs, ours, side in (("fc1", "classifier.0", 7), ("fc2", "classifier.3", 1)):
        weight = vgg[f"{ours}.weight"]
        timm[f"pre_logits.{theirs}.weight"] = weight.reshape(len(weight), -1, side, side)
        timm[f"pre_logits.{theirs}.bias"] = vgg[f"{ours}.bias"]
    timm["head.fc.weight"] = vgg["classifier.6.weight"]
    expected, found = (arrays_of(load(VGG, each, tmp_path)[0]) for each in (vgg, timm))
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)


def test_what_does_not_fit_a_vgg_is_named(vgg: StateDict, tmp_path: Path) -> None:
    broken = vgg | {"classifier.3.weight": np.zeros((100, 100), np.float32)}
    del broken["features.21.bias"]
    with pytest.raises(WeightsError) as error:
        load(VGG, broken, tmp_path)
    assert "VGG-16 of width 4" in str(error.value)
    assert "features.21.bias is missing" in str(error.value)
    assert "classifier.3.weight is float32[100, 100]" in str(error.value)
    # All NaN is torchvision's way to say that there is no classifier; one is damage.
    broken = vgg | {"classifier.0.weight": vgg["classifier.0.weight"].copy()}
    broken["classifier.0.weight"][0, 0] = np.nan
    with pytest.raises(WeightsError, match=r"classifier\.0\.weight holds NaN or inf \(1 of"):
        load(VGG, broken, tmp_path)
    with_norms = RefineDetConfig(backbone=VGGConfig(width=WIDTH, norm="batch"))
    with pytest.raises(WeightsError, match=r"backbone\.norm is 'batch'"):
        load(with_norms, vgg, tmp_path)
