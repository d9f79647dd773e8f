"""Layouts of PyTorch against ours: by what the layers compute, and back without a trace.

The tables against torchvision itself on PyTorch's `meta` device and with abstract states, so that
full-size models cost no arrays.
"""

import inspect
from typing import Any

import numpy as np
import pytest
from flax import nnx

from harmonic_jax.config import SSDConfig, VGGConfig
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import WeightsError, detector_layout
from harmonic_jax.pretrained.convert import COUNTER
from harmonic_jax.pretrained.layout import (
    CONV_KERNEL,
    LINEAR_KERNEL,
    SAME,
    TRANSPOSED_CONV_KERNEL,
    Layout,
    Transform,
    background_last,
    flattened_linear_kernel,
)
from harmonic_jax.pretrained.models import CLASSIFIERS, COCO_91, DETECTORS
from harmonic_jax.pretrained.torchvision import RESNET, backbone_layout


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (SAME, (5,)),
        (CONV_KERNEL, (4, 3, 5, 2)),
        (LINEAR_KERNEL, (4, 3)),
        (TRANSPOSED_CONV_KERNEL, (4, 3, 2, 2)),
        (flattened_linear_kernel(2, 3), (4, 30)),
        (background_last(3), (8,)),
        (CONV_KERNEL.then(background_last(3)), (8, 2, 3, 3)),
        (LINEAR_KERNEL.then(background_last(3, per_class=4)), (16, 6)),
    ],
)
def test_there_and_back_is_the_same(transform: Transform, shape: tuple[int, ...]) -> None:
    array = numbers(*shape)
    ours = transform.to_ours(array)
    np.testing.assert_array_equal(transform.to_torch(ours), array)
    assert sorted(ours.ravel()) == sorted(array.ravel())
    assert transform.torch_shape(ours.shape) == shape
    assert transform is SAME or ours.shape != shape or not np.array_equal(ours, array)


def test_a_linear_layer_on_a_flattened_map() -> None:
    weight, feature = numbers(4, 5 * 2 * 3), numbers(5, 2, 3)  # [o (c h w)], [c h w]
    expected = weight @ feature.reshape(-1)
    kernel = flattened_linear_kernel(2, 3).to_ours(weight)
    np.testing.assert_allclose(feature.transpose(1, 2, 0).reshape(-1) @ kernel, expected, rtol=1e-5)


def test_a_transposed_convolution() -> None:
    torch = pytest.importorskip("torch", reason="the layout is PyTorch's")
    weight, x = numbers(3, 4, 2, 2), numbers(1, 3, 5, 6)
    expected = torch.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), stride=2)
    kernel = TRANSPOSED_CONV_KERNEL.to_ours(weight)
    ours = np.einsum("bihw,yxio->bohywx", x, kernel).reshape(1, 4, 10, 12)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_background_moves_from_the_first_to_the_last_row_of_every_anchor() -> None:
    kernel = numbers(2 * 4, 5)  # 2 anchors of background and 3 classes
    ours = LINEAR_KERNEL.then(background_last(3)).to_ours(kernel)
    for anchor in range(2):
        for label in range(4):
            there = 4 * anchor + (label + 1) % 4
            np.testing.assert_array_equal(ours[:, 4 * anchor + label], kernel[there])
    bias = numbers(4 * 4)  # of background and 3 classes, 4 numbers each, which stay together
    deltas = background_last(3, per_class=4).to_ours(bias)
    np.testing.assert_array_equal(deltas.reshape(4, 4), bias.reshape(4, 4)[[1, 2, 3, 0]])


def test_a_model_that_torchvision_has_not() -> None:
    layout = detector_layout(SSDConfig(), 3)
    with pytest.raises(WeightsError, match=r"has no place for backbone/stages/0/0/norm/scale"):
        layout.entry(("backbone", "stages", 0, 0, "norm", "scale"), 1)
    partial = backbone_layout(VGGConfig(), {})
    assert partial.entry(("head", "cls", 0, "kernel"), 4) is None
    assert partial.entry(("backbone", "stages", 3, 2, "conv", "bias"), 1) == (
        "features.21.bias",
        SAME,
    )


@pytest.fixture(scope="module")
def torchvision() -> Any:
    try:
        import torchvision.models.detection
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision


def shapes_there(model: Any) -> dict[str, tuple[int, ...]]:
    state = model.state_dict()
    return {name: tuple(a.shape) for name, a in state.items() if not name.endswith(COUNTER)}


def shapes_here(model: nnx.Module, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Of our arrays, as the layout says they are there."""
    shapes = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        shape = leaf.get_value().shape
        name, transform = layout.entry(path, len(shape))
        assert name not in shapes, f"{name} is given twice"
        shapes[name] = transform.torch_shape(shape)
    return shapes


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_are_torchvisions(torchvision: Any, name: str) -> None:
    """Names and shapes, the classes of the published file, and the epsilon of its norms."""
    import torch

    ours = DETECTORS[name]
    num_classes = len(ours.class_names)
    model = nnx.eval_shape(lambda: build_model(ours.model, num_classes, rngs=nnx.Rngs(0)))
    build = getattr(torchvision.models.detection, name)
    with torch.device("meta"):
        theirs = build(weights=None, weights_backbone=None)
    layout = detector_layout(ours.model, num_classes)
    assert shapes_here(model, layout) == shapes_there(theirs)
    assert all(layout.renamed(n) == n for n in shapes_there(theirs))

    categories = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    assert list(COCO_91) == categories
    assert ours.class_names == tuple(categories[i] for i in ours.category_ids)
    assert ours.data.eval_split == "val2017"

    # It overwrites that of frozen norms for the files called COCO_V1 of its first FPN models.
    eps = 0.0 if "overwrite_eps(model, 0.0)" in inspect.getsource(build) else 1e-5
    assert getattr(ours.model.backbone, "norm_eps", 1e-5) == eps


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n != "vgg16"])
def test_backbones_have_the_names_and_shapes_of_torchvision(torchvision: Any, name: str) -> None:
    import torch

    model = nnx.eval_shape(lambda: build_model(CLASSIFIERS[name], 1, rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
    expected = {n: s for n, s in shapes_there(theirs).items() if not n.startswith("fc.")}
    assert shapes_here(model.backbone, Layout(RESNET)) == expected
