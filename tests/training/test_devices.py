"""A step does not know on how many devices it runs: from any state, all detectors.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.training.test_devices ssd
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from harmonic_jax.config import Config, DataConfig, OptimConfig, TrainConfig
from harmonic_jax.structures import Batch, ObjectMasks
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import TrainState, build_detector, init_state, init_variables
from harmonic_jax.training.step import make_train_step
from tests.training.test_bfloat16 import MODELS
from tests.training.tiny import random_batch

ROOT = Path(__file__).parent.parent.parent


# What two processes train (test_loop.py) shows it for RetinaNet in less time.
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_step_on_four_devices_is_that_on_one(name: str) -> None:
    """Samples, assignments and statistics are the same, gradients but for rounding."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-m", "tests.training.test_devices", name, "3"]
    out = subprocess.check_output(command, env=os.environ | {"XLA_FLAGS": flags}, cwd=ROOT)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 3
    for row in rows:
        on_one, on_four = row["num_positive"]
        assert on_one == on_four
        assert row["loss"] < 1e-5
        assert row["gradient"] < 1e-5
        assert row["variables"] < 1e-6


def config_of(name: str) -> Config:
    rate = 0.001 if name in ("ssd", "refinedet") else 0.01  # those have no norms here
    return Config(
        name="tiny",
        model=MODELS[name],
        data=DataConfig(
            short_sides=(64,), max_side=64, max_objects=4, masks=name == "mask_rcnn", mask_size=14
        ),
        optim=OptimConfig(learning_rate=rate, warmup_steps=0, schedule="constant"),
        train=TrainConfig(steps=50, batch_size=8),
    )


def batch_of(step: int, *, masks: bool) -> Batch:
    batch = random_batch(step)
    if not masks:
        return batch
    truth = batch.ground_truth
    grids = np.random.default_rng(step).choice(np.array([0, 255], np.uint8), (8, 4, 14, 14))
    truth = dataclasses.replace(truth, masks=ObjectMasks(grids, truth.boxes))
    return dataclasses.replace(batch, ground_truth=truth)


def distance(a: Any, b: Any) -> float:
    """Of the float32 arrays of two trees, relative to the first."""
    flat = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree) if x.dtype == np.float32])
        for tree in (a, b)
    ]
    first = flat[0].astype(np.float64)
    return float(np.linalg.norm(first - flat[1]) / np.linalg.norm(first))


def main(name: str, num_steps: int) -> None:
    """At every state that a run on one device comes through, a step on one device and on four: a
    line of JSON says how far losses, gradients and variables are apart."""
    config = config_of(name)
    detector = build_detector(config, 3)
    optimizer = make_optimizer(config.optim, config.train)
    meshes = [data_mesh(jax.devices()[:n]) for n in (1, 4)]
    steps = [make_train_step(detector, optimizer, mesh) for mesh in meshes]
    everywhere = replicated(meshes[0])
    variables = init_variables(detector, seed=1, sharding=everywhere)
    state = jax.device_get(init_state(variables, optimizer, ema=False, sharding=everywhere))
    for number in range(num_steps):
        batch = batch_of(number, masks=config.data.masks)

        def step(i: int, state: TrainState, batch: Batch = batch) -> tuple[TrainState, Any]:
            placed = jax.device_put(state, replicated(meshes[i]))
            return jax.device_get(steps[i](placed, put_batch(batch, meshes[i])))

        (state, log), (four, four_log) = step(0, state), step(1, state)
        # The momentum of a step from a common state differs by the gradient alone.
        row = {
            "num_positive": [float(log["num_positive"]), float(four_log["num_positive"])],
            "loss": abs(float(four_log["loss"] / log["loss"]) - 1),
            "gradient": distance(state.opt_state, four.opt_state),
            "variables": distance(state.variables, four.variables),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
