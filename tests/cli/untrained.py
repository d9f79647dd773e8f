"""Whole runs by `train.main` in a moment: their network learns nothing, and nothing is compiled.

Data, evaluations, checkpoints and reports are the real ones.
"""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training import loop
from harmonic_jax.training.state import TrainState, Variables
from harmonic_jax.training.step import PredictStep
from tests.training.quick_run import start_or_resume


def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """Learns nothing; for there is nothing to compile, a run takes a moment."""
    state = dataclasses.replace(state, step=state.step + 1)
    return state, {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)}


def predict_as(num_classes: int) -> PredictStep:
    """Finds the objects that `write_coco` draws; of the last class, the one before, .."""

    def predict(variables: Variables, batch: Batch) -> tuple[Detections, jax.Array]:
        index = np.asarray(batch.record_index)
        boxes = np.tile(np.float32([5, 5, 35, 25]), (len(index), 1, 1))
        labels, valid = (-1 - index[:, None]) % num_classes, np.asarray(batch.is_real)[:, None]
        return Detections(boxes, np.full(labels.shape, 0.9, np.float32), labels, valid), index

    return predict


def replace_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a run but the network and its training."""
    for name, substitute in {
        "build_detector": lambda config, number: SimpleNamespace(config=config, number=number),
        "make_optimizer": lambda *_, **__: None,
        "make_train_step": lambda *_: step,
        "start_or_resume": start_or_resume,
        "run_programs": lambda *_, **__: [],
    }.items():
        monkeypatch.setattr(loop, name, substitute)
    monkeypatch.setattr(loop, "make_predict_step", lambda made, _: predict_as(made.number))
