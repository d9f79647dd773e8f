"""Our side of comparisons of whole detectors: configs, random batches. Needs no PyTorch."""

import dataclasses
from typing import Any, Literal

import numpy as np

from harmonic_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    OptimConfig,
    ResNetConfig,
    RetinaNetConfig,
    TrainConfig,
)
from harmonic_jax.pretrained.models import DETECTORS
from harmonic_jax.structures import Batch, GroundTruth, ObjectMasks

NAMES = (
    "retinanet_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "ssd300_vgg16",
)
NUM_OBJECTS, MASK_SIZE = 8, 28


@dataclasses.dataclass(frozen=True)
class Case:
    """A detector of torchvision's as one of ours.

    Attributes:
      config: every part trained, batch norms of the backbone constant.
      num_classes: outputs of ours.
      first_label: torchvision's number of our class 0.
      size: (height, width) of the images.
    """

    config: Config
    num_classes: int
    first_label: int
    size: tuple[int, int]


def make_case(
    name: str,
    *,
    batch_size: int,
    size: tuple[int, int],
    hardet: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Case:
    """The case of this name; SSD's images are 300 x 300 whatever the size."""
    size = (300, 300) if name == "ssd300_vgg16" else size
    published = DETECTORS[name]
    first_label = 0 if isinstance(published.model, RetinaNetConfig) else 1
    backbone = published.model.backbone
    if isinstance(backbone, ResNetConfig):
        backbone = dataclasses.replace(backbone, norm_eps=1e-5, frozen_stages=0)
    config = Config(
        name="benchmark",
        data=dataclasses.replace(
            DataConfig(short_sides=(min(size),), max_side=max(size), max_objects=NUM_OBJECTS),
            stride=published.data.stride,
        ),
        model=dataclasses.replace(published.model, backbone=backbone),
        loss=LossConfig(hardet=hardet, smooth_l1_beta=1.0 if first_label else 0.0),
        optim=OptimConfig(learning_rate=1e-6, warmup_steps=0, schedule="constant"),
        train=TrainConfig(batch_size=batch_size, precision=precision),
    )
    return Case(config, len(published.class_names), first_label, size)


def random_batch(number: int, size: tuple[int, int], num_classes: int) -> Batch:
    """Noise, and eight boxes an image, each filled by its mask."""
    rng = np.random.default_rng(0)
    side = min(size)
    corner = rng.uniform(0, 0.5 * side, (number, NUM_OBJECTS, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(24, 0.5 * side, corner.shape)], -1)
    boxes = boxes.astype(np.float32)
    fields: Any = {
        "boxes": boxes,
        "labels": rng.integers(0, num_classes, (number, NUM_OBJECTS)).astype(np.int32),
        "valid": np.ones((number, NUM_OBJECTS), bool),
        "masks": ObjectMasks(
            np.full((number, NUM_OBJECTS, MASK_SIZE, MASK_SIZE), 255, np.uint8),  # type: ignore[arg-type]
            boxes,  # type: ignore[arg-type]
        ),
    }
    rest: Any = {
        "images": rng.integers(0, 256, (number, *size, 3), dtype=np.uint8),
        "image_size": np.full((number, 2), size, np.float32),
        "scale": np.ones((number, 2), np.float32),
        "record_index": np.arange(number, dtype=np.int32),
        "is_real": np.ones(number, bool),
    }
    return Batch(**rest, ground_truth=GroundTruth(**fields))
