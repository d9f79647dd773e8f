"""A whole run of a tiny detector in its own process: `python -m tests.training.run_tiny DIR`.

Prints the step it reached and a hash of the final state, so that two courses can be compared.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

from harmonic_jax.config import AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig
from harmonic_jax.training.loop import train
from harmonic_jax.training.run_dir import RunDir
from tests.data.fake_source import FakeSource, encode, make_record, noise
from tests.training.tiny import tiny_config


def tiny_run_config(
    run_dir: Path, *, steps: int = 12, seed: int = 0, batch_size: int = 2, rate: float = 1e-3
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
    return dataclasses.replace(config, data=data, run_dir=str(run_dir))


def tiny_source(num_images: int = 6) -> FakeSource:
    records = [
        make_record(i, height=48, width=60, boxes=((4 + i, 6, 30 + i, 40), (20, 10, 50, 44)))
        for i in range(num_images)
    ]
    return FakeSource(records, [encode(noise(48, 60, seed=i)) for i in range(num_images)])


def main(args: argparse.Namespace) -> None:
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    config = tiny_run_config(
        args.run_dir, steps=args.steps, seed=args.seed, batch_size=args.batch, rate=args.rate
    )
    run_dir = RunDir.of(config)
    run_dir.open(config)
    source = tiny_source(args.images)
    result = train(config, run_dir, source, source)
    state = jax.device_get(result.state)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    json.dump(
        {"step": result.step, "stopped_by": result.stopped_by, "hash": digest.hexdigest()},
        sys.stdout,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--rate", type=float, default=1e-3)
    main(parser.parse_args())
