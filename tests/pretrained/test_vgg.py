"""VGG-16's weights: names against torchvision, fc6 and fc7 as convolutions against the layers."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from harmonic_jax.config import RefineDetConfig, SSDConfig, VGGConfig
from harmonic_jax.models import build_model
from harmonic_jax.models.conv import convolve
from harmonic_jax.models.retinanet import normalize_images
from harmonic_jax.pretrained import WeightsError, load_backbone

WIDTH = 4
CONFIG = SSDConfig(backbone=VGGConfig(width=WIDTH, normalization="torchvision"))
CHANNELS = (4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M")


@pytest.fixture(scope="module")
def state() -> tuple[Any, nnx.State, nnx.State]:
    """graphdef, params and rest of a narrow SSD; every value is 7."""
    abstract = nnx.eval_shape(lambda: build_model(CONFIG, 3, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
    return graphdef, *jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7, leaf.dtype), (params, rest))


@pytest.fixture(scope="module")
def classifier() -> dict[str, np.ndarray]:
    """A classifier's state dict, a sixteenth as wide as torchvision's."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "classifier.0": (64 * WIDTH, 8 * WIDTH * 49),
        "classifier.3": (64 * WIDTH, 64 * WIDTH),
        "classifier.6": (10, 64 * WIDTH),
    }
    num_in, layer = 3, 0
    for width in CHANNELS:
        if isinstance(width, int):
            shapes[f"features.{layer}"] = (width, num_in, 3, 3)
            num_in = width
        layer += 2 if isinstance(width, int) else 1
    state_dict = {}
    for name, shape in shapes.items():
        scale = (2 / np.prod(shape[1:])) ** 0.5
        state_dict[f"{name}.weight"] = rng.normal(0, scale, shape).astype(np.float32)
        state_dict[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    return state_dict


def load(state: tuple, state_dict: dict[str, np.ndarray], folder: Path) -> tuple:
    path = folder / "vgg.safetensors"
    save_file(state_dict, path)
    return load_backbone(*state[1:], path, CONFIG)


def test_features_are_torchvisions(
    state: tuple, classifier: dict[str, np.ndarray], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="torchvision is the oracle")
    try:
        from torchvision.models.vgg import make_layers
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    features = make_layers(list(CHANNELS))
    features.load_state_dict(
        {
            name.removeprefix("features."): torch.from_numpy(array)
            for name, array in classifier.items()
            if name.startswith("features.")
        }
    )
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    x = torch.from_numpy(np.array(normalize_images(jnp.asarray(images)))).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = [features[:23](x), features[:30](x)]  # conv4_3 and conv5_3, rectified
    graphdef = state[0]
    params, rest = load(state, classifier, tmp_path)

    @jax.jit
    def run(params: nnx.State, rest: nnx.State) -> tuple:
        return nnx.merge(graphdef, params, rest).backbone(images)

    for ours, theirs in zip(run(params, rest)[:2], expected, strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-4)


def test_fc6_sees_what_the_linear_layer_saw(
    state: tuple, classifier: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """On a 7 x 7 map that is 0 between the cells that are kept, both say the same."""
    params, _ = load(state, classifier, tmp_path)
    rng = np.random.default_rng(2)
    x = np.zeros((1, 7, 7, 8 * WIDTH), np.float32)
    x[:, ::3, ::3] = rng.standard_normal((1, 3, 3, 8 * WIDTH))

    def layer(name: str, x: jax.Array, dilation: int) -> jax.Array:
        leaves = params["backbone"][name]["conv"]
        y = convolve(x, leaves["kernel"][...], stride=1, dilation=dilation)
        return jax.nn.relu(y + leaves["bias"][...].reshape(1, 1, 1, -1))

    fc6 = layer("fc6", jnp.asarray(x), RefineDetConfig().fc6_dilation)
    flat = x.transpose(0, 3, 1, 2).reshape(-1)  # channels first
    expected = classifier["classifier.0.weight"] @ flat + classifier["classifier.0.bias"]
    np.testing.assert_allclose(fc6[0, 3, 3], np.maximum(expected, 0)[::4], rtol=1e-4, atol=1e-5)
    # Likewise fc7, where only the inputs that are kept are not 0.
    inputs = np.zeros(64 * WIDTH, np.float32)
    inputs[::4] = fc6[0, 3, 3]
    expected = classifier["classifier.3.weight"] @ inputs + classifier["classifier.3.bias"]
    fc7 = layer("fc7", fc6, 1)
    np.testing.assert_allclose(fc7[0, 3, 3], np.maximum(expected, 0)[::4], rtol=1e-4, atol=1e-5)


def test_only_the_backbone_is_replaced(
    state: tuple, classifier: dict[str, np.ndarray], tmp_path: Path
) -> None:
    params, _ = load(state, classifier, tmp_path)
    flat = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
    for path, values in flat.items():
        assert (values == 7).all() == (path[0] != "backbone"), path


@pytest.mark.parametrize("kind", ["NaN", "missing"])
def test_without_a_classifier_fc6_and_fc7_stay(
    state: tuple, classifier: dict[str, np.ndarray], tmp_path: Path, kind: str
) -> None:
    state_dict = {
        name: np.full_like(array, np.nan) if name.startswith("classifier") else array
        for name, array in classifier.items()
        if kind == "NaN" or name.startswith("features")
    }
    params, _ = load(state, state_dict, tmp_path)
    assert (params["backbone"]["fc6"]["conv"]["kernel"][...] == 7).all()
    first = params["backbone"]["stages"][0][0]["conv"]["kernel"][...]
    np.testing.assert_array_equal(first, classifier["features.0.weight"].transpose(2, 3, 1, 0))


def test_the_reduced_network(
    state: tuple, classifier: dict[str, np.ndarray], tmp_path: Path
) -> None:
    state_dict = {
        name.removeprefix("features."): array
        for name, array in classifier.items()
        if name.startswith("features.")
    }
    rng = np.random.default_rng(3)
    num_fc = 16 * WIDTH
    for name, shape in (("31", (num_fc, 8 * WIDTH, 3, 3)), ("33", (num_fc, num_fc, 1, 1))):
        state_dict[f"{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
        state_dict[f"{name}.bias"] = rng.standard_normal(num_fc).astype(np.float32)
    params, _ = load(state, state_dict, tmp_path)
    for name, number in (("fc6", "31"), ("fc7", "33")):
        np.testing.assert_array_equal(
            params["backbone"][name]["conv"]["kernel"][...],
            state_dict[f"{number}.weight"].transpose(2, 3, 1, 0),
        )


def test_what_does_not_fit_is_named(
    state: tuple, classifier: dict[str, np.ndarray], tmp_path: Path
) -> None:
    broken = dict(classifier)
    del broken["features.21.bias"]
    broken["classifier.3.weight"] = np.zeros((100, 100), np.float32)
    with pytest.raises(WeightsError) as error:
        load(state, broken, tmp_path)
    assert "VGG-16 of width 4" in str(error.value)
    assert "features.21.bias is missing" in str(error.value)
    assert "classifier.3.weight is float32[100, 100]" in str(error.value)
    # All NaN is torchvision's way to say that there is no classifier; one is damage.
    broken = classifier | {"classifier.0.weight": classifier["classifier.0.weight"].copy()}
    broken["classifier.0.weight"][0, 0] = np.nan
    with pytest.raises(WeightsError, match=r"classifier\.0\.weight holds NaN or inf \(1 of"):
        load(state, broken, tmp_path)


def test_weights_and_norms_exclude_each_other(
    state: tuple, classifier: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "vgg.safetensors"
    save_file(classifier, path)
    config = SSDConfig(backbone=VGGConfig(width=WIDTH, norm="batch"))
    with pytest.raises(WeightsError, match=r"backbone\.norm is 'batch'"):
        load_backbone(*state[1:], path, config)
