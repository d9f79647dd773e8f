"""ImageNet weights: a VGG-16 state dict -> the fully convolutional backbone of SSD or RefineDet."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from harmonic_jax.config import VGGConfig
from harmonic_jax.models.vgg import LAYOUT
from harmonic_jax.pretrained import layout
from harmonic_jax.pretrained.errors import WeightsError
from harmonic_jax.pretrained.files import read_state_dict
from harmonic_jax.pretrained.transform import Transform

# fc6 and fc7 in torchvision's classifier, and in a file of the convolutional ("reduced") network.
CLASSIFIER = {"fc6": "classifier.0", "fc7": "classifier.3"}
REDUCED = {"fc6": "features.31", "fc7": "features.33"}


def load_vgg(
    params: nnx.State, model_state: nnx.State, path: str | Path, config: VGGConfig
) -> tuple[nnx.State, nnx.State]:
    """Initialise a detector's backbone from VGG-16.

    Of a classifier, fc6 and fc7 become convolutions by `subsampled_linear_kernel`. Where the
    file has none, or nothing but NaN in their place (torchvision's IMAGENET1K_FEATURES), they stay
    random. A file of the reduced network, whose layers are numbered 0 to 33, has them as
    convolutions.

    Args:
        params: trained part of the detector's state (`nnx.split(model, nnx.Param, ...)`).
        model_state: the other part.
        path: the state dict, float32: .safetensors, or .pth (needs PyTorch to be installed; read
            with `weights_only=True`).
        config: the backbone; named in error messages.

    Returns:
        New `params` and `model_state`, of the same structure, with the backbone replaced.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read or does not fit; the message names the tensors.

    Source:
        Names as in `torchvision.models.vgg`; reduction as in ParseNet (Liu et al. 2015).
    """
    state_dict = read_state_dict(path)
    if config.norm != "none":
        raise WeightsError(
            f"weights file {path} is for backbone.norm = none; backbone.norm is {config.norm!r}"
        )
    try:
        return layout.fit_state(params, model_state, state_dict, _layout_of(state_dict))
    except WeightsError as error:
        raise WeightsError(
            f"weights file {path} for VGG-16 of width {config.width}: {error}"
        ) from error


def _layout_of(state_dict: Mapping[str, np.ndarray]) -> layout.Layout:
    """The layout of the kind of file that this is."""
    has_plain_names = "0.weight" in state_dict
    is_reduced = has_plain_names or "features.31.weight" in state_dict
    head = state_dict.get("classifier.0.weight")
    is_classifier = head is not None and not bool(np.isnan(head).all())

    def torch_name(leaf: layout.Path) -> str | None:
        if leaf[0] != "backbone":
            return None
        if leaf[1] not in CLASSIFIER:
            return f"features.{vgg_name(leaf[1:])}"
        name = layout.LEAF_NAMES[str(leaf[-1])]
        if is_reduced:
            return f"{REDUCED[str(leaf[1])]}.{name}"
        return f"{CLASSIFIER[str(leaf[1])]}.{name}" if is_classifier else None

    def transform(leaf: layout.Path, ndim: int) -> Transform:
        if is_reduced or leaf[1] not in CLASSIFIER:
            return layout.standard_transform(leaf, ndim)
        if leaf[-1] == "bias":
            return subsampled_bias()
        if leaf[1] == "fc6":
            return subsampled_linear_kernel(side=7, every_cell=3, every_input=1)
        return subsampled_linear_kernel(side=1, every_cell=1, every_input=4)

    return layout.Layout(
        torch_name,
        transform,
        # Without its head the classifier is of no use; with it, the last layer still is not.
        ignored=("classifier.6.",) if is_classifier else ("classifier.",),
        renamed=lambda name: f"features.{name}" if has_plain_names else name,
    )


def vgg_name(leaf: layout.Path) -> str:
    """Number and kind of a leaf of the five stages among torchvision's `features`.

    Example:
        >>> vgg_name(("stages", 0, 1, "conv", "kernel"))
        '2.weight'
        >>> vgg_name(("stages", 3, 2, "conv", "bias"))
        '21.bias'
    """
    match leaf:
        case ("stages", int(i), int(j), "conv", str(kind)):
            # A convolution and its ReLU are two layers, a pool one.
            before = sum(2 * num_convs + 1 for num_convs, _ in LAYOUT[:i])
            return f"{before + 2 * j}.{layout.LEAF_NAMES[kind]}"
    raise KeyError(f"{leaf} is no leaf of VGG-16 without norms")


def subsampled_linear_kernel(*, side: int, every_cell: int, every_input: int) -> Transform:
    """A linear layer on a `side` x `side` map -> a convolution that keeps a part of it.

    `[o (c h w)]` <-> `[h' w' c' o']`: every fourth output, the inputs that the layer below keeps,
    and rows and columns from the first to the last; the convolution's holes keep what it sees.
    The way back writes zeros in the gaps.

    Args:
        side: of the map.
        every_cell: distance of the rows and columns that are kept.
        every_input: distance of the inputs that are kept.

    Example:
        >>> fc6 = subsampled_linear_kernel(side=7, every_cell=3, every_input=1)
        >>> fc6.to_ours(np.zeros((4096, 512 * 49))).shape
        (3, 3, 512, 1024)
    """
    kept = (
        slice(None, None, 4),
        slice(None, None, every_input),
        slice(None, None, every_cell),
        slice(None, None, every_cell),
    )

    def to_ours(array: np.ndarray) -> np.ndarray:
        kernel = array.reshape(array.shape[0], -1, side, side)
        return kernel[kept].transpose(2, 3, 1, 0)

    def to_torch(array: np.ndarray) -> np.ndarray:
        num_in, num_out = array.shape[2:]
        kernel = np.zeros((4 * num_out, every_input * num_in, side, side), array.dtype)
        kernel[kept] = array.transpose(3, 2, 0, 1)
        return kernel.reshape(4 * num_out, -1)

    return Transform(to_ours, to_torch)


def subsampled_bias() -> Transform:
    """The bias of `subsampled_linear_kernel`: every fourth."""

    def to_torch(array: np.ndarray) -> np.ndarray:
        bias = np.zeros(4 * len(array), array.dtype)
        bias[::4] = array
        return bias

    return Transform(lambda a: a[::4], to_torch)
