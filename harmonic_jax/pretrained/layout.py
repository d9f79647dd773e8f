"""Fitting a foreign state dict to a model's state and back, every leaf checked.

A family of models is described by one `Layout`: the name of each of our leaves in PyTorch's state
dict, and the `Transform` between the two arrays. A file of this room provides

    def ssd_layout(config: SSDConfig, num_classes: int) -> Layout: ...

made of a name function and, where `standard_transform` is not enough, a transform function, both
of a leaf's path. The import and the export follow from it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
import numpy as np
from flax import nnx

from harmonic_jax.pretrained.errors import WeightsError
from harmonic_jax.pretrained.recognise import recognise, side_by_side
from harmonic_jax.pretrained.transform import SAME, Transform, conv_kernel, linear_kernel

Path = tuple[str | int, ...]

# Our leaf -> PyTorch's, for a convolution, a linear layer, GroupNorm and batch norm.
LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# A counter of PyTorch's batch norms that nothing reads.
COUNTER = ".num_batches_tracked"
SHOWN = 5  # names in an error message, and as many shapes
_HALVES = (np.dtype("float16"), np.dtype("bfloat16"))


def standard_transform(leaf: Path, ndim: int) -> Transform:
    """Kernels by their rank: `[h w i o]` is OIHW there (groups included), `[i o]` is OI.

    Everything else is the same on both sides.

    Args:
        leaf: path of our leaf.
        ndim: its rank.
    """
    if leaf[-1] != "kernel":
        return SAME
    return {4: conv_kernel(), 2: linear_kernel()}.get(ndim, SAME)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model is written in PyTorch's state dict.

    Attributes:
        name: path of our leaf -> its name there; None: the file has nothing for this leaf, which
            stays as it is.
        transform: path and rank of our leaf -> how its array is laid out there. A family's own
            function answers for its special leaves and leaves the others to
            `standard_transform`.
        ignored: prefixes of names there that the model has no use for.
        renamed: a name in a file of an older version -> today's name. Names it does not know it
            returns as they are.
    """

    name: Callable[[Path], str | None]
    transform: Callable[[Path, int], Transform] = standard_transform
    ignored: tuple[str, ...] = ()
    renamed: Callable[[str], str] = str


def fit_state(
    params: nnx.State, model_state: nnx.State, state_dict: Mapping[str, np.ndarray], layout: Layout
) -> tuple[nnx.State, nnx.State]:
    """Replace leaves of a model's state by arrays of a PyTorch state dict.

    float16 and bfloat16 become float32, which has all their numbers.

    Args:
        params: the trained part of the state.
        model_state: the other part; both keep their structure.
        state_dict: PyTorch's names, layouts and values.
        layout: names and transforms.

    Returns:
        New `params` and `model_state`.

    Raises:
        WeightsError: names that are missing, left over, or of another shape or dtype; numbers
            that are NaN or infinite.
    """
    todays = _todays_names(state_dict, layout)
    wanted: list[str] = []
    unfit: list[str] = []

    def replace(path: Path, variable: nnx.Variable) -> nnx.Variable:
        name = layout.name(path)
        if name is None:
            return variable
        wanted.append(name)
        if name not in todays:
            return variable
        array, old = _widened(todays[name]), variable.get_value()
        transform = layout.transform(path, old.ndim)
        shape = transform.torch_shape(old.shape)
        if array.shape != shape or array.dtype != old.dtype:
            unfit.append(
                f"{name} is {array.dtype}{list(array.shape)}, "
                f"the model needs {old.dtype}{list(shape)}"
            )
            return variable
        fault = fault_of(array)
        if fault is not None:
            unfit.append(f"{name} {fault}")
            return variable
        return variable.replace(_place_like(transform.to_ours(array), old))

    new_params, new_model_state = (
        nnx.map_state(replace, params),
        nnx.map_state(replace, model_state),
    )
    names = _names_that_differ(wanted, todays, layout)
    if names or unfit:
        shown = names[:SHOWN] + unfit[:SHOWN]
        num_more = len(names) + len(unfit) - len(shown)
        more = f" and {num_more} more" if num_more else ""
        there, here = recognise(todays), recognise(wanted)
        hint = f". The file looks like {there}, the model is {here}" if there != here else ""
        raise WeightsError(f"the weights do not fit the model: {'; '.join(shown)}{more}{hint}")
    return new_params, new_model_state


def fault_of(array: np.ndarray) -> str | None:
    """Why an array is no weights; None: it may be.

    >>> fault_of(np.array([1.0, np.nan]))
    'holds NaN or inf (1 of 2 numbers)'
    """
    if not jax.dtypes.issubdtype(array.dtype, np.floating):
        return None
    finite = int(np.isfinite(array).sum())
    if finite < array.size:
        return f"holds NaN or inf ({array.size - finite} of {array.size} numbers)"
    return None


def _todays_names(state_dict: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    todays: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        today = layout.renamed(name)
        if today in todays:
            raise WeightsError(f"the weights hold {today} twice, under a newer and an older name")
        todays[today] = array
    return todays


def _names_that_differ(
    wanted: Sequence[str], todays: Mapping[str, np.ndarray], layout: Layout
) -> list[str]:
    known = set(wanted)
    surplus = [
        name
        for name in todays
        if name not in known and not name.startswith(layout.ignored) and not name.endswith(COUNTER)
    ]
    return side_by_side([name for name in wanted if name not in todays], surplus, SHOWN)


def export_state(
    params: nnx.State,
    model_state: nnx.State,
    layout: Layout,
    *,
    originals: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The inverse of `fit_state`: PyTorch's names and layouts of every leaf that has a name.

    Args:
        params: the trained part of the state.
        model_state: the other part.
        layout: names and transforms.
        originals: what `remainder` kept of the file that was read, under today's names. One that
            has no leaf is written as it is; one that a leaf holds in part is written where the
            leaf has not changed since.

    Returns:
        name -> contiguous array. With the originals: bit for bit what `fit_state` read.
    """
    originals = dict(originals or {})
    state_dict: dict[str, np.ndarray] = {}
    for part in (params, model_state):
        for key, variable in nnx.to_flat_state(part):
            path = cast(Path, key)
            name = layout.name(path)
            if name is None:
                continue
            array = np.asarray(variable.get_value())
            transform = layout.transform(path, array.ndim)
            original = originals.pop(name, None)
            theirs = np.asarray(transform.to_torch(array), order="C")
            is_unchanged = (
                original is not None
                and original.shape == theirs.shape
                and _same_bits(transform.to_ours(_widened(original)), array)
            )
            state_dict[name] = cast(np.ndarray, original) if is_unchanged else theirs
    return state_dict | originals


def remainder(
    params: nnx.State, model_state: nnx.State, state_dict: Mapping[str, np.ndarray], layout: Layout
) -> dict[str, np.ndarray]:
    """What the state that was read from a file cannot give back, under today's names.

    Counters of batch norms, ignored tensors, and whole tensors of which our model holds a part.
    """
    exported = export_state(params, model_state, layout)
    todays = _todays_names(state_dict, layout)
    return {
        name: array
        for name, array in todays.items()
        if name not in exported or not _same_bits(exported[name], array)
    }


def _widened(array: np.ndarray) -> np.ndarray:
    """float16 and bfloat16 as float32, which has all their numbers; others as they are."""
    return array.astype(np.float32) if array.dtype in _HALVES else array


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _place_like(array: np.ndarray, old: jax.Array) -> jax.Array:
    """The array on the devices, and with the sharding, of the one it replaces."""
    return jax.device_put(np.asarray(array, order="C"), old.sharding)
