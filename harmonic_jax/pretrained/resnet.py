"""ImageNet weights: a torchvision-layout ResNet or ResNeXt classifier -> a backbone."""

from pathlib import Path

from flax import nnx

from harmonic_jax.config import BackboneConfig
from harmonic_jax.pretrained import layout
from harmonic_jax.pretrained.errors import WeightsError
from harmonic_jax.pretrained.files import read_state_dict


def load_resnet(
    params: nnx.State, model_state: nnx.State, path: str | Path, config: BackboneConfig
) -> tuple[nnx.State, nnx.State]:
    """Initialise a detector's backbone from a ResNet classifier.

    The classifier's `fc` is ignored. Every other tensor must be there, with the shape of the
    configured depth, width and groups, and nothing may be left over.

    Args:
        params: trained part of the detector's state (`nnx.split(model, nnx.Param, ...)`).
        model_state: the other part.
        path: a torchvision-layout state dict, float32: .safetensors, or .pth (needs PyTorch
            to be installed; read with `weights_only=True`).
        config: the backbone; named in error messages.

    Returns:
        New `params` and `model_state`, of the same structure, with the backbone replaced.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read or does not fit; the message names the tensors.

    Source:
        Names as in `torchvision.models.resnet`.
    """
    state_dict = read_state_dict(path)

    def torch_name(leaf: layout.Path) -> str | None:
        return resnet_name(leaf[1:]) if leaf[0] == "backbone" else None

    try:
        return layout.fit_state(
            params, model_state, state_dict, layout.Layout(torch_name, ignored=("fc.",))
        )
    except WeightsError as error:
        groups = f" and {config.groups} groups" if config.groups > 1 else ""
        raise WeightsError(
            f"weights file {path} for ResNet-{config.depth} of width {config.width}{groups}: "
            f"{error}"
        ) from error


def resnet_name(leaf: layout.Path) -> str:
    """torchvision's name of a leaf of `models.resnet.ResNet`.

    Example:
        >>> resnet_name(("stages", 0, 1, "convs", 2, "kernel"))
        'layer1.1.conv3.weight'
        >>> resnet_name(("stages", 3, 0, "shortcut", 1, "var"))
        'layer4.0.downsample.1.running_var'
    """
    name = layout.LEAF_NAMES[str(leaf[-1])]
    match leaf[:-1]:
        case ("conv",):
            return f"conv1.{name}"
        case ("norm",):
            return f"bn1.{name}"
        case ("stages", int(i), j, "convs", int(k)):
            return f"layer{i + 1}.{j}.conv{k + 1}.{name}"
        case ("stages", int(i), j, "norms", int(k)):
            return f"layer{i + 1}.{j}.bn{k + 1}.{name}"
        case ("stages", int(i), j, "shortcut", k):
            return f"layer{i + 1}.{j}.downsample.{k}.{name}"
    raise KeyError(f"{leaf} is no leaf of a ResNet")
