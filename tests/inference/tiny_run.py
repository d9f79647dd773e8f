"""A run on the disk with a detector that was never trained, and images of both shapes."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax.config import Config, DataConfig, TrainConfig
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.config_json import config_to_json
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import (
    TrainState,
    Variables,
    abstract_state,
    abstract_variables,
    build_detector,
)
from tests.data.fake_source import FakeSource, encode, make_record, noise
from tests.training.tiny import tiny_config

CLASSES = ("a", "b", "c")


def run_config(base: Config | None = None) -> Config:
    """Two buckets; a threshold so low that something is detected everywhere."""
    base = base or tiny_config()
    settings = dataclasses.replace(base.model.postprocess, score_threshold=0.0, max_detections=12)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, postprocess=settings),
        data=DataConfig(short_sides=(64,), max_side=96),
        train=TrainConfig(steps=1, batch_size=2),
    )


def write_run(folder: Path, config: Config, *, is_evaluated: bool = True) -> Path:
    """Saves random variables as the best of a run, or as a checkpoint where it was not evaluated.

    To compile their initialisation takes longer.
    """
    rng = np.random.default_rng(0)
    detector = build_detector(config, len(CLASSES))
    shapes = abstract_variables(detector, sharding=replicated(data_mesh(jax.devices()[:1])))
    variables = jax.tree.map(
        lambda a: jax.device_put(rng.normal(0.01, 0.1, a.shape).astype(a.dtype), a.sharding),
        shapes.params,
    )
    rest = jax.tree.map(
        lambda a: jax.device_put(np.ones(a.shape, a.dtype), a.sharding), shapes.model_state
    )
    run_dir = RunFolder(folder)
    run_dir.open(config)
    metadata = {
        "config": config_to_json(config),
        "class_names": list(CLASSES),
        "category_ids": [3, 5, 7],
    }
    content: Variables | TrainState = Variables(variables, rest)
    if not is_evaluated:
        optimizer = make_optimizer(config.optim, config.train)
        sharding = replicated(data_mesh(jax.devices()[:1]))
        shapes = abstract_state(detector, optimizer, sharding=sharding).opt_state
        moments = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        content = TrainState(jnp.int32(4), content, moments, None)
    with CheckpointStore(run_dir.best if is_evaluated else run_dir.checkpoints, keep=1) as store:
        store.save(4, content, metadata)
    return folder


def images_of_shapes(shapes: int, number: int = 5) -> FakeSource:
    """Landscape images, or landscape and portrait ones by turns."""
    sizes = [(60, 80), (90, 50)][:shapes]
    records, files = [], []
    for index in range(number):
        height, width = sizes[index % shapes]
        records.append(make_record(index, height=height, width=width))
        files.append(encode(noise(height, width, seed=index)))
    return FakeSource(records, files)
