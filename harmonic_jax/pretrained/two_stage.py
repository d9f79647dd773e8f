"""torchvision's Faster R-CNN and Mask R-CNN state dicts <-> ours."""

import re

from harmonic_jax.config import FasterRCNNConfig
from harmonic_jax.pretrained.fpn import fpn_name, fpn_renamed
from harmonic_jax.pretrained.layout import LEAF_NAMES, Layout, Path, standard_transform
from harmonic_jax.pretrained.resnet import resnet_name
from harmonic_jax.pretrained.transform import (
    Transform,
    background_last,
    class_rows,
    flattened_linear_kernel,
    transposed_conv_kernel,
)

_NUM_BOX_CONVS = 4
_OLD_RPN_CONV = re.compile(r"rpn\.head\.conv\.(weight|bias)")
_OLD_MASK_CONV = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)")


def two_stage_layout(config: FasterRCNNConfig, num_classes: int) -> Layout:
    """torchvision's `fasterrcnn_resnet50_fpn`, `maskrcnn_resnet50_fpn`, their `_v2`, and others of
    those classes.

    Background is the first class there and the last here, in logits, box deltas and masks.

    Args:
        config: the detector; of it the layout needs the box head.
        num_classes: without background.
    """
    head = config.box_head

    def transform(leaf: Path, ndim: int) -> Transform:
        return _transform(leaf, ndim, pool_size=head.pool_size, num_classes=num_classes)

    def name(leaf: Path) -> str:
        if leaf[:2] == ("box_head", "hidden") and head.layers == "four_conv_fc":
            # One sequence: four convolutions, the flattening, the hidden layer.
            return f"roi_heads.box_head.{_NUM_BOX_CONVS + 1}.{LEAF_NAMES[str(leaf[-1])]}"
        return two_stage_name(leaf)

    return Layout(name, transform, renamed=two_stage_renamed)


def two_stage_name(leaf: Path) -> str:
    """torchvision's name of a leaf of `models.faster_rcnn.FasterRCNN` or `.mask_rcnn.MaskRCNN`.

    Example:
        >>> two_stage_name(("rpn", "convs", 1, "bias"))
        'rpn.head.conv.1.0.bias'
        >>> two_stage_name(("box_head", "hidden", 0, "kernel"))
        'roi_heads.box_head.fc6.weight'
        >>> two_stage_name(("mask_head", "upsample", "kernel"))
        'roi_heads.mask_predictor.conv5_mask.weight'

    Source:
        Names as in `torchvision.models.detection.faster_rcnn`, `.rpn` and `.mask_rcnn`.
    """
    name = LEAF_NAMES[str(leaf[-1])]
    outputs = {"logits": "cls_score", "deltas": "bbox_pred"}
    match leaf[:-1]:
        case ("backbone", *_):
            return f"backbone.body.{resnet_name(leaf[1:])}"
        case ("fpn", *_):
            return f"backbone.fpn.{fpn_name(leaf[1:])}"
        case ("rpn", "convs", i):
            return f"rpn.head.conv.{i}.0.{name}"
        case ("rpn", "objectness"):
            return f"rpn.head.cls_logits.{name}"
        case ("rpn", "deltas"):
            return f"rpn.head.bbox_pred.{name}"
        case ("box_head" | "mask_head" as head, "convs", "convs", i):
            return f"roi_heads.{head}.{i}.0.{name}"
        case ("box_head" | "mask_head" as head, "convs", "norms", i):
            return f"roi_heads.{head}.{i}.1.{name}"
        case ("box_head", "hidden", int(i)):
            return f"roi_heads.box_head.fc{i + 6}.{name}"
        case ("box_head", "logits" | "deltas" as output):
            return f"roi_heads.box_predictor.{outputs[output]}.{name}"
        case ("mask_head", "upsample"):
            return f"roi_heads.mask_predictor.conv5_mask.{name}"
        case ("mask_head", "output"):
            return f"roi_heads.mask_predictor.mask_fcn_logits.{name}"
    raise KeyError(f"{leaf} is no leaf of a two-stage detector")


def two_stage_renamed(name: str) -> str:
    """Today's name of a tensor in a file from before torchvision 0.12.

    Example:
        >>> two_stage_renamed("rpn.head.conv.weight")
        'rpn.head.conv.0.0.weight'
        >>> two_stage_renamed("roi_heads.mask_head.mask_fcn1.bias")  # counted from 1
        'roi_heads.mask_head.0.0.bias'
        >>> two_stage_renamed("backbone.fpn.inner_blocks.2.bias")
        'backbone.fpn.inner_blocks.2.0.bias'
    """
    name = _OLD_RPN_CONV.sub(r"rpn.head.conv.0.0.\1", name)
    old = _OLD_MASK_CONV.fullmatch(name)
    if old:
        return f"roi_heads.mask_head.{int(old[1]) - 1}.0.{old[2]}"
    return fpn_renamed(name)


def _transform(leaf: Path, ndim: int, *, pool_size: int, num_classes: int) -> Transform:
    """Kernels, and the order of classes on the last axis of our outputs."""
    standard = standard_transform(leaf, ndim)
    match leaf:
        case ("box_head", "hidden", 0, "kernel"):
            return flattened_linear_kernel(pool_size, pool_size)
        case ("mask_head", "upsample", "kernel"):
            return transposed_conv_kernel()
        case ("box_head", "logits", _) | ("mask_head", "output", _):
            return standard.then(background_last(num_classes))
        case ("box_head", "deltas", _):
            return standard.then(class_rows(num_classes, 4, has_background=True))
    return standard
