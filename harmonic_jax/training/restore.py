"""A finished, running or imported run, opened to be used: evaluated, exported, fine-tuned."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Sharding

from harmonic_jax.config import Config
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.run_dir import RunDir
from harmonic_jax.training.state import (
    Detector,
    Variables,
    abstract_state,
    build_detector,
    init_variables,
)


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """The variables of a run and what they mean."""

    config: Config
    class_names: tuple[str, ...]
    detector: Detector
    variables: Variables
    step: int
    metadata: dict[str, Any]


def read_run(run_dir: RunDir, *, sharding: Sharding, last: bool = False) -> SavedRun:
    """Reads the best variables of a run, or those of its newest checkpoint.

    Args:
      run_dir: the folder of the run.
      sharding: where the arrays go.
      last: the newest checkpoint instead of the best; with an average of the parameters, that.

    Raises:
      ConfigError: the folder holds no run.
      CheckpointError: it holds no undamaged checkpoint.
    """
    config = run_dir.read_config()
    store = CheckpointStore(run_dir.checkpoints if last else run_dir.best)
    class_names = tuple(store.read_metadata()["class_names"])
    detector = build_detector(config, len(class_names))
    if last:
        optimizer = make_optimizer(
            config.optim, steps=config.train.steps, batch_size=config.train.batch_size
        )
        restored = store.restore(abstract_state(detector, optimizer, sharding=sharding))
        variables = restored.state.for_evaluation
    else:
        restored = store.restore(abstract_variables(detector, sharding=sharding))
        variables = restored.state
    return SavedRun(
        config, class_names, detector, variables, restored.step, dict(restored.metadata)
    )


def abstract_variables(detector: Detector, *, sharding: Sharding) -> Variables:
    """A detector's variables without their arrays: shapes, dtypes, sharding."""
    shapes = jax.eval_shape(lambda: init_variables(detector, seed=0, sharding=sharding))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)
