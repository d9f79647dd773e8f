"""RetinaNet against torchvision's: same weights and photos, same outputs and same detections."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import detectors
from harmonic_jax.config import (
    AnchorConfig,
    Config,
    DataConfig,
    PostprocessConfig,
    ResNetConfig,
    RetinaNetConfig,
)
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import load_detector
from harmonic_jax.pretrained.models import DETECTORS
from harmonic_jax.structures import Batch, Detections, Predictions
from tests.detectors.two_stage_peer import import_torchvision, real_batch

SMALL_CONFIG = RetinaNetConfig(
    ResNetConfig(18, norm="batch"),
    channels=64,
    extra_levels_from="c5",
    head_norm="group",
    head_convs=1,
    anchors=AnchorConfig(rounding="torchvision"),
    postprocess=PostprocessConfig(max_detections=300),
)


def small_peer() -> tuple[Any, RetinaNetConfig, int]:
    """torchvision's classes put together as its v2 does, on a ResNet-18 and 64 channels."""
    torchvision = import_torchvision()  # first: it skips where there is no PyTorch
    from torch import nn

    detection = torchvision.models.detection
    backbone = detection.backbone_utils.BackboneWithFPN(
        torchvision.models.resnet18(weights=None),
        {f"layer{i}": str(i) for i in (2, 3, 4)},
        [128, 256, 512],
        64,
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(512, 64),
    )
    head = detection.retinanet.RetinaNetHead(
        64, 9, 7, norm_layer=lambda channels: nn.GroupNorm(8, channels)
    )
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[:1]
    peer = detection.RetinaNet(backbone, 7, head=head)
    return peer, SMALL_CONFIG, 7


def full_size(name: str) -> tuple[Any, RetinaNetConfig, int]:
    build = getattr(import_torchvision().models.detection, name)
    peer = build(weights=None, weights_backbone=None)
    config = DETECTORS[name].model
    for module in peer.modules():
        if hasattr(module, "running_var"):
            module.eps = config.backbone.norm_eps  # 0 in v1, as torchvision does for COCO_V1
    return peer, config, 91


def randomize(model: Any, images: list[Any]) -> Any:
    """Weights under which no layer is idle, statistics included, and scores spread widely."""
    import torch

    torch.manual_seed(0)
    init = torch.nn.init
    for module in model.modules():
        if hasattr(module, "running_mean"):
            init.normal_(module.running_mean, 0.0, 0.1)
            init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, torch.nn.Conv2d):
            init.kaiming_normal_(module.weight)
        elif hasattr(module, "weight"):
            init.uniform_(module.weight, 0.3, 0.8)
        if getattr(module, "bias", None) is not None:
            init.normal_(module.bias, 0.0, 0.1)
    model.eval()
    # Photos come at network size. docs/weights.md has what its own resizing changes.
    model.transform.resize = lambda image, target: (image, target)
    heads = model.head
    outputs = heads.classification_head.cls_logits, heads.regression_head.bbox_reg
    raw = raw_outputs(model, images)
    with torch.no_grad():
        for conv, values, std in zip(outputs, raw, (1.5, 0.5), strict=True):
            conv.weight *= std / values.std()
            conv.bias *= std / values.std()
        # Some hundred scores above the threshold, as with trained weights.
        outputs[0].bias -= 6.0
    return model


def raw_outputs(model: Any, images: list[Any]) -> tuple[Any, Any]:
    import torch

    with torch.no_grad():
        x, _ = model.transform(images)
        out = model.head(list(model.backbone(x.tensors).values()))
    return out["cls_logits"], out["bbox_regression"]


def to_torch(batch: Batch) -> list[Any]:
    import torch

    sizes = batch.image_size.astype(int)
    return [
        torch.from_numpy(image[:h, :w].transpose(2, 0, 1) / np.float32(255))
        for image, (h, w) in zip(batch.images, sizes, strict=True)
    ]


def our_side(
    peer: Any, model: RetinaNetConfig, num_classes: int
) -> Callable[[Batch], tuple[Predictions, Detections]]:
    state_dict = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    module = nnx.eval_shape(lambda: build_model(model, num_classes, rngs=nnx.Rngs(0)))
    graphdef, *shapes = nnx.split(module, nnx.Param, ...)
    params, rest = load_detector(*shapes, state_dict, model, num_classes)
    config = Config(name="peer", model=model, data=DataConfig())

    @jax.jit
    def run(params: nnx.State, rest: nnx.State, batch: Batch) -> tuple:
        merged = nnx.merge(graphdef, params, rest)
        merged.eval()
        raw = merged(batch.images, batch.image_size)
        return raw, detectors.detect(merged, batch, config)

    return lambda batch: run(params, rest, jax.tree.map(jnp.asarray, batch))


def assert_same_outputs(raw: Predictions, theirs: tuple[Any, Any]) -> None:
    for levels, expected in zip((raw.cls_logits, raw.deltas), theirs, strict=True):
        actual, expected = np.concatenate(levels, axis=1), expected.numpy()
        assert np.abs(actual - expected).max() <= 1e-3 * np.abs(expected).max()


def assert_same_detections(found: Detections, expected: list[dict[str, Any]]) -> None:
    """One to one, whatever the order among equal scores."""
    for i, theirs in enumerate(expected):
        valid = np.asarray(found.valid[i])
        boxes, scores, labels = (
            np.asarray(a[i])[valid] for a in (found.boxes, found.scores, found.labels)
        )
        assert len(boxes) == len(theirs["boxes"])
        assert len(boxes) > 20
        free = np.ones(len(boxes), bool)
        for box, score, label in zip(
            *(theirs[k].numpy() for k in ("boxes", "scores", "labels")), strict=True
        ):
            fits = free & (labels == label) & (np.abs(scores - score) <= 1e-4)
            fits &= (np.abs(boxes - box) <= 0.05).all(-1)
            assert fits.any(), (i, box, score, label)
            free[np.flatnonzero(fits)[0]] = False


def check(peer: tuple[Any, RetinaNetConfig, int], folder: Path, *, sides: tuple[int, ...]) -> None:
    import torch

    model, config, num_classes = peer
    batches = [real_batch(folder, num_images=3, long_side=side) for side in sides]
    model = randomize(model, to_torch(batches[0]))
    run = our_side(model, config, num_classes)
    for batch in batches:
        assert len({tuple(size) for size in batch.image_size}) > 1
        images = to_torch(batch)
        raw, found = run(batch)
        assert_same_outputs(raw, raw_outputs(model, images))
        with torch.no_grad():
            assert_same_detections(found, model(images))


def test_small(coco_tiny: Path) -> None:
    check(small_peer(), coco_tiny, sides=(160,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def test_full_size(coco_tiny: Path, name: str) -> None:
    check(full_size(name), coco_tiny, sides=(256, 448, 600))


@pytest.mark.slow
def test_anchors_rounded_otherwise_are_noticed(coco_tiny: Path) -> None:
    """The test above can fail: the paper's anchors differ by more than its bounds."""
    model, config, num_classes = small_peer()
    config = dataclasses.replace(config, anchors=AnchorConfig())
    with pytest.raises(AssertionError):
        check((model, config, num_classes), coco_tiny, sides=(160,))
