"""What a run starts from: its own newest checkpoint, another run, ImageNet weights, or chance.

From another run, whose classes may differ, everything but the layers that speak of classes must
fit and is taken; of those the weights of each class that both runs know by name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Sharding

from harmonic_jax.config import ConfigError
from harmonic_jax.pretrained import load_backbone
from harmonic_jax.pretrained.hub import backbone_weights, is_published
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.config_json import differences
from harmonic_jax.training.evaluation import listing
from harmonic_jax.training.optimizer import warmup_notes
from harmonic_jax.training.processes import run_on_all, run_on_primary
from harmonic_jax.training.run_folder import RunFolder, check_same
from harmonic_jax.training.saved_run import SavedRun, open_detector
from harmonic_jax.training.sharding import replicated, single_mesh
from harmonic_jax.training.state import (
    Detector,
    TrainState,
    Variables,
    abstract_state,
    abstract_variables,
    build_detector,
    init_state,
    init_variables,
)

_LeafPath = tuple[Any, ...]
# Where an array has numbers for each class: its axis `[groups * (k + background) * per_class]`,
# groups and per_class. Dense heads have a group an anchor; box deltas of each class 4 numbers.
_Layout = tuple[int, int, int]
_MOST_LEAVES = 5  # in an error message
# Fields of a model that act before the first step or in the loop only.
_HARMLESS = ("model.backbone.weights", "model.backbone.frozen_stages", "model.prior")


def start_or_resume(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    checkpoints: CheckpointStore,
    metadata: Mapping[str, Any],
    *,
    sharding: Sharding,
) -> tuple[TrainState, list[str]]:
    """The state to train from, and what a person should know of where it comes from.

    It is the newest checkpoint's, which must agree with `metadata`; where there is none, that of
    another run (`--init`), of ImageNet weights, or a random one, as the config says.

    Raises:
      ConfigError: the checkpoint is of another config or other data, or nothing says where the
        weights of a frozen backbone come from.
      CheckpointError: there are checkpoints, but none undamaged.
      WeightsError: a file of weights cannot be read, does not fit, or holds NaN.
    """
    config = detector.config
    if run_on_primary(lambda: checkpoints.latest_step() is not None):
        found = run_on_primary(checkpoints.read_metadata)
        check_same(found, metadata, "the checkpoint was made")
        abstract = abstract_state(detector, optimizer, sharding=sharding)
        return checkpoints.restore(abstract).state, []
    settings = config.train
    notes = warmup_notes(config.optim, config.train)
    backbone = config.model.backbone
    # Before anything is compiled: what cannot be opened, and a file that is no file of weights.
    origin = None if config.init is None else open_origin(Path(config.init), sharding)
    weights = None
    if origin is None and backbone.weights is not None:
        weights = run_on_all(lambda: backbone_weights(backbone))
    variables = init_variables(detector, seed=settings.seed, sharding=sharding)
    if origin is not None:
        variables, changes = start_from(origin, detector, variables, metadata["class_names"])
        notes += changes
    elif weights is not None:
        loaded = run_on_all(
            lambda: load_backbone(variables.params, variables.model_state, weights, config.model)
        )
        variables = jax.device_put(Variables(*loaded), sharding)
    elif backbone.norm != "batch":
        raise ConfigError(
            f"model.backbone.weights is None; with model.backbone.norm = {backbone.norm} it must "
            "name a file of ImageNet weights (or start from a run with --init, or train from "
            "scratch with --model.backbone.norm batch)"
        )
    has_ema = config.optim.ema_decay is not None
    return init_state(variables, optimizer, ema=has_ema, sharding=sharding), notes


def open_origin(path: Path, sharding: Sharding) -> SavedRun:
    """The best variables of a run, its newest checkpoint (RUN/checkpoints), or those of a file,
    which each process reads for itself."""
    if path.is_file() or is_published(path):
        alone = replicated(single_mesh())
        return run_on_all(lambda: open_detector(path, sharding=alone))
    is_last = path.name == "checkpoints" and not RunFolder(path).config.exists()
    return open_detector(path.parent if is_last else path, sharding=sharding, last=is_last)


def start_from(
    run: SavedRun, detector: Detector, fresh: Variables, class_names: Sequence[str]
) -> tuple[Variables, list[str]]:
    """The variables a fine-tuned run starts with.

    Everything but the layers that speak of classes must fit and is taken. With the same classes
    in the same order those are taken too; otherwise they start afresh, and of each class that
    both runs know by name the weights are carried over (with background's, in a softmax head).

    Returns:
      The variables on the devices of `fresh`, the new detector's, and lines that say what is new.

    Raises:
      ConfigError: a leaf that has another shape, or that only one of them has.
    """
    old = {path: np.asarray(leaf) for path, leaf in _leaves(run.variables).items()}
    has_same_classes = tuple(class_names) == run.class_names
    layouts = {} if has_same_classes else _class_layouts(detector)
    changed = [
        f"{field} was {there!r} and is {here!r}"
        for field, (there, here) in differences(run.config, detector.config).items()
        if field.startswith("model.") and not field.startswith(_HARMLESS)
    ]
    if problems := _problems(old, _leaves(fresh), layouts):
        raise ConfigError(
            f"init names the run {run.config.name}, which does not fit the model: {problems}. "
            f"Options that differ: {'; '.join(changed) or 'none'}"
        )
    notes = [f"starts from step {run.step} of {run.config.name}"]
    # Options under which the same numbers mean something else.
    notes += [f"note: {change}" for change in changed]
    origin = {name: i for i, name in reversed(list(enumerate(run.class_names)))}
    source = np.array([origin.get(name, -1) for name in class_names])
    if not has_same_classes:
        carried = [name for name in class_names if name in origin]
        new = [name for name in class_names if name not in origin]
        notes.append(f"classes carried over: {listing(carried)}; new: {listing(new)}")

    def place(path: _LeafPath, variable: nnx.Variable) -> nnx.Variable:
        leaf, value = variable.get_value(), old[path]
        if path in layouts:
            notes.append(f"  {_name(path)}: {list(value.shape)} -> {list(leaf.shape)}")
            value = _carry_over(np.asarray(leaf), value, source, layouts[path])
        return variable.replace(jax.device_put(value, leaf.sharding))

    parts = (fresh.params, fresh.model_state)
    return Variables(*(nnx.map_state(place, part) for part in parts)), notes


def _class_layouts(detector: Detector) -> dict[_LeafPath, _Layout]:
    """The leaves whose shape depends on the number of classes, found by asking for one more."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    larger = build_detector(detector.config, detector.num_classes + 1)
    leaves, larger_leaves = (
        _leaves(abstract_variables(d, sharding=sharding)) for d in (detector, larger)
    )
    layouts = {}
    for path, leaf in leaves.items():
        for axis, (size, more) in enumerate(
            zip(leaf.shape, larger_leaves[path].shape, strict=True)
        ):
            if size != more:
                # The deltas of a class lie side by side; elsewhere an anchor has its classes so.
                each = more - size
                layouts[path] = (axis, 1, each) if "deltas" in path else (axis, each, 1)
    return layouts


def _carry_over(
    fresh: np.ndarray, old: np.ndarray, source: np.ndarray, layout: _Layout
) -> np.ndarray:
    """Fresh values, but those of the old class `source[c]` for each class c that has one.

    Background comes along where any class does: it is told from what it was told from.
    """
    axis, groups, per_class = layout

    def by_class(array: np.ndarray) -> np.ndarray:
        """A view with the classes in front: `[k (+ background), groups, per_class, ..]`."""
        moved = np.moveaxis(array, axis, 0)
        return np.moveaxis(moved.reshape(groups, -1, per_class, *moved.shape[1:]), 1, 0)

    rows, old_rows = by_class(fresh).copy(), by_class(old)
    known = np.flatnonzero(source >= 0)
    rows[known] = old_rows[source[known]]
    if len(rows) > len(source) and len(known):
        rows[-1] = old_rows[-1]
    split = np.moveaxis(rows, 0, 1)
    return np.moveaxis(split.reshape(-1, *split.shape[3:]), 0, axis)


def _problems(
    old: Mapping[_LeafPath, Any], new: Mapping[_LeafPath, Any], carried: Mapping[_LeafPath, Any]
) -> str:
    """What does not fit, but for leaves that are carried over class by class."""
    problems = [f"{_name(path)} is missing there" for path in new if path not in old]
    problems += [f"{_name(path)} is only there" for path in old if path not in new]
    problems += [
        f"{_name(path)} is {list(old[path].shape)} there and {list(leaf.shape)} here"
        for path, leaf in new.items()
        if path in old and path not in carried and old[path].shape != leaf.shape
    ]
    return "; ".join([*problems[:_MOST_LEAVES], *(["and more"] if problems[_MOST_LEAVES:] else [])])


def _leaves(variables: Variables) -> dict[_LeafPath, Any]:
    """Path -> array, trained or not: a layer may have been frozen in one of two runs only."""
    return {
        path: variable.get_value()
        for part in (variables.params, variables.model_state)
        for path, variable in nnx.to_flat_state(part)
    }


def _name(path: _LeafPath) -> str:
    return "/".join(map(str, path))
