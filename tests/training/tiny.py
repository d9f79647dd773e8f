"""A detector and batches small enough for tests of the training machinery."""

import numpy as np

from harmonic_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    DataConfig,
    OptimConfig,
    RetinaNetConfig,
    TrainConfig,
)
from harmonic_jax.structures import Batch, GroundTruth


def tiny_config(
    *, optim: OptimConfig | None = None, train: TrainConfig | None = None, norm: str = "batch"
) -> Config:
    return Config(
        name="tiny",
        data=DataConfig(short_sides=(64,), max_side=64, max_objects=4),
        model=RetinaNetConfig(
            backbone=BackboneConfig(depth=10, width=8, norm=norm),
            levels=(4, 5),
            channels=16,
            head_convs=1,
            anchors=AnchorConfig(scales=(0.5,), ratios=(1.0,)),
        ),
        optim=optim or OptimConfig(learning_rate=0.01, warmup_steps=0, schedule="constant"),
        train=train or TrainConfig(steps=10, batch_size=8),
    )


def random_batch(seed: int, *, size: int = 8, shape: tuple[int, int] = (64, 64)) -> Batch:
    """Images with a bright rectangle where each object is; the third row is not real."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (size, *shape, 3), dtype=np.uint8)
    boxes = np.zeros((size, 4, 4), np.float32)
    valid = np.arange(4) < rng.integers(1, 4, (size, 1))
    for image, slot in zip(*np.nonzero(valid), strict=True):
        x, y = rng.integers(0, 30, 2)
        w, h = rng.integers(14, 34, 2)
        boxes[image, slot] = x, y, x + w, y + h
        images[image, y : y + h, x : x + w] = rng.integers(150, 255, 3)
    is_real = np.arange(size) != 2
    return Batch(
        images=images,
        image_size=np.full((size, 2), shape, np.float32),
        scale=np.ones((size, 2), np.float32),
        record_index=np.arange(size, dtype=np.int32),
        is_real=is_real,
        ground_truth=GroundTruth(
            boxes, rng.integers(0, 3, (size, 4)).astype(np.int32), valid & is_real[:, None]
        ),
    )
