"""The same step on one device and on four, for tests: started as a process of its own.

    python -m tests.training.on_devices retinanet --steps 3

At every state that a run on one device comes through, a step is taken on one device and on four. A
line of JSON for each step says how far losses, gradients and variables are apart.
"""

import argparse
import dataclasses
import json
import os
from typing import Any

DEVICES = 4
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from harmonic_jax.config import Config, DataConfig, OptimConfig, TrainConfig  # noqa: E402
from harmonic_jax.structures import Batch, ObjectMasks  # noqa: E402
from harmonic_jax.training.optimizer import make_optimizer  # noqa: E402
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated  # noqa: E402
from harmonic_jax.training.state import (  # noqa: E402
    TrainState,
    build_detector,
    init_state,
    init_variables,
)
from harmonic_jax.training.step import make_train_step  # noqa: E402
from tests.training.test_bfloat16 import MODELS  # noqa: E402
from tests.training.tiny import random_batch  # noqa: E402


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


def flat(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves if leaf.dtype == np.float32])


def distance(a: Any, b: Any) -> float:
    """Of two trees of arrays, relative to the first."""
    first = flat(a).astype(np.float64)
    return float(np.linalg.norm(first - flat(b)) / np.linalg.norm(first))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    config = config_of(args.name)
    detector = build_detector(config, 3)
    optimizer = make_optimizer(config.optim, config.train)
    meshes = {n: data_mesh(jax.devices()[:n]) for n in (1, DEVICES)}
    steps = {n: make_train_step(detector, optimizer, mesh) for n, mesh in meshes.items()}

    def step(n: int, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        """On n devices; everything on the host."""
        placed = jax.device_put(state, replicated(meshes[n]))
        return jax.device_get(steps[n](placed, put_batch(batch, meshes[n])))

    everywhere = replicated(meshes[1])
    variables = init_variables(detector, seed=1, sharding=everywhere)
    state = jax.device_get(init_state(variables, optimizer, ema=False, sharding=everywhere))
    for number in range(args.steps):
        batch = batch_of(number, masks=config.data.masks)
        four, four_log = step(DEVICES, state, batch)
        state, log = step(1, state, batch)
        # The momentum of a step from a common state differs by the gradient alone.
        row = {
            "loss": float(log["loss"]),
            "num_positive": [float(log["num_positive"]), float(four_log["num_positive"])],
            "loss_four": abs(float(four_log["loss"] - log["loss"])),
            "gradient_four": distance(state.opt_state, four.opt_state),
            "variables_four": distance(state.variables, four.variables),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
