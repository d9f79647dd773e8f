"""The table of torchvision's models against torchvision itself: names, shapes, classes.

On PyTorch's `meta` device and with abstract states, so that full-size models cost no arrays.
"""

from typing import Any

import pytest
from flax import nnx

from harmonic_jax.models import build_model
from harmonic_jax.pretrained import detector_layout
from harmonic_jax.pretrained.coco_classes import COCO_91
from harmonic_jax.pretrained.layout import COUNTER, Layout
from harmonic_jax.pretrained.models import CLASSIFIERS, DETECTORS


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
    """Of our leaves, as the layout says they are there."""
    shapes = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        name = layout.name(path)
        assert name is not None, path
        assert name not in shapes, f"{name} is given twice"
        shape = leaf.get_value().shape
        shapes[name] = layout.transform(path, len(shape)).torch_shape(shape)
    return shapes


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_have_the_names_and_shapes_of_torchvision(torchvision: Any, name: str) -> None:
    import torch

    ours = DETECTORS[name]
    num_classes = len(ours.class_names)
    model = nnx.eval_shape(lambda: build_model(ours.model, num_classes, rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        theirs = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    layout = detector_layout(ours.model, num_classes)
    assert shapes_here(model, layout) == shapes_there(theirs)
    assert all(layout.renamed(n) == n for n in shapes_there(theirs))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_published_file_has_the_table_s_classes(torchvision: Any, name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    categories = weights.meta["categories"]
    assert list(COCO_91) == categories
    ours = DETECTORS[name]
    assert ours.class_names == tuple(categories[i] for i in ours.category_ids)
    assert ours.data.eval_split == "val2017"


@pytest.mark.parametrize("name", DETECTORS)
def test_the_epsilon_is_what_torchvision_sets(torchvision: Any, name: str) -> None:
    """It overwrites that of frozen norms for the files called COCO_V1 of its first FPN models."""
    import inspect

    source = inspect.getsource(getattr(torchvision.models.detection, name))
    backbone = DETECTORS[name].model.backbone
    expected = 0.0 if "overwrite_eps(model, 0.0)" in source else 1e-5
    assert getattr(backbone, "norm_eps", 1e-5) == expected


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n != "vgg16"])
def test_backbones_have_the_names_and_shapes_of_torchvision(torchvision: Any, name: str) -> None:
    import torch

    from harmonic_jax.pretrained.resnet import resnet_name

    model = nnx.eval_shape(lambda: build_model(CLASSIFIERS[name], 1, rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
    expected = {n: s for n, s in shapes_there(theirs).items() if not n.startswith("fc.")}
    assert shapes_here(model.backbone, Layout(resnet_name)) == expected
