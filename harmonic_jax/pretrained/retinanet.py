"""torchvision's RetinaNet state dict -> ours."""

from pathlib import Path

import numpy as np
from flax import nnx

from harmonic_jax.models.norm import EPS
from harmonic_jax.pretrained import layout
from harmonic_jax.pretrained.files import WeightsError, read_state_dict
from harmonic_jax.pretrained.resnet import resnet_name


def load_torchvision_retinanet(
    params: nnx.State, rest: nnx.State, path: str | Path, *, batch_norm_eps: float = EPS
) -> tuple[nnx.State, nnx.State]:
    """Initialise a whole RetinaNet from a state dict of torchvision's.

    `retinanet_resnet50_fpn` is `RetinaNetConfig(extra_levels_from="p5")`;
    `retinanet_resnet50_fpn_v2` has `head_norm="group"` and `extra_levels_from="c5"`. Both count
    background and the gaps of COCO's numbering among their 91 classes.

    Args:
        params: trained part of the detector's state (`nnx.split(model, nnx.Param, ...)`).
        rest: the other part.
        path: the state dict, float32: .safetensors, or .pth (needs PyTorch to be installed; read
            with `weights_only=True`).
        batch_norm_eps: the epsilon that the file's batch norms add to the variance, >= 0. It is 0
            in torchvision's published COCO weights of `retinanet_resnet50_fpn`, the default
            everywhere else.

    Returns:
        New `params` and `rest`, of the same structure.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read or does not fit; the message names the tensors.

    Source:
        Names as in `torchvision.models.detection.retinanet`.
    """
    state_dict = read_state_dict(path)
    for name, array in state_dict.items():
        if name.endswith("running_var") and batch_norm_eps != EPS:
            # Our norms add EPS: moving the variance makes the sum what it was.
            state_dict[name] = (array.astype(np.float64) + (batch_norm_eps - EPS)).astype(
                array.dtype
            )
    try:
        return layout.fit_state(params, rest, state_dict, layout.Layout(retinanet_name))
    except WeightsError as error:
        raise WeightsError(f"weights file {path} for RetinaNet: {error}") from error


def retinanet_name(leaf: layout.Path) -> str:
    """torchvision's name of a leaf of `models.retinanet.RetinaNet`.

    Example:
        >>> retinanet_name(("cls_head", "convs", 2, "kernel"))
        'head.classification_head.conv.2.0.weight'
        >>> retinanet_name(("fpn", "extra", 0, "bias"))
        'backbone.fpn.extra_blocks.p6.bias'
    """
    heads = {"cls_head": "classification_head", "box_head": "regression_head"}
    outputs = {"cls_head": "cls_logits", "box_head": "bbox_reg"}
    name = layout.LEAF_NAMES[str(leaf[-1])]
    match leaf[:-1]:
        case ("backbone", *_):
            return f"backbone.body.{resnet_name(leaf[1:])}"
        case ("fpn", "laterals", i):
            return f"backbone.fpn.inner_blocks.{i}.0.{name}"
        case ("fpn", "outputs", i):
            return f"backbone.fpn.layer_blocks.{i}.0.{name}"
        case ("fpn", "extra", int(i)):
            return f"backbone.fpn.extra_blocks.p{i + 6}.{name}"
        case (str(head), "convs", i):
            return f"head.{heads[head]}.conv.{i}.0.{name}"
        case (str(head), "norms", i):
            return f"head.{heads[head]}.conv.{i}.1.{name}"
        case (str(head), "output"):
            return f"head.{heads[head]}.{outputs[head]}.{name}"
    raise KeyError(f"{leaf} is no leaf of a RetinaNet")
