"""RetinaNet in torchvision's state dict."""

import re

from harmonic_jax.pretrained.fpn import fpn_name, fpn_renamed
from harmonic_jax.pretrained.layout import LEAF_NAMES, Layout, Path
from harmonic_jax.pretrained.resnet import resnet_name

HEADS = {"cls_head": "classification_head", "box_head": "regression_head"}
OUTPUTS = {"cls_head": "cls_logits", "box_head": "bbox_reg"}
_OLD_CONV = re.compile(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)")


def retinanet_layout() -> Layout:
    """torchvision's `retinanet_resnet50_fpn` and `_v2`, and others of that class.

    Their classes are counted like ours, with no background among the logits: what torchvision
    calls class 0 is an output that it never trains.
    """
    return Layout(retinanet_name, renamed=retinanet_renamed)


def retinanet_name(leaf: Path) -> str:
    """torchvision's name of a leaf of `models.retinanet.RetinaNet`.

    Example:
        >>> retinanet_name(("cls_head", "convs", 2, "kernel"))
        'head.classification_head.conv.2.0.weight'
        >>> retinanet_name(("fpn", "extra", 0, "bias"))
        'backbone.fpn.extra_blocks.p6.bias'

    Source:
        Names as in `torchvision.models.detection.retinanet`.
    """
    name = LEAF_NAMES[str(leaf[-1])]
    match leaf[:-1]:
        case ("backbone", *_):
            return f"backbone.body.{resnet_name(leaf[1:])}"
        case ("fpn", *_):
            return f"backbone.fpn.{fpn_name(leaf[1:])}"
        case (str(head), "convs", i):
            return f"head.{HEADS[head]}.conv.{i}.0.{name}"
        case (str(head), "norms", i):
            return f"head.{HEADS[head]}.conv.{i}.1.{name}"
        case (str(head), "output"):
            return f"head.{HEADS[head]}.{OUTPUTS[head]}.{name}"
    raise KeyError(f"{leaf} is no leaf of a RetinaNet")


def retinanet_renamed(name: str) -> str:
    """Today's name of a tensor in a file from before torchvision 0.12.

    Example:
        >>> retinanet_renamed("head.regression_head.conv.6.weight")  # ReLUs were counted
        'head.regression_head.conv.3.0.weight'
        >>> retinanet_renamed("backbone.fpn.layer_blocks.0.weight")
        'backbone.fpn.layer_blocks.0.0.weight'
        >>> retinanet_renamed("head.regression_head.conv.3.0.weight")
        'head.regression_head.conv.3.0.weight'
    """
    old = _OLD_CONV.fullmatch(name)
    if old:
        return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}"
    return fpn_renamed(name)
