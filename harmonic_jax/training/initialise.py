"""What a run starts from, and what is refused before it does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Sharding

from harmonic_jax.config import Config, ConfigError, MaskRCNNConfig
from harmonic_jax.data.folders import shared_images
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.pretrained import load_backbone
from harmonic_jax.pretrained.files import kind_of
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.classes import classes_found, listing, match_classes
from harmonic_jax.training.fine_tune import start_from
from harmonic_jax.training.metadata import check_resumable
from harmonic_jax.training.optimizer import warmup_notes
from harmonic_jax.training.processes import run_on_all, run_on_primary
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun, open_detector
from harmonic_jax.training.sharding import replicated, single_mesh
from harmonic_jax.training.state import (
    Detector,
    TrainState,
    Variables,
    abstract_state,
    init_state,
    init_variables,
)


def start_or_resume(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    checkpoints: CheckpointStore,
    metadata: Mapping[str, Any],
    class_names: Sequence[str],
    *,
    sharding: Sharding,
) -> tuple[TrainState, list[str]]:
    """The state to train from, and what a person should know of where it comes from.

    It is the newest checkpoint's; where there is none, that of another run (`--init`), of ImageNet
    weights, or a random one, as the config says.

    Args:
      detector: the model and its config.
      optimizer: whose state goes with the variables.
      checkpoints: of this run.
      metadata: what a checkpoint must agree with to be continued.
      class_names: of the data.
      sharding: where the arrays go.

    Raises:
      ConfigError: the checkpoint is of another config or other data, or nothing says where the
        weights of a frozen backbone come from.
      CheckpointError: there are checkpoints, but none undamaged.
      WeightsError: a file of weights cannot be read, does not fit, or holds NaN.
    """
    config = detector.config
    if run_on_primary(lambda: checkpoints.latest_step() is not None):
        run_on_primary(lambda: check_resumable(checkpoints.read_metadata(), metadata))
        abstract = abstract_state(detector, optimizer, sharding=sharding)
        return checkpoints.restore(abstract).state, []
    settings = config.train
    notes = warmup_notes(config.optim, steps=settings.steps, batch_size=settings.batch_size)
    backbone = config.model.backbone
    # Before anything is compiled: what cannot be opened, and a file that is no file of weights.
    origin = None if config.init is None else _open_origin(Path(config.init), sharding)
    if backbone.weights is not None:
        run_on_all(lambda: kind_of(Path(str(backbone.weights))))
    variables = init_variables(detector, seed=config.train.seed, sharding=sharding)
    if origin is not None:
        variables, changes = start_from(origin, detector, variables, class_names)
        notes += changes
    elif backbone.weights is not None:
        weights = Path(backbone.weights)
        params, rest = run_on_all(
            lambda: load_backbone(variables.params, variables.model_state, weights, config.model)
        )
        variables = jax.device_put(Variables(params, rest), sharding)
    elif backbone.norm != "batch":
        raise ConfigError(
            f"model.backbone.weights is None; with model.backbone.norm = {backbone.norm} it must "
            "name a file of ImageNet weights (or start from a run with --init, or train from "
            "scratch with --model.backbone.norm batch)"
        )
    has_ema = config.optim.ema_decay is not None
    return init_state(variables, optimizer, ema=has_ema, sharding=sharding), notes


def _open_origin(path: Path, sharding: Sharding) -> SavedRun:
    """The best variables of a run, its newest checkpoint (RUN/checkpoints), or those of a file,
    which each process reads for itself."""
    if path.is_file():
        alone = replicated(single_mesh())
        return run_on_all(lambda: open_detector(path, sharding=alone))
    is_last = path.name == "checkpoints" and not RunFolder(path).config.exists()
    return open_detector(path.parent if is_last else path, sharding=sharding, last=is_last)


def match_sources(
    train_source: DetectionSource, eval_source: DetectionSource
) -> tuple[np.ndarray, list[str]]:
    """For each class of the training data its label in the evaluation data, by name; -1: none.

    Returns:
      The labels, and a line on each thing that makes the numbers worth less: classes that are not
      evaluated, or not trained on, and images that are in both.

    Raises:
      ConfigError: names the classes of which there are objects, and that the training data lack.
    """
    known, wanted = train_source.class_names, eval_source.class_names
    found = classes_found(eval_source)
    missing = [name for name in found if name not in known]
    if missing:
        raise ConfigError(
            f"{eval_source.name} has {listing(missing)}, which {train_source.name} does not have "
            f"among its classes ({listing(known)}): both must have the same, in any order"
        )
    notes = []
    if others := [name for name in known if name not in wanted]:
        notes.append(
            f"{eval_source.name} does not have the classes {listing(others)}: not evaluated"
        )
    trained = classes_found(train_source)
    if untrained := [name for name in found if name not in trained]:
        notes.append(f"{train_source.name} has no object of {listing(untrained)} to learn from")
    if shared := shared_images(train_source, eval_source):
        notes.append(
            f"{len(shared)} of {len(eval_source.records)} images of {eval_source.name} are also "
            f"trained on ({listing(shared, most=3)}): they say little about new ones"
        )
    return match_classes(known, wanted, found=found), notes


def check_masks(config: Config) -> None:
    # Not a matter of Config: what is trained on masks may be evaluated on data without any.
    if isinstance(config.model, MaskRCNNConfig) and not config.data.masks:
        raise ConfigError(
            "data.masks is False; it must be True to train Mask R-CNN, on data that has masks"
        )
