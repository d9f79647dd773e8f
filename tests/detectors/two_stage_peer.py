"""torchvision's two-stage detectors with random weights, ours with the same, and real images."""

import json
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax.backbones.layers import normalize_images
from harmonic_jax.config import (
    AnchorConfig,
    BoxHeadConfig,
    FasterRCNNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    ResNetConfig,
    RoIAlignConfig,
    RPNConfig,
)
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import load_detector
from harmonic_jax.structures import Batch, GroundTruth

NUM_CLASSES = 6
CHANNELS = 16
RPN = RPNConfig(
    anchors=AnchorConfig(size_factor=8.0, scales=(1.0,), rounding="torchvision"),
    num_proposals_train=2000,
)
SMALL_FASTER = FasterRCNNConfig(
    backbone=ResNetConfig(18, norm="frozen"),
    channels=CHANNELS,
    rpn=RPN,
    roi_align=RoIAlignConfig(aligned=False),
    box_head=BoxHeadConfig(num_hidden=32),
)
SMALL_MASK_V2 = MaskRCNNConfig(
    backbone=ResNetConfig(18, norm="batch"),
    channels=CHANNELS,
    fpn_norm="batch",
    rpn=RPNConfig(anchors=RPN.anchors, num_convs=2, num_proposals_train=2000),
    roi_align=RoIAlignConfig(aligned=False),
    box_head=BoxHeadConfig(layers="four_conv_fc", norm="batch", num_hidden=32),
    mask_head=MaskHeadConfig(num_convs=4, channels=CHANNELS, norm="batch"),
)


def import_torchvision() -> Any:
    try:
        import torchvision.models.detection
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision


def small_peer(torchvision: Any, config: FasterRCNNConfig) -> Any:
    """torchvision's classes put together as its builders do, on a ResNet-18 and 16 channels."""
    from torch import nn

    detection = torchvision.models.detection
    is_v2 = config.fpn_norm == "batch"
    norm = nn.BatchNorm2d if is_v2 else None
    resnet = torchvision.models.resnet18(
        weights=None, norm_layer=nn.BatchNorm2d if is_v2 else torchvision.ops.FrozenBatchNorm2d
    )
    backbone = detection.backbone_utils.BackboneWithFPN(
        resnet,
        {f"layer{i + 1}": str(i) for i in range(4)},
        [64, 128, 256, 512],
        CHANNELS,
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelMaxPool(),
        norm_layer=norm,
    )
    rcnn, masks, outputs = detection.faster_rcnn, detection.mask_rcnn, NUM_CLASSES + 1
    hidden = config.box_head.num_hidden
    parts = {
        "rpn_head": detection.rpn.RPNHead(CHANNELS, 3, conv_depth=config.rpn.num_convs),
        "box_head": rcnn.FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 4, [hidden], norm)
        if is_v2
        else rcnn.TwoMLPHead(CHANNELS * 49, hidden),
        "box_predictor": rcnn.FastRCNNPredictor(hidden, outputs),
    }
    if not isinstance(config, MaskRCNNConfig):
        return detection.FasterRCNN(backbone, **parts)
    return detection.MaskRCNN(
        backbone,
        **parts,
        mask_head=masks.MaskRCNNHeads(CHANNELS, [CHANNELS] * 4, 1, norm),
        mask_predictor=masks.MaskRCNNPredictor(CHANNELS, CHANNELS, outputs),
    )


def real_batch(folder: Path, *, num_images: int, long_side: int) -> Batch:
    """Photos of different shapes at network size on one canvas, with their objects."""
    annotations = json.loads(next((folder / "annotations").glob("*val*.json")).read_text())
    entries = sorted(annotations["images"], key=lambda entry: entry["id"])
    entries = sorted(entries, key=lambda e: e["height"] / e["width"])  # wide to tall
    entries = [entries[i * (len(entries) - 1) // (num_images - 1)] for i in range(num_images)]
    canvas = -(-long_side // 32) * 32
    images = np.zeros((num_images, canvas, canvas, 3), np.uint8)
    sizes = np.zeros((num_images, 2), np.float32)
    boxes, valid = np.zeros((num_images, 30, 4), np.float32), np.zeros((num_images, 30), bool)
    for i, entry in enumerate(entries):
        image = cv2.imread(str(folder / "val2017" / entry["file_name"]))[:, :, ::-1]
        ratio = long_side / max(image.shape)
        height, width = (round(ratio * side) for side in image.shape[:2])
        images[i, :height, :width] = cv2.resize(image, (width, height))
        sizes[i] = height, width
        objects = [a["bbox"] for a in annotations["annotations"] if a["image_id"] == entry["id"]]
        for j, (x, y, w, h) in enumerate(objects[:30]):
            boxes[i, j], valid[i, j] = np.array([x, y, x + w, y + h]) * ratio, True
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, valid.shape).astype(np.int32)
    return Batch(
        images=images,
        image_size=sizes,
        scale=np.ones((num_images, 2), np.float32),
        record_index=np.arange(num_images, dtype=np.int32),
        is_real=np.ones(num_images, bool),
        ground_truth=GroundTruth(boxes, labels, valid),
    )


def to_image_list(batch: Batch) -> Any:
    """The batch behind torchvision's own resizing, which real sizes would pass unchanged."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    normalized = np.array(
        normalize_images(jnp.asarray(batch.images), jnp.asarray(batch.image_size))
    )
    sizes = [(int(h), int(w)) for h, w in batch.image_size]
    return ImageList(torch.from_numpy(normalized).permute(0, 3, 1, 2), sizes)


def randomize(model: Any, batch: Batch) -> Any:
    """Random weights and statistics; outputs are scaled to what a trained detector says."""
    import torch

    torch.manual_seed(0)
    init = torch.nn.init
    for module in model.modules():
        if hasattr(module, "running_mean"):
            init.normal_(module.running_mean, 0.0, 0.1)
            init.uniform_(module.running_var, 0.5, 1.5)
            init.uniform_(module.weight, 0.3, 0.8)
            init.normal_(module.bias, 0.0, 0.1)
        elif getattr(module, "weight", None) is not None:
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                init.normal_(module.bias, 0.0, 0.1)
    model.eval()
    images = to_image_list(batch)
    with torch.no_grad():
        features = model.backbone(images.tensors)
        logits, deltas = model.rpn.head(list(features.values()))
        _rescale(model.rpn.head.cls_logits, logits, 2.0)
        _rescale(model.rpn.head.bbox_pred, deltas, 0.3)
        proposals, _ = model.rpn(images, features)
        heads = model.roi_heads
        rois = heads.box_roi_pool(features, proposals, images.image_sizes)
        logits, deltas = heads.box_predictor(heads.box_head(rois))
        _rescale(heads.box_predictor.cls_score, [logits], 1.5)
        _rescale(heads.box_predictor.bbox_pred, [deltas], 1.0)
        if heads.has_mask():
            rois = heads.mask_roi_pool(features, proposals, images.image_sizes)
            masks = heads.mask_predictor(heads.mask_head(rois))
            _rescale(heads.mask_predictor.mask_fcn_logits, [masks], 2.0)
    return model


def _rescale(layer: Any, outputs: list[Any], spread: float) -> None:
    """Gives each output of a layer the mean 0 and all of them together a standard deviation."""
    import torch

    rows = torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in outputs])
    mean = rows.mean(0)
    scale = spread / (rows - mean).std()
    layer.bias.copy_(scale * (layer.bias - mean))
    layer.weight *= scale


def load(peer: Any, config: FasterRCNNConfig, num_classes: int) -> tuple[Any, nnx.State, nnx.State]:
    """Our graphdef, parameters and the rest, from a peer's state dict."""
    ours = nnx.eval_shape(lambda: build_model(config, num_classes, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, rest))
    state_dict = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    return graphdef, *load_detector(*zeros, state_dict, config, num_classes)
