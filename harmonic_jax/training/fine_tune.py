"""Starting from the variables of another run, whose classes may differ."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from harmonic_jax.config import ConfigError
from harmonic_jax.training.config_json import differences
from harmonic_jax.training.saved_run import SavedRun
from harmonic_jax.training.state import Detector, Variables, abstract_variables, build_detector

Path = tuple[Any, ...]
SHOWN = 5  # leaves in an error message
LISTED = 10  # classes in a line

# Fields of a model that act before the first step or in the loop only.
_HARMLESS = ("model.backbone.weights", "model.backbone.frozen_stages", "model.prior")


@dataclasses.dataclass(frozen=True)
class ClassAxis:
    """Where an array has numbers for each class: `[.., groups * (k + background) * per_class, ..]`.

    Dense heads have a group an anchor; box deltas of each class have 4 numbers a class.
    """

    axis: int
    groups: int
    per_class: int
    has_background: bool

    def rows(self, array: np.ndarray) -> np.ndarray:
        """A view with the classes in front: `[k + background, ..]`."""
        moved = np.moveaxis(array, self.axis, 0)
        split = moved.reshape(self.groups, -1, self.per_class, *moved.shape[1:])
        return np.moveaxis(split, 1, 0)

    def join(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of `rows`."""
        split = np.moveaxis(rows, 0, 1)
        return np.moveaxis(split.reshape(-1, *split.shape[3:]), 0, self.axis)


def start_from(
    run: SavedRun, detector: Detector, fresh: Variables, class_names: Sequence[str]
) -> tuple[Variables, list[str]]:
    """The variables a fine-tuned run starts with.

    Everything but the layers that speak of classes must fit and is taken. With the same classes
    in the same order those are taken too; otherwise they start afresh, and of each class that
    both runs know by name the weights are carried over (with background's, in a softmax head).

    Args:
      run: where to start from.
      detector: the new detector.
      fresh: its initial variables.
      class_names: its classes.

    Returns:
      The variables on the devices of `fresh`, and lines that say what is new.

    Raises:
      ConfigError: a leaf that has another shape, or that only one of them has.
    """
    old = {path: np.asarray(leaf) for path, leaf in _leaves(run.variables).items()}
    axes = _class_axes(detector)
    same_classes = tuple(class_names) == run.class_names
    _check_fit(old, _leaves(fresh), set() if same_classes else set(axes), run, detector)
    notes = [f"starts from step {run.step} of {run.config.name}", *_other_options(run, detector)]
    origin = {name: i for i, name in reversed(list(enumerate(run.class_names)))}
    source = np.array([origin.get(name, -1) for name in class_names])
    if not same_classes:
        carried = [name for name in class_names if name in origin]
        new = [name for name in class_names if name not in origin]
        notes.append(f"classes carried over: {_listing(carried)}; new: {_listing(new)}")

    def place(path: Path, variable: nnx.Variable) -> nnx.Variable:
        leaf, value = variable.get_value(), old[path]
        if path in axes and not same_classes:
            shape = value.shape
            value = _carry_over(np.asarray(leaf), value, source, axes[path])
            notes.append(f"  {'/'.join(map(str, path))}: {list(shape)} -> {list(value.shape)}")
        return variable.replace(jax.device_put(value, leaf.sharding))

    params, rest = nnx.map_state(place, fresh.params), nnx.map_state(place, fresh.model_state)
    return Variables(params, rest), notes


def _carry_over(
    fresh: np.ndarray, old: np.ndarray, source: np.ndarray, axis: ClassAxis
) -> np.ndarray:
    """Fresh values, but those of the old class `source[c]` for each class c that has one.

    Background comes along where any class does: it is told from what it was told from.
    """
    new_rows, old_rows = axis.rows(fresh).copy(), axis.rows(old)
    known = np.flatnonzero(source >= 0)
    new_rows[known] = old_rows[source[known]]
    if axis.has_background and len(known):
        new_rows[-1] = old_rows[-1]
    return axis.join(new_rows)


def _class_axes(detector: Detector) -> dict[Path, ClassAxis]:
    """The leaves whose shape depends on the number of classes, found by asking for one more."""
    k = detector.num_classes
    more = build_detector(detector.config, k + 1)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes, larger = (
        {
            path: leaf.shape
            for path, leaf in _leaves(abstract_variables(d, sharding=sharding)).items()
        }
        for d in (detector, more)
    )
    return {
        path: _class_axis(path, shape, larger[path], k)
        for path, shape in shapes.items()
        if shape != larger[path]
    }


def _class_axis(path: Path, shape: tuple[int, ...], larger: tuple[int, ...], k: int) -> ClassAxis:
    (axis,) = (i for i, (a, b) in enumerate(zip(shape, larger, strict=True)) if a != b)
    each = larger[axis] - shape[axis]  # numbers of a class
    has_background = shape[axis] == each * (k + 1)
    # The deltas of a class lie side by side; elsewhere an anchor has its classes side by side.
    is_deltas = "deltas" in path
    return ClassAxis(axis, 1 if is_deltas else each, each if is_deltas else 1, has_background)


def _check_fit(
    old: dict[Path, np.ndarray],
    new: dict[Path, Any],
    excepted: set[Path],
    run: SavedRun,
    detector: Detector,
) -> None:
    def name(path: Path) -> str:
        return "/".join(map(str, path))

    problems = [f"{name(path)} is missing there" for path in new if path not in old]
    problems += [f"{name(path)} is only there" for path in old if path not in new]
    problems += [
        f"{name(path)} is {list(old[path].shape)} there and {list(leaf.shape)} here"
        for path, leaf in new.items()
        if path in old and path not in excepted and old[path].shape != leaf.shape
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ConfigError(
            f"init names the run {run.config.name}, which does not fit the model: "
            f"{'; '.join(problems[:SHOWN])}{more}. {_other_model(run, detector)}"
        )


def _other_model(run: SavedRun, detector: Detector) -> str:
    there, here = type(run.config.model).__name__, type(detector.config.model).__name__
    if there != here:
        return f"It is a {there}, the model a {here}"
    options = [f"{name} is {a!r} there and {b!r} here" for name, a, b in _options(run, detector)]
    return f"Options that differ: {'; '.join(options) or 'none'}"


def _other_options(run: SavedRun, detector: Detector) -> list[str]:
    """Options under which the same numbers mean something else."""
    return [f"note: {name} was {a!r} and is {b!r}" for name, a, b in _options(run, detector)]


def _options(run: SavedRun, detector: Detector) -> list[tuple[str, Any, Any]]:
    """Options of the model that differ, there and here, but for those that change nothing."""
    changed = differences(run.config, detector.config)
    return [
        (field, there, here)
        for field, (there, here) in changed.items()
        if field.startswith("model.") and not field.startswith(_HARMLESS)
    ]


def _leaves(variables: Variables) -> dict[Path, Any]:
    """Path -> array, trained or not: a layer may have been frozen in one of two runs only."""
    return {
        path: variable.get_value()
        for part in (variables.params, variables.model_state)
        for path, variable in nnx.to_flat_state(part)
    }


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more if names else "none"
