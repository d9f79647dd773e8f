"""Whole runs of the loop in a tenth of a second: a state of one number, and nothing to compile.

Checkpoints, logs and evaluations are the real ones; what the devices would do is not.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.config import Config, TrainConfig
from harmonic_jax.training import loop
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.loop import TrainResult
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.state import TrainState, Variables
from tests.training.tiny import tiny_config, wide_images


def start_state() -> TrainState:
    variables = Variables({"w": jnp.ones(3)}, {"mean": jnp.zeros(3)})
    return TrainState(jnp.int32(0), variables, {"m": jnp.zeros(3)}, None)


def metrics_of(ap: float) -> dict[str, float]:
    return {"AP": ap, "AP50": ap, "AP75": ap}


@dataclasses.dataclass
class QuickRun:
    """A run in a folder, started again with every call.

    Attributes:
      update: what a step does to the state.
      evaluate: the AP of the state of a step; may raise.
      loss: of a step.
    """

    run_dir: RunFolder
    train: TrainConfig
    update: Callable[[TrainState], TrainState] = lambda state: state
    evaluate: Callable[[int], float] = lambda step: step / 100
    loss: Callable[[int], float] = lambda step: 1.0
    name: str = "tiny"

    @property
    def config(self) -> Config:
        return dataclasses.replace(
            tiny_config(train=self.train), name=self.name, run_dir=str(self.run_dir.path)
        )

    def __call__(self) -> TrainResult:
        source = wide_images(6)
        with pytest.MonkeyPatch.context() as patch, self.run_dir.opened(self.config):
            patch.setattr(loop, "build_detector", lambda config, _: SimpleNamespace(config=config))
            patch.setattr(loop, "make_optimizer", lambda *_, **__: None)
            patch.setattr(loop, "make_train_step", lambda *_: self._step)
            patch.setattr(loop, "start_or_resume", start_or_resume)
            patch.setattr(loop, "run_programs", lambda *_, **__: [])
            patch.setattr(loop, "make_predict_step", lambda *_: None)
            patch.setattr(loop, "evaluate", self._evaluate)
            patch.setattr(loop, "prediction_grid", lambda *_, **__: _PICTURE)
            return loop.train(self.config, self.run_dir, source, source)

    @property
    def steps(self) -> tuple[int, ...]:
        return CheckpointStore(self.run_dir.checkpoints).steps()

    @property
    def best(self) -> tuple[int | None, float]:
        store = CheckpointStore(self.run_dir.best)
        return store.latest_step(), store.read_metadata(verify=True)["AP"]

    def _step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        state = dataclasses.replace(self.update(state), step=state.step + 1)
        loss = jnp.float32(self.loss(int(state.step)))
        return state, {"loss": loss, "grad_norm": jnp.float32(1)}

    def _evaluate(self, predict_step: Any, variables: Variables, *_: Any, **__: Any) -> Any:
        step = max(self.steps)  # it was saved
        metrics = metrics_of(self.evaluate(step))
        return SimpleNamespace(metrics=metrics, warning="", num_skipped=0)


_PICTURE = np.zeros((4, 4, 3), np.uint8)


def start_or_resume(
    detector: Any, optimizer: Any, checkpoints: CheckpointStore, *_: Any, **__: Any
) -> tuple[TrainState, list[str]]:
    """In place of the loop's."""
    if checkpoints.latest_step() is None:
        return start_state(), []
    return checkpoints.restore(start_state()).state, []


def quick_run(folder: Path, **settings: Any) -> QuickRun:
    """Six steps, evaluated, and so saved, at every second one; or as the settings say."""
    values = {"steps": 6, "eval_every": 2, "checkpoint_every": 100, "log_every": 1, **settings}
    return QuickRun(RunFolder(folder / "run"), TrainConfig(batch_size=2, **values))
