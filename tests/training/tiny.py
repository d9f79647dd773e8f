"""A detector and batches small enough for tests of the training machinery."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from harmonic_jax.config import (
    AnchorConfig,
    AugmentConfig,
    Config,
    DataConfig,
    OptimConfig,
    ResNetConfig,
    RetinaNetConfig,
    TrainConfig,
)
from harmonic_jax.structures import Batch, GroundTruth
from harmonic_jax.training.saved_run import abstract_variables
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import Detector, Variables
from tests.data.fake_source import FakeSource, encode, make_record, noise


def tiny_config(
    *, optim: OptimConfig | None = None, train: TrainConfig | None = None, norm: str = "batch"
) -> Config:
    return Config(
        name="tiny",
        data=DataConfig(short_sides=(64,), max_side=64, max_objects=4),
        model=RetinaNetConfig(
            backbone=ResNetConfig(depth=10, width=8, norm=norm),
            levels=(4, 5),
            channels=16,
            head_convs=1,
            anchors=AnchorConfig(scales=(0.5,), ratios=(1.0,)),
        ),
        optim=optim or OptimConfig(learning_rate=0.01, warmup_steps=0, schedule="constant"),
        train=train or TrainConfig(steps=10, batch_size=8),
    )


def one_level_config(**options: Any) -> Config:
    """With a program of half the size to compile."""
    config = tiny_config(**options)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, levels=(5, 5)))


def run_config(run_dir: Path, *, batch_size: int = 8, **train: Any) -> Config:
    """A whole run: one program to train with, which all tests of runs and steps share."""
    return dataclasses.replace(
        one_level_config(),
        data=DataConfig(
            short_sides=(64,),
            max_side=96,
            max_objects=4,
            augment=AugmentConfig(photometric=True, flip=0.5),
            num_threads=2,
        ),
        optim=OptimConfig(learning_rate=0.01, warmup_steps=2, ema_decay=0.5, schedule="constant"),
        train=TrainConfig(
            **{"steps": 8, "log_every": 1, "eval_every": 0, "checkpoint_every": 2, **train},
            batch_size=batch_size,
        ),
        run_dir=str(run_dir),
    )


def mixed_images(count: int) -> FakeSource:
    """Landscape and portrait images in turn, with one to three objects."""
    records, files = [], []
    for i in range(count):
        height, width = (40, 60) if i % 3 else (60, 40)
        boxes = ((4 + i % 7, 6, 30, 34), (12, 10, 38, 28), (2, 20, 20, 39))[: 1 + i % 3]
        records.append(make_record(i, height=height, width=width, boxes=boxes))
        files.append(encode(noise(height, width, seed=i)))
    return FakeSource(records, files)


def wide_images(count: int = 16) -> FakeSource:
    """Those of one orientation: half of the programs to compile."""
    source = mixed_images(3 * count // 2)
    is_wide = [record.width > record.height for record in source.records]
    return FakeSource(
        list(itertools.compress(source.records, is_wide)),
        list(itertools.compress(source.files, is_wide)),
    )


def random_variables(detector: Detector, *, seed: int) -> Variables:
    """All different; compiling a true initialisation would take most of a short test's time."""
    rng = np.random.default_rng(seed)
    shapes = abstract_variables(detector, sharding=replicated(data_mesh()))
    return jax.tree.map(
        lambda a: jax.device_put(rng.uniform(0.05, 0.15, a.shape).astype(a.dtype), a.sharding),
        shapes,
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


def flip_bit_of_largest(folder: Path) -> None:
    """Decay of a checkpoint: a flipped bit in its largest file."""
    victim = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
