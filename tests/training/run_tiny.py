"""A whole run of a tiny detector; in its own process: `python -m tests.training.run_tiny DIR`.

It ends with a hash of the final state, so that two courses can be compared.
"""

import dataclasses
import hashlib
import json
import sys
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
    TrainConfig,
)
from harmonic_jax.training.loop import train
from harmonic_jax.training.run_folder import RunFolder
from tests.data.fake_source import FakeSource, encode, make_record, noise
from tests.training.tiny import tiny_config

NUM_STEPS = 8


def tiny_run_config(
    run_dir: Path, *, steps: int = NUM_STEPS, seed: int = 0, batch_size: int = 2, rate: float = 1e-3
) -> Config:
    config = tiny_config(
        optim=OptimConfig(
            optimizer="adamw", learning_rate=rate, warmup_steps=2, ema_decay=0.9, schedule="cosine"
        ),
        train=TrainConfig(
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            log_every=1,
            eval_every=0,
            checkpoint_every=2,
        ),
    )
    data = DataConfig(
        short_sides=(48, 64),
        max_side=64,
        max_objects=4,
        augment=AugmentConfig(photometric=True, flip=0.5),
        num_threads=2,
    )
    anchors = AnchorConfig(scales=(0.25,), ratios=(1.0,))
    model = dataclasses.replace(config.model, levels=(5, 5), anchors=anchors)  # less to compile
    return dataclasses.replace(config, data=data, model=model, run_dir=str(run_dir))


def tiny_source(num_images: int = 6) -> FakeSource:
    records = [
        make_record(i, height=48, width=60, boxes=((4 + i, 6, 30 + i, 40), (20, 10, 50, 44)))
        for i in range(num_images)
    ]
    return FakeSource(records, [encode(noise(48, 60, seed=i)) for i in range(num_images)])


def run(
    run_dir: Path,
    *,
    steps: int = NUM_STEPS,
    seed: int = 0,
    batch_size: int = 2,
    num_images: int = 6,
    rate: float = 1e-3,
) -> dict[str, Any]:
    """Trains, or goes on; the step it reached, what stopped it, and a hash of the final state."""
    config = tiny_run_config(run_dir, steps=steps, seed=seed, batch_size=batch_size, rate=rate)
    folder = RunFolder.of(config)
    folder.open(config)
    source = tiny_source(num_images)
    result = train(config, folder, source, source)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(result.state)):
        digest.update(np.asarray(leaf).tobytes())
    return {"step": result.step, "stopped_by": result.stopped_by, "hash": digest.hexdigest()}


if __name__ == "__main__":
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    json.dump(run(Path(sys.argv[1])), sys.stdout)
