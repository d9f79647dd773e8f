"""torchvision's detectors put together small, with random weights, and what they say."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from harmonic_jax import config as c
from harmonic_jax.backbones.layers import normalize_images
from harmonic_jax.structures import Batch
from tests.ops.peers import torchvision_or_skip

CHANNELS, CLASSES = 16, 6


def small_retinanet() -> Any:
    """torchvision's classes put together as its v2 does, on a ResNet-18 and few channels."""
    torch, torchvision = torchvision_or_skip()
    detection = torchvision.models.detection
    backbone = detection.backbone_utils.BackboneWithFPN(
        torchvision.models.resnet18(weights=None),
        {f"layer{i}": str(i) for i in (2, 3, 4)},
        [128, 256, 512],
        CHANNELS,
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(512, CHANNELS),
    )
    head = detection.retinanet.RetinaNetHead(
        CHANNELS, 9, CLASSES, norm_layer=lambda n: torch.nn.GroupNorm(n // 8, n)
    )
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[:1]
    return detection.RetinaNet(backbone, CLASSES, head=head)


def small_rcnn(config: c.FasterRCNNConfig) -> Any:
    torch, torchvision = torchvision_or_skip()
    detection = torchvision.models.detection
    norm = torch.nn.BatchNorm2d if config.fpn_norm == "batch" else None
    backbone = detection.backbone_utils.BackboneWithFPN(
        torchvision.models.resnet18(
            weights=None, norm_layer=norm or torchvision.ops.FrozenBatchNorm2d
        ),
        {f"layer{i + 1}": str(i) for i in range(4)},
        [64, 128, 256, 512],
        CHANNELS,
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelMaxPool(),
        norm_layer=norm,
    )
    rcnn, masks, hidden = detection.faster_rcnn, detection.mask_rcnn, config.box_head.num_hidden
    parts = {
        "rpn_head": detection.rpn.RPNHead(CHANNELS, 3, conv_depth=config.rpn.num_convs),
        "box_predictor": rcnn.FastRCNNPredictor(hidden, CLASSES + 1),
    }
    if not isinstance(config, c.MaskRCNNConfig):
        parts["box_head"] = rcnn.TwoMLPHead(CHANNELS * 49, hidden)
        return detection.FasterRCNN(backbone, **parts)
    parts["box_head"] = rcnn.FastRCNNConvFCHead(
        (CHANNELS, 7, 7), [CHANNELS] * 4, [hidden], norm_layer=norm
    )
    parts["mask_head"] = masks.MaskRCNNHeads(CHANNELS, [CHANNELS] * 4, 1, norm)
    parts["mask_predictor"] = masks.MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES + 1)
    return detection.MaskRCNN(backbone, **parts)


def full_size(name: str, num_classes: int) -> Any:
    build = getattr(torchvision_or_skip()[1].models.detection, name)
    return build(weights=None, weights_backbone=None, num_classes=num_classes)


def to_tensors(batch: Batch) -> list[Any]:
    """The photos as torchvision wants them, without padding."""
    import torch

    return [
        torch.from_numpy(image[:h, :w].transpose(2, 0, 1) / np.float32(255))
        for image, (h, w) in zip(batch.images, batch.image_size.astype(int), strict=True)
    ]


def to_image_list(batch: Batch) -> Any:
    """The batch behind torchvision's own resizing, which real sizes would pass unchanged."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    normalized = normalize_images(jnp.asarray(batch.images), jnp.asarray(batch.image_size))
    sizes = [(int(h), int(w)) for h, w in batch.image_size]
    return ImageList(torch.from_numpy(np.array(normalized)).permute(0, 3, 1, 2), sizes)


def randomize(model: Any, batch: Batch) -> None:
    """Weights under which no layer is idle, and outputs as spread as a trained detector's."""
    import torch

    torch.manual_seed(0)
    init = torch.nn.init
    for module in model.modules():
        if hasattr(module, "running_mean"):
            init.normal_(module.running_mean, 0.0, 0.1)
            init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Linear):
            init.kaiming_normal_(module.weight)
        elif getattr(module, "weight", None) is not None:
            init.uniform_(module.weight, 0.3, 0.8)
        if getattr(module, "bias", None) is not None:
            init.normal_(module.bias, 0.0, 0.1)
    model.eval()
    with torch.no_grad():
        if hasattr(model, "roi_heads"):
            _rescale_rcnn(model, batch)
        elif hasattr(model.backbone, "scale_weight"):  # SSD
            model.backbone.scale_weight.uniform_(10, 30)
            # Features of 0..255 inputs reach the heads unnormalised but for the first level.
            heads = model.head.classification_head, model.head.regression_head
            for head, scale in zip(heads, (1.0, 0.2), strict=True):
                for i, conv in enumerate(head.module_list):
                    conv.weight *= scale * (0.5 if i == 0 else 0.01)
        else:
            # Photos come at network size. docs/weights.md has what its own resizing changes.
            model.transform.resize = lambda image, target: (image, target)
            heads, raw = model.head, raw_of_one_stage(model, batch)
            for conv, values, spread in (
                (heads.classification_head.cls_logits, raw[0], 1.5),
                (heads.regression_head.bbox_reg, raw[1], 0.5),
            ):
                conv.weight *= spread / values.std()
                conv.bias *= spread / values.std()
            # Some hundred scores above the threshold, as with trained weights.
            heads.classification_head.cls_logits.bias -= 6.0


def _rescale_rcnn(model: Any, batch: Batch) -> None:
    images, heads = to_image_list(batch), model.roi_heads
    features = model.backbone(images.tensors)
    logits, deltas = model.rpn.head(list(features.values()))
    _rescale(model.rpn.head.cls_logits, logits, 2.0)
    _rescale(model.rpn.head.bbox_pred, deltas, 0.3)
    proposals, _ = model.rpn(images, features)
    rois = heads.box_roi_pool(features, proposals, images.image_sizes)
    logits, deltas = heads.box_predictor(heads.box_head(rois))
    _rescale(heads.box_predictor.cls_score, [logits], 1.5)
    _rescale(heads.box_predictor.bbox_pred, [deltas], 1.0)
    if heads.has_mask():
        rois = heads.mask_roi_pool(features, proposals, images.image_sizes)
        masks = heads.mask_predictor(heads.mask_head(rois))
        _rescale(heads.mask_predictor.mask_fcn_logits, [masks], 2.0)


def _rescale(layer: Any, outputs: Sequence[Any], spread: float) -> None:
    """Gives each output [b, c, ..] of a layer the mean 0 and all together a standard deviation."""
    import torch

    rows = torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in outputs])
    mean = rows.mean(0)
    scale = spread / (rows - mean).std()
    layer.bias.copy_(scale * (layer.bias - mean))
    layer.weight *= scale


def raw_of_one_stage(model: Any, batch: Batch) -> tuple[Any, Any]:
    import torch

    with torch.no_grad():
        images, _ = model.transform(to_tensors(batch))
        out = model.head(list(model.backbone(images.tensors).values()))
    return out["cls_logits"], out["bbox_regression"]


def raw_of_two_stages(model: Any, batch: Batch) -> tuple[dict[str, Any], Any]:
    """Outputs by name, and the detections."""
    images, heads = to_image_list(batch), model.roi_heads
    features = model.backbone(images.tensors)
    objectness, deltas = model.rpn.head(list(features.values()))
    proposals, _ = model.rpn(images, features)
    # The RoI head on as many proposals of each image, so that ours takes them as an array.
    common = min(len(boxes) for boxes in proposals)
    some = [boxes[:common] for boxes in proposals]
    rois = heads.box_roi_pool(features, some, images.image_sizes)
    logits, box_deltas = heads.box_predictor(heads.box_head(rois))
    found, _ = heads(features, proposals, images.image_sizes)
    box_deltas = box_deltas.numpy().reshape(len(some), common, -1, 4)
    raw = {
        "features": [level.permute(0, 2, 3, 1).numpy() for level in features.values()],
        "objectness": [channels_last(level, 1) for level in objectness],
        "rpn deltas": [channels_last(level, 4) for level in deltas],
        "proposals": np.stack([boxes.numpy() for boxes in some]),
        "logits": [np.roll(logits.numpy(), -1, axis=-1).reshape(len(some), common, -1)],
        "deltas": [np.roll(box_deltas, -1, axis=-2)],
    }
    return raw, found


def channels_last(level: Any, size: int) -> np.ndarray:
    """[b, a * size, h, w] -> [b, h * w * a, size]."""
    b, _, h, w = level.shape
    split = level.reshape(b, -1, size, h, w).permute(0, 3, 4, 1, 2)
    return split.reshape(b, -1, size).numpy()
