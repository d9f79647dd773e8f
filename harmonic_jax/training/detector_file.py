"""A run as one safetensors file that says what it is.

Its header holds the config, the class names and the step as JSON, so that the file alone is enough
to detect with, or to start from; nothing in it is ever executed. There are two layouts: our own
names (`write_weights`), and torchvision's (`pretrained.write_state_dict` with `header_of`).
"""

import json
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from harmonic_jax.files import write_bytes
from harmonic_jax.json_file import parse_json
from harmonic_jax.pretrained import WeightsError, load_detector
from harmonic_jax.pretrained.convert import fault_of
from harmonic_jax.pretrained.files import kind_of, read_metadata, read_names, read_tensors
from harmonic_jax.pretrained.models import PLACEHOLDER
from harmonic_jax.pretrained.recognise import recognise
from harmonic_jax.training import arrays
from harmonic_jax.training.config_json import config_from_json, config_to_json
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun, read_run
from harmonic_jax.training.state import Variables, abstract_variables, build_detector

FORMAT = "harmonic_jax detector 1"
_FOREIGN_FORMAT = "pt"  # torchvision's layout, as `write_state_dict` calls it
_SUFFIXES = (".safetensors", ".pth", ".pt")
_ABOUT = "detector"
_MOST_CLASSES = 100_000
_MOST_STEPS = 2**63 - 1


def open_detector(path: Path, *, sharding: Sharding, last: bool = False) -> SavedRun:
    """Opens a run, or the file that `export` or `export-weights` wrote of one.

    Args:
      path: the folder, or the file.
      sharding: where the arrays go.
      last: of a folder the newest checkpoint instead of the best.

    Raises:
      ConfigError: the folder holds no run, or the file's config is not legal.
      CheckpointError: the run has no undamaged checkpoint of that kind.
      WeightsError: the file holds no detector, or a number is NaN or inf.
    """
    if path.is_file() or path.suffix in _SUFFIXES:
        run = read_weights(path, sharding=sharding)
    else:
        run = read_run(RunFolder(path), sharding=sharding, last=last)
    check_finite(run, path)
    return run


def check_finite(run: SavedRun, path: Path) -> None:
    """Whether all numbers of a run are finite: others detect nothing.

    Raises:
      WeightsError: names the first array that holds NaN or inf.
    """
    for name, leaf in arrays.named_leaves(run.variables).items():
        fault = fault_of(np.asarray(leaf))
        if fault is not None:
            raise WeightsError(f"the weights in {path} are broken: {name} {fault}")


def header_of(run: SavedRun) -> dict[str, str]:
    """What a file says of a run, for `read_weights`.

    Raises:
      WeightsError: its classes cannot be told apart.
    """
    about = {
        "config": config_to_json(run.config),
        "class_names": list(run.class_names),
        "step": run.step,
        "metadata": run.metadata,
    }
    _check_about(about)
    return {_ABOUT: json.dumps(about)}


def write_weights(run: SavedRun, path: Path) -> int:
    """Writes the variables as they are, under names such as `params/backbone/stem/conv/kernel`.

    Args:
      run: a run, opened.
      path: the .safetensors file to write.

    Returns:
      The number of arrays.
    """
    import safetensors.numpy

    leaves = arrays.named_leaves(run.variables)
    content = {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in leaves.items()}
    write_bytes(path, safetensors.numpy.save(content, {"format": FORMAT} | header_of(run)))
    return len(content)


def read_weights(path: Path, *, sharding: Sharding) -> SavedRun:
    """Opens what `write_weights` wrote, or a file in torchvision's layout that says what it is.

    Args:
      path: the .safetensors file.
      sharding: where the arrays go.

    Raises:
      OSError: there is no such file, or it may not be read.
      WeightsError: the file holds no detector, or not all of its arrays.
      ConfigError: its config is not legal, or of a newer version.
    """
    header = read_metadata(path) if kind_of(path) == "safetensors" else {}
    if _ABOUT not in header:
        raise WeightsError(_advice(path, header))
    written_as = header.get("format")
    if written_as not in (FORMAT, _FOREIGN_FORMAT):
        raise WeightsError(f"{path} has the format {written_as!r}; this version reads {FORMAT!r}")
    about = _read_about(path, header[_ABOUT])
    config = config_from_json(about["config"], where=f"{path}: ")
    class_names = tuple(about["class_names"])
    detector = build_detector(config, len(class_names))
    wanted = abstract_variables(detector, sharding=sharding)
    if written_as == FORMAT:
        variables = _read_variables(path, wanted, sharding)
    else:
        loaded = load_detector(
            wanted.params, wanted.model_state, path, config.model, len(class_names)
        )
        variables = Variables(*loaded)
    return SavedRun(config, class_names, detector, variables, about["step"], about["metadata"])


def _read_variables(path: Path, wanted: Variables, sharding: Sharding) -> Variables:
    stored = read_tensors(path)
    leaves = arrays.named_leaves(wanted)
    difference = arrays.first_difference(arrays.describe(stored), arrays.describe(leaves))
    if difference is not None:
        raise WeightsError(f"{path} does not hold the detector it describes: {difference}")
    placed = [jax.device_put(stored[name], sharding) for name in leaves]
    variables: Variables = jax.tree.unflatten(jax.tree.structure(wanted), placed)
    return variables


def _advice(path: Path, header: dict[str, str]) -> str:
    """What to do with a file that does not say what it holds."""
    name = shlex.quote(str(path))
    model = recognise(read_names(path)) if kind_of(path) == "safetensors" else None
    if model is not None and model.startswith(("ResNet", "VGG")):
        return f"{path} is a classifier ({model}): train on it with --model.backbone.weights {name}"
    looks = "" if model is None else f" (it looks like {model})"
    return (
        f"{path} is no detector of harmonic_jax: it does not say what model and which classes it "
        f"holds{looks}. Make a run of it with `harmonic-jax import-weights {name} --to "
        "MODEL --out RUN`, and use RUN in its place"
    )


def _read_about(path: Path, text: str) -> dict[str, Any]:
    try:
        about = parse_json(text, "the text")
        _check_about(about)
    except ValueError as error:  # of JSON, and ours
        raise WeightsError(f"{path}: what it says of itself is damaged: {error}") from error
    return dict(about)


def _check_about(about: Any) -> None:
    """Whether there is what a `SavedRun` needs; the config is checked where it is made."""
    _require(isinstance(about, dict), "it is no object")
    for field in ("config", "class_names", "step", "metadata"):
        _require(field in about, f"{field} is missing")
    names, step, metadata = about["class_names"], about["step"], about["metadata"]
    _require(
        isinstance(names, list) and 0 < len(names) <= _MOST_CLASSES,
        f"class_names must be a list of 1 to {_MOST_CLASSES} names",
    )
    seen = set()
    for name in names:
        _require(isinstance(name, str) and _is_text(name), f"class name {name!r} is no text")
        _require(name not in seen or name == PLACEHOLDER, f"class name {name!r} is there twice")
        seen.add(name)
    _require(type(step) is int and 0 <= step <= _MOST_STEPS, "step must be a number of steps")
    _require(isinstance(metadata, dict), "metadata is no object")
    ids = metadata.get("category_ids")
    _require(
        ids is None or (isinstance(ids, list) and len(ids) == len(names) and _are_ids(ids)),
        "category_ids must be a different whole number of 64 bits for each class",
    )
    old_names = metadata.get("torchvision_names", {})
    _require(
        isinstance(old_names, dict) and all(isinstance(v, str) for v in old_names.values()),
        "torchvision_names must hold names",
    )


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise WeightsError(problem)


def _is_text(name: str) -> bool:
    """Not half of a surrogate pair, which no file can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_ids(ids: list[Any]) -> bool:
    are_numbers = all(type(i) is int and -(2**63) <= i < 2**63 for i in ids)
    return are_numbers and len(set(ids)) == len(ids)
