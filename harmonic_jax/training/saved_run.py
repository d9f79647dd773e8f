"""A finished, running or imported run, opened to be used: evaluated, exported, fine-tuned.

A run is a folder, or one safetensors file that says what it is: its header holds the config, the
class names and the step as JSON, so that the file alone is enough to detect with, or to start from;
nothing in it is ever executed. There are two kinds of layout: our own names (`write_weights`), and
torchvision's or transformers' (`pretrained.write_state_dict` with `header_of`).
"""

import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import jax
import msgspec
import numpy as np
from jax.sharding import Sharding

from harmonic_jax.config import Config, ConfigError, LossConfig
from harmonic_jax.files import write_bytes
from harmonic_jax.json_file import parse_json, read_json
from harmonic_jax.pretrained import WeightsError, hub, load_detector
from harmonic_jax.pretrained.convert import StoredAs, as_dtype, fault_of, widened
from harmonic_jax.pretrained.files import kind_of, read_metadata, read_tensors
from harmonic_jax.pretrained.models import DETECTORS, PublishedDetector
from harmonic_jax.pretrained.transformers import detector_of
from harmonic_jax.training import arrays
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.config_json import config_from_json, config_to_json
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.processes import ProcessFailedError, run_on_primary
from harmonic_jax.training.run_folder import RunFolder, class_names_of, config_of
from harmonic_jax.training.state import (
    Detector,
    Variables,
    abstract_state,
    abstract_variables,
    build_detector,
)

FORMAT = "harmonic_jax detector 1"
_FOREIGN_FORMAT = "pt"  # torchvision's layout, as `write_state_dict` calls it
_SUFFIXES = (".safetensors", ".pth", ".pt")
_ABOUT = "detector"


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """The variables of a run and what they mean."""

    config: Config
    class_names: tuple[str, ...]
    detector: Detector
    variables: Variables
    step: int
    metadata: dict[str, Any]


class _About(msgspec.Struct):
    """What a file's header says of the run."""

    config: Any
    class_names: Any
    step: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    metadata: dict[str, Any]


def open_detector(path: Path, *, sharding: Sharding, last: bool = False) -> SavedRun:
    """Opens a run, what `export-weights` wrote of one, or what is published.

    Args:
      path: the folder, the file, or a name: of a detector that comes with this package (a file or
        folder of that name is meant first), `hf:OWNER/NAME` of the Hugging Face Hub, or
        `torchvision:NAME` (see `harmonic_jax.pretrained.hub`).
      last: of a folder the newest checkpoint instead of the best.

    Raises:
      ConfigError: the folder holds no run, or the file's config is not legal.
      CheckpointError: the run has no undamaged checkpoint of that kind.
      WeightsError: the file holds no detector, or a number is NaN or inf.
    """
    name = str(path)
    if name.startswith(hub.TORCHVISION):
        run = _read_torchvision(name.removeprefix(hub.TORCHVISION), sharding)
    elif name.startswith(hub.HUB):
        repository = name.removeprefix(hub.HUB)
        weights = hub.hub_file(repository)
        if _ABOUT not in read_metadata(weights):  # then a file beside it says what it is
            hub.hub_file(repository, file=hub.CONFIG_FILE)
        run = read_weights(weights, sharding=sharding)
    elif shipped := hub.shipped_file(path):
        run = read_weights(shipped, sharding=sharding)
    elif path.is_file() or path.suffix in _SUFFIXES:
        run = read_weights(path, sharding=sharding)
    elif (path / hub.WEIGHTS_FILE).is_file():
        run = read_weights(path / hub.WEIGHTS_FILE, sharding=sharding)
    else:
        run = read_run(RunFolder(path), sharding=sharding, last=last)
    for name, leaf in arrays.named_leaves(run.variables).items():
        fault = fault_of(np.asarray(leaf))
        if fault is not None:  # it would detect nothing
            raise WeightsError(f"the weights in {path} are broken: {name} {fault}")
    return run


def read_run(folder: RunFolder, *, sharding: Sharding, last: bool = False) -> SavedRun:
    """Reads the best variables of a run, or with `last` those of its newest checkpoint.

    Where a run averages its parameters, the newest are the average.

    Raises:
      ConfigError: the folder holds no run, or what the checkpoint says of itself is not legal.
      CheckpointError: it holds no undamaged checkpoint.
    """
    if not run_on_primary(folder.config.exists):
        reason = f"there is no {folder.config}"
        if not folder.path.exists():
            shipped = ", ".join(hub.shipped_names()) or "none, so name the folder of a run"
            reason += f"; trained detectors in this install of harmonic_jax: {shipped}"
        raise ConfigError(f"{folder.path} holds no run: {reason}")
    store = CheckpointStore(folder.checkpoints if last else folder.best)
    try:
        metadata = run_on_primary(store.read_metadata)
        config = config_of(metadata, where=store.directory)
        class_names = class_names_of(metadata, where=f"in the manifest of {store.directory}")
        detector = build_detector(config, len(class_names))
        if last:
            optimizer = make_optimizer(config.optim, config.train)
            restored = store.restore(abstract_state(detector, optimizer, sharding=sharding))
            variables = restored.state.for_evaluation
        else:
            restored = store.restore(abstract_variables(detector, sharding=sharding))
            variables = restored.state
    except (CheckpointError, ProcessFailedError) as error:
        checkpoints = shlex.quote(str(folder.checkpoints))
        other = f"newest checkpoint opens with --last (last=True), and with --init {checkpoints}"
        other = "best variables open without --last" if last else other
        raise CheckpointError(f"{error}. Where the run has one, its {other}") from error
    return SavedRun(config, class_names, detector, variables, restored.step, restored.metadata)


def header_of(run: SavedRun) -> dict[str, str]:
    """What a file says of a run, for `read_weights`; ConfigError if its classes are not legal."""
    classes = {"class_names": list(run.class_names)}
    class_names_of(run.metadata | classes, where="the run")
    config = config_to_json(run.config)
    about = {"config": config, **classes, "step": run.step, "metadata": run.metadata}
    return {_ABOUT: json.dumps(about)}


def without_places(run: SavedRun) -> SavedRun:
    """A run to hand on: of the paths of this machine, its config keeps the last names."""

    def shorten(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shorten(part) for key, part in value.items()}
        is_path = isinstance(value, str) and os.path.isabs(value)
        return os.path.basename(value) if is_path else value

    config = config_from_json(shorten(config_to_json(run.config)))
    metadata = {key: value for key, value in run.metadata.items() if key != "config"}
    return dataclasses.replace(run, config=config, metadata=metadata)


def write_weights(run: SavedRun, path: Path, *, dtype: StoredAs = "float32") -> int:
    """Writes the variables as they are, under names such as `params/backbone/stem/conv/kernel`.

    Float32 arrays are stored as `dtype`, and read as float32. Returns the number of arrays.
    """
    import safetensors.numpy

    leaves = arrays.named_leaves(run.variables)
    content = {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in leaves.items()}
    content = as_dtype(content, dtype)
    write_bytes(path, safetensors.numpy.save(content, {"format": FORMAT} | header_of(run)))
    return len(content)


def read_weights(path: Path, *, sharding: Sharding) -> SavedRun:
    """Opens what `write_weights` wrote, or a foreign file that says what it is: in its header, or,
    of transformers, in the config.json beside it.

    Raises:
      WeightsError: the file holds no detector, or not all of its arrays.
      ConfigError: its config or its classes are not legal, or of a newer version.
    """
    header = read_metadata(path) if kind_of(path) == "safetensors" else {}
    if _ABOUT not in header:
        beside = path.with_name(hub.CONFIG_FILE)
        if kind_of(path) == "safetensors" and beside.is_file():
            return _read_transformers(path, beside, sharding)
        raise WeightsError(_advice(path))
    written_as = header.get("format")
    if written_as not in (FORMAT, _FOREIGN_FORMAT):
        raise WeightsError(f"{path} has the format {written_as!r}; this version reads {FORMAT!r}")
    try:
        about = msgspec.convert(parse_json(header[_ABOUT], "the text"), _About)
    except ValueError as error:
        raise WeightsError(f"{path}: what it says of itself is damaged: {error}") from error
    metadata = about.metadata | {"class_names": about.class_names}
    class_names = class_names_of(metadata, where=path)
    config = config_from_json(about.config, where=f"{path}: ")
    detector = build_detector(config, len(class_names))
    wanted = abstract_variables(detector, sharding=sharding)
    if written_as == FORMAT:
        variables = _read_variables(path, wanted, sharding)
    else:
        loaded = load_detector(
            wanted.params, wanted.model_state, path, config.model, len(class_names)
        )
        variables = Variables(*loaded)
    return SavedRun(config, class_names, detector, variables, about.step, about.metadata)


def _read_torchvision(name: str, sharding: Sharding) -> SavedRun:
    """One of torchvision's published detectors, with the classes of COCO."""
    path, foreign = hub.torchvision_file(name), DETECTORS[name]
    return _read_foreign(path, Config(name, foreign.data, foreign.model), foreign, sharding)


def _read_transformers(path: Path, about: Path, sharding: Sharding) -> SavedRun:
    """A detector as transformers' `save_pretrained` writes it."""
    try:
        foreign = detector_of(read_json(about))
    except WeightsError as error:
        raise WeightsError(f"{about}: {error}") from error
    loss = LossConfig(hardet=False, cls_loss="varifocal")
    config = Config("rtdetr", foreign.data, foreign.model, loss)
    return _read_foreign(path, config, foreign, sharding)


def _read_foreign(
    path: Path, config: Config, foreign: PublishedDetector, sharding: Sharding
) -> SavedRun:
    """Weights in another library's layout, as they were published."""
    detector = build_detector(config, len(foreign.class_names))
    wanted = abstract_variables(detector, sharding=sharding)
    loaded = load_detector(
        wanted.params, wanted.model_state, path, config.model, len(foreign.class_names)
    )
    metadata = {"category_ids": list(foreign.category_ids)}
    return SavedRun(config, foreign.class_names, detector, Variables(*loaded), 0, metadata)


def _read_variables(path: Path, wanted: Variables, sharding: Sharding) -> Variables:
    stored = {name: widened(array) for name, array in read_tensors(path).items()}
    leaves = arrays.named_leaves(wanted)
    difference = arrays.first_difference(arrays.describe(stored), arrays.describe(leaves))
    if difference is not None:
        raise WeightsError(f"{path} does not hold the detector it describes: {difference}")
    placed = [jax.device_put(stored[name], sharding) for name in leaves]
    variables: Variables = jax.tree.unflatten(jax.tree.structure(wanted), placed)
    return variables


def _advice(path: Path) -> str:
    """What to do with a file that does not say what it holds."""
    name = shlex.quote(str(path))
    return (
        f"{path} is no detector of harmonic_jax: it does not say what model and which classes it "
        f"holds. Make a run of it with `harmonic-jax import-weights {name} --to MODEL --out RUN`, "
        "and use RUN in its place; of a classifier, train on it with --model.backbone.weights"
    )
