"""torchvision's models as tables of rules: names as in `torchvision.models` and `.detection`.

detector_layout(config, num_classes)      RetinaNet, SSD, Faster R-CNN, Mask R-CNN, and their v2
backbone_layout(config, state_dict)       ResNet, ResNeXt and VGG-16 classifiers
"""

import re
from collections.abc import Mapping

import numpy as np

from harmonic_jax.config import (
    BackboneConfig,
    EfficientNetLiteConfig,
    FasterRCNNConfig,
    ModelConfig,
    ResNetConfig,
    RetinaNetConfig,
    RTDETRConfig,
    SSDConfig,
)
from harmonic_jax.pretrained.files import WeightsError
from harmonic_jax.pretrained.layout import (
    TRANSPOSED_CONV_KERNEL,
    Layout,
    Rule,
    background_last,
    every_output,
    flattened_linear_kernel,
    prefixed,
    subsampled_linear_kernel,
    whole_map,
)
from harmonic_jax.pretrained.transformers import rtdetr_layout

RESNET = (
    Rule("conv", "conv1"),
    Rule("norm", "bn1"),
    Rule("stages/{i}/{j}/convs/{k}", "layer{i+1}.{j}.conv{k+1}"),
    Rule("stages/{i}/{j}/norms/{k}", "layer{i+1}.{j}.bn{k+1}"),
    Rule("stages/{i}/{j}/shortcut/{k}", "layer{i+1}.{j}.downsample.{k}"),
)
# As timm writes it: of the three convolutions of the stem each has a norm and a ReLU behind it.
RESNET_D = (
    Rule("stem_convs/{i}", "conv1.{3i}"),
    Rule("stem_norms/{i}", "conv1.{3i+1}"),
    Rule("conv", "conv1.6"),
    *RESNET[1:4],
    Rule("stages/{i}/{j}/shortcut/{k}", "layer{i+1}.{j}.downsample.{k+1}"),
)
# A convolution and its ReLU are two layers, a pool one.
_VGG_BELOW_CONV5 = (
    Rule("stages/0/{j}/conv", "features.{2j}"),
    Rule("stages/1/{j}/conv", "features.{2j+5}"),
    Rule("stages/2/{j}/conv", "features.{2j+10}"),
    Rule("stages/3/{j}/conv", "features.{2j+17}"),
)
VGG_16 = (*_VGG_BELOW_CONV5, Rule("stages/4/{j}/conv", "features.{2j+24}"))
# As efficientnet-lite-pytorch names them.
EFFICIENTNET = (
    Rule("stem", "_conv_stem"),
    Rule("stem_norm", "_bn0"),
    Rule("blocks/{i}/expand", "_blocks.{i}._expand_conv"),
    Rule("blocks/{i}/expand_norm", "_blocks.{i}._bn0"),
    Rule("blocks/{i}/depthwise", "_blocks.{i}._depthwise_conv"),
    Rule("blocks/{i}/depthwise_norm", "_blocks.{i}._bn1"),
    Rule("blocks/{i}/project", "_blocks.{i}._project_conv"),
    Rule("blocks/{i}/project_norm", "_blocks.{i}._bn2"),
)
_PYRAMID = (
    Rule("laterals/{i}", "inner_blocks.{i}.0"),
    Rule("lateral_norms/{i}", "inner_blocks.{i}.1"),
    Rule("outputs/{i}", "layer_blocks.{i}.0"),
    Rule("output_norms/{i}", "layer_blocks.{i}.1"),
    Rule("extra/{i}", "extra_blocks.p{i+6}"),
)
_RESNET_WITH_PYRAMID = prefixed(RESNET, "backbone/", "backbone.body.") + prefixed(
    _PYRAMID, "fpn/", "backbone.fpn."
)
# Classes are counted like ours, with no background among the logits: what torchvision calls class
# 0 is an output that it never trains.
_RETINANET = (
    *_RESNET_WITH_PYRAMID,
    Rule("cls_head/convs/{i}", "head.classification_head.conv.{i}.0"),
    Rule("cls_head/norms/{i}", "head.classification_head.conv.{i}.1"),
    Rule("cls_head/output", "head.classification_head.cls_logits"),
    Rule("box_head/convs/{i}", "head.regression_head.conv.{i}.0"),
    Rule("box_head/norms/{i}", "head.regression_head.conv.{i}.1"),
    Rule("box_head/output", "head.regression_head.bbox_reg"),
)


def _ssd(num_classes: int) -> tuple[Rule, ...]:
    """Without norms. Its `features` end with conv4_3; what follows is `extra.0`, fc6 and fc7
    behind conv5_3."""
    classes = background_last(num_classes)
    return (
        *prefixed(_VGG_BELOW_CONV5, "backbone/", "backbone."),
        Rule("backbone/stages/4/{j}/conv", "backbone.extra.0.{2j+1}"),
        Rule("backbone/fc6/conv", "backbone.extra.0.7.1"),
        Rule("backbone/fc7/conv", "backbone.extra.0.7.3"),
        Rule("l2_norms/0/scale", "backbone.scale_weight"),
        Rule("extra/{i}/{j}/conv", "backbone.extra.{i+1}.{2j}"),
        Rule("head/cls/{i}", "head.classification_head.module_list.{i}", outputs=classes),
        Rule("head/box/{i}", "head.regression_head.module_list.{i}"),
    )


def _two_stage(config: FasterRCNNConfig, num_classes: int) -> tuple[Rule, ...]:
    """Background is the first class there and the last here, in logits, box deltas and masks."""
    classes = background_last(num_classes)
    deltas = background_last(num_classes, per_class=4)
    has_convs = config.box_head.layers == "four_conv_fc"  # then all is one sequence
    size = config.box_head.pool_size
    flattened = flattened_linear_kernel(size, size)
    return (
        *_RESNET_WITH_PYRAMID,
        Rule("rpn/convs/{i}", "rpn.head.conv.{i}.0"),
        Rule("rpn/objectness", "rpn.head.cls_logits"),
        Rule("rpn/deltas", "rpn.head.bbox_pred"),
        Rule("box_head/convs/convs/{i}", "roi_heads.box_head.{i}.0"),
        Rule("box_head/convs/norms/{i}", "roi_heads.box_head.{i}.1"),
        Rule("box_head/hidden/0", f"roi_heads.box_head.{5 if has_convs else 'fc6'}", flattened),
        Rule("box_head/hidden/1", "roi_heads.box_head.fc7"),
        Rule("box_head/logits", "roi_heads.box_predictor.cls_score", outputs=classes),
        Rule("box_head/deltas", "roi_heads.box_predictor.bbox_pred", outputs=deltas),
        Rule("mask_head/convs/convs/{i}", "roi_heads.mask_head.{i}.0"),
        Rule("mask_head/convs/norms/{i}", "roi_heads.mask_head.{i}.1"),
        Rule("mask_head/upsample", "roi_heads.mask_predictor.conv5_mask", TRANSPOSED_CONV_KERNEL),
        Rule("mask_head/output", "roi_heads.mask_predictor.mask_fcn_logits", outputs=classes),
    )


# Names in files from before torchvision 0.12, which had no level for blocks and counted ReLUs.
_OLD_NAMES = (
    (r"(.*(?:inner|layer)_blocks\.\d+)\.(weight|bias)", lambda m: f"{m[1]}.0.{m[2]}"),
    (
        r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)",
        lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
    ),
    (r"rpn\.head\.conv\.(weight|bias)", lambda m: f"rpn.head.conv.0.0.{m[1]}"),
    (
        r"(roi_heads\.mask_head)\.mask_fcn(\d)\.(weight|bias)",
        lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}",
    ),
)


def todays_name(name: str) -> str:
    """A detector's tensor in a file of any version of torchvision -> its name since 0.12.

    Example:
        >>> todays_name("head.regression_head.conv.6.weight")
        'head.regression_head.conv.3.0.weight'
        >>> todays_name("head.regression_head.conv.3.0.weight")
        'head.regression_head.conv.3.0.weight'
        >>> todays_name("backbone.fpn.inner_blocks.2.bias")
        'backbone.fpn.inner_blocks.2.0.bias'
        >>> todays_name("roi_heads.mask_head.mask_fcn1.bias")  # counted from 1
        'roi_heads.mask_head.0.0.bias'
    """
    for pattern, today in _OLD_NAMES:
        old = re.fullmatch(pattern, name)
        if old:
            return today(old)
    return name


def detector_layout(config: ModelConfig, num_classes: int) -> Layout:
    """How torchvision writes a detector; `num_classes` is without background.

    Raises:
        WeightsError: torchvision has no such detector.
    """
    match config:
        case RetinaNetConfig():
            return Layout(_RETINANET, renamed=todays_name)
        case SSDConfig():
            return Layout(_ssd(num_classes))
        case FasterRCNNConfig():  # Mask R-CNN too
            return Layout(_two_stage(config, num_classes), renamed=todays_name)
        case RTDETRConfig():
            return rtdetr_layout(config)
    raise WeightsError(f"torchvision has no layout for the weights of {type(config).__name__}")


def backbone_layout(config: BackboneConfig, state_dict: Mapping[str, np.ndarray]) -> Layout:
    """How a classifier's file holds the backbone of a detector.

    Of VGG-16 there are four kinds: a classifier, whose fc6 and fc7 become convolutions by
    `subsampled_linear_kernel`; timm's, where they are convolutions of a whole map already; without
    one, or with nothing but NaN in its place (torchvision's IMAGENET1K_FEATURES); and the reduced
    network, whose layers are numbered 0 to 33 and whose fc6 and fc7 are convolutions.
    """
    if isinstance(config, ResNetConfig):
        resnet = prefixed(RESNET_D if config.variant == "d" else RESNET, "backbone/", "")
        return Layout(resnet, is_partial=True, ignored=("fc.",))
    if isinstance(config, EfficientNetLiteConfig):
        rules = prefixed(EFFICIENTNET, "backbone/", "")
        return Layout(rules, is_partial=True, ignored=("_conv_head.", "_bn1.", "_fc."))
    has_plain_names = "0.weight" in state_dict
    head = state_dict.get("classifier.0.weight")
    is_timm = "pre_logits.fc1.weight" in state_dict
    is_classifier = head is not None and not bool(np.isnan(head).all())
    fc: tuple[Rule, ...] = ()
    if has_plain_names or "features.31.weight" in state_dict:
        fc = (Rule("fc6/conv", "features.31"), Rule("fc7/conv", "features.33"))
    elif is_classifier or is_timm:
        fc6 = subsampled_linear_kernel(side=7, every_cell=3, every_input=1)
        fc7 = subsampled_linear_kernel(side=1, every_cell=1, every_input=4)
        names = ("classifier.0", "classifier.3")
        if is_timm:
            names = ("pre_logits.fc1", "pre_logits.fc2")
            fc6, fc7 = whole_map(7).then(fc6), whole_map(1).then(fc7)
        fc = (
            Rule("fc6/conv", names[0], kernel=fc6, outputs=every_output(4)),
            Rule("fc7/conv", names[1], kernel=fc7, outputs=every_output(4)),
        )
    return Layout(
        prefixed(VGG_16 + fc, "backbone/", ""),
        is_partial=True,
        # Without its head the classifier is of no use; with it, the last layer still is not.
        ignored=("classifier.6.",) if is_classifier else ("classifier.", "head.fc."),
        renamed=lambda name: f"features.{name}" if has_plain_names else name,
    )
