# ruff: noqa: E402
"""A finished, running or imported run, opened to be used: evaluated, exported, fine-tuned."""

import dataclasses
import shlex
from typing import Any

from jax.sharding import Sharding

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.config_json import differences, listed
from harmonic_jax.training.metadata import class_names_of, config_of
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.processes import ProcessFailedError, run_on_primary
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.state import (
    Detector,
    Variables,
    abstract_state,
    abstract_variables,
    build_detector,
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


def read_run(run_dir: RunFolder, *, sharding: Sharding, last: bool = False) -> SavedRun:
    """Reads the best variables of a run, or those of its newest checkpoint.

    Args:
      run_dir: the folder of the run.
      sharding: where the arrays go.
      last: the newest checkpoint instead of the best; with an average of the parameters, that.

    Raises:
      ConfigError: the folder holds no run, or its config.json is not that of the checkpoint.
      CheckpointError: it holds no undamaged checkpoint.
    """
    store = CheckpointStore(run_dir.checkpoints if last else run_dir.best)
    try:
        return _read(run_dir, store, sharding, last)
    except (CheckpointError, ProcessFailedError) as error:
        hint = run_on_primary(lambda: _hint(run_dir, last))
        if not hint:
            raise
        raise CheckpointError(f"{error}. {hint}") from error


def _hint(run_dir: RunFolder, last: bool) -> str:
    """What else there is of a run without the checkpoint that was wanted."""
    is_evaluated = bool(CheckpointStore(run_dir.best).steps())
    is_saved = bool(CheckpointStore(run_dir.checkpoints).steps())
    if is_saved and not last:
        return (
            "The run's newest checkpoint opens with --last (last=True), and one to start from with "
            f"--init {shlex.quote(str(run_dir.checkpoints))}"
        )
    if is_evaluated and last:
        return "The run's best variables open without --last"
    return "" if is_evaluated or is_saved else "The run ended before its first: start it again"


def _read(run_dir: RunFolder, store: CheckpointStore, sharding: Sharding, last: bool) -> SavedRun:
    config = run_dir.read_config()
    metadata = run_on_primary(store.read_metadata)
    class_names = class_names_of(metadata, where=store.directory)
    if "config" in metadata:
        _check_same_config(config, config_of(metadata, where=store.directory), run_dir, store)
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


def _check_same_config(
    old: Config, made: Config, run_dir: RunFolder, store: CheckpointStore
) -> None:
    changed = differences(old, made)
    if changed:
        raise ConfigError(
            f"{run_dir.config} is not the config that {store.directory} was made with "
            f"({listed(changed, 'in config.json', 'in the checkpoint')}). Put the file back; "
            "going on with the training, with the checkpoint's values, writes it anew"
        )


from harmonic_jax.training.detector_file import (
    header_of as header_of,
)
from harmonic_jax.training.detector_file import (
    open_detector as open_detector,
)
from harmonic_jax.training.detector_file import (
    read_weights as read_weights,
)
from harmonic_jax.training.detector_file import (
    write_weights as write_weights,
)
