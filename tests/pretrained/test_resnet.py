"""Loading an ImageNet backbone: names, layouts and refusals. Values: see test_torchvision."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from harmonic_jax.config import BackboneConfig, RetinaNetConfig
from harmonic_jax.models import build_model
from harmonic_jax.pretrained import WeightsError, load_backbone
from harmonic_jax.pretrained.resnet import resnet_name


def tiny_config(**backbone: object) -> RetinaNetConfig:
    backbone = {"depth": 18, "width": 8, "norm": "batch", **backbone}
    return RetinaNetConfig(backbone=BackboneConfig(**backbone), channels=8, head_convs=0)


def zero_state(config: RetinaNetConfig) -> tuple[nnx.State, nnx.State]:
    model = nnx.eval_shape(lambda: build_model(config, 2, rngs=nnx.Rngs(0)))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, rest))


def torch_layout(width: int = 8) -> dict[str, np.ndarray]:
    """A ResNet-18 classifier's state dict, written from torchvision's names."""
    rng = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}

    def conv_and_norm(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        state[f"{conv}.weight"] = rng.standard_normal(shape)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{name}"] = rng.standard_normal(shape[0])

    conv_and_norm("conv1", "bn1", (width, 3, 7, 7))
    num_in = width
    for i in range(4):
        num_out = width * 2**i
        for j in range(2):
            block = f"layer{i + 1}.{j}"
            conv_and_norm(f"{block}.conv1", f"{block}.bn1", (num_out, num_in, 3, 3))
            conv_and_norm(f"{block}.conv2", f"{block}.bn2", (num_out, num_out, 3, 3))
            if num_in != num_out:
                downsample = f"{block}.downsample"
                shape = (num_out, num_in, 1, 1)
                conv_and_norm(f"{downsample}.0", f"{downsample}.1", shape)
            num_in = num_out
    state["fc.weight"], state["fc.bias"] = rng.standard_normal((10, num_in)), np.zeros(10)
    state = {name: array.astype(np.float32) for name, array in state.items()}
    return state | {"bn1.num_batches_tracked": np.array(3)}


def save(path: Path, state: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(tmp_path / "resnet18.safetensors", torch_layout())


@pytest.mark.parametrize("changes", [{}, {"norm": "frozen"}, {"frozen_stages": 3}])
def test_every_leaf_of_the_backbone_is_replaced(weights: Path, changes: dict) -> None:
    config, state = tiny_config(**changes), torch_layout()
    before = zero_state(config)
    after = load_backbone(*before, weights, config)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    seen = set()
    for part in after:
        for path, leaf in nnx.to_flat_state(part):
            if path[0] != "backbone":
                assert not leaf[...].any()
                continue
            name = resnet_name(path[1:])
            expected = state[name]
            if expected.ndim == 4:
                expected = np.moveaxis(expected, (0, 1), (3, 2))
            np.testing.assert_array_equal(leaf[...], expected)
            seen.add(name)
    assert seen == {n for n in state if not n.startswith("fc.") and "tracked" not in n}
    assert all(not leaf.any() for leaf in jax.tree.leaves(before))  # the old state is not touched


def test_names_differ_by_their_leaf() -> None:
    leaves = ("scale", "bias", "mean", "var")
    names = [resnet_name(("stages", 0, 1, "norms", 0, leaf)) for leaf in leaves]
    assert names == [
        "layer1.1.bn1.weight",
        "layer1.1.bn1.bias",
        "layer1.1.bn1.running_mean",
        "layer1.1.bn1.running_var",
    ]


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
        (
            lambda s: s.update({"layer2.1.norm2.bias": s.pop("layer2.1.bn2.bias")}),
            r"layer2\.1\.bn2\.bias is missing \(there is layer2\.1\.norm2\.bias\)$",
        ),
        (lambda s: s["bn1.bias"].__setitem__(3, np.nan), r"bn1\.bias holds NaN or inf \(1 of 8"),
        (
            lambda s: s["layer4.1.bn2.running_var"].fill(-np.inf),
            r"layer4\.1\.bn2\.running_var holds NaN or inf \(64 of 64",
        ),
    ],
    ids=["missing", "extra", "shape", "dtype", "side by side", "NaN", "inf"],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: object, message: str) -> None:
    state, config = torch_layout(), tiny_config()
    change(state)
    path = save(tmp_path / "weights.safetensors", state)
    with pytest.raises(WeightsError, match=message) as caught:
        load_backbone(*zero_state(config), path, config)
    assert "ResNet-18 of width 8" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_width_is_refused_in_one_line(weights: Path) -> None:
    config = tiny_config(width=16)
    with pytest.raises(WeightsError, match=r"and \d+ more$") as caught:
        load_backbone(*zero_state(config), weights, config)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_widened_which_loses_nothing(tmp_path: Path, dtype: str) -> None:
    state, config = torch_layout(), tiny_config()
    halves = {n: a.astype(dtype) if a.ndim else a for n, a in state.items()}
    path = save(tmp_path / "halves.safetensors", halves)
    params, _ = load_backbone(*zero_state(config), path, config)
    expected = halves["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["backbone"]["conv"]["kernel"][...], expected)


def test_another_architecture_is_called_by_its_name(tmp_path: Path) -> None:
    config = tiny_config()
    vgg = {f"features.{i}.weight": np.zeros(3, np.float32) for i in (0, 2, 5, 28)}
    deeper = torch_layout() | {f"layer3.{i}.bn1.bias": np.zeros(32, np.float32) for i in range(6)}
    for state, words in ((vgg, "VGG-16"), (deeper, "ResNet-34")):
        path = save(tmp_path / "other.safetensors", state)
        with pytest.raises(WeightsError) as caught:
            load_backbone(*zero_state(config), path, config)
        assert str(caught.value).endswith(f"The file looks like {words}, the model is ResNet-18")
