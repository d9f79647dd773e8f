"""Fitting a foreign state dict to a model's state, every leaf checked."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from flax import nnx

from harmonic_jax.pretrained.files import WeightsError

Path = tuple[str | int, ...]

# Our leaf -> PyTorch's, for a convolution (or GroupNorm) and for a batch norm.
LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
SHOWN = 5  # names in an error message


def fit_state(
    params: nnx.State,
    rest: nnx.State,
    state_dict: Mapping[str, np.ndarray],
    torch_name: Callable[[Path], str | None],
    *,
    ignored: Iterable[str] = (),
) -> tuple[nnx.State, nnx.State]:
    """Replace leaves of a model's state by arrays of a PyTorch state dict.

    Args:
        params: the trained part of the state.
        rest: the other part; both keep their structure.
        state_dict: PyTorch's names, layouts (kernels OIHW) and values.
        torch_name: the path of a leaf -> its name in the state dict, or None: left as it is.
        ignored: prefixes of names in the state dict that the model does not need.

    Returns:
        New `params` and `rest`.

    Raises:
        WeightsError: names that are missing, left over, or of another shape or dtype.
    """
    problems: list[str] = []
    used: set[str] = set()

    def replace(path: Path, variable: nnx.Variable) -> nnx.Variable:
        name = torch_name(path)
        if name is None:
            return variable
        used.add(name)
        if name not in state_dict:
            problems.append(f"{name} is missing")
            return variable
        array = state_dict[name]
        if path[-1] == "kernel" and array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        old = variable.get_value()
        if array.shape != old.shape or array.dtype != old.dtype:
            problems.append(
                f"{name} is {array.dtype}{list(array.shape)}, the model has "
                f"{old.dtype}{list(old.shape)}"
            )
            return variable
        return variable.replace(_place_like(array, old))

    new_params, new_rest = nnx.map_state(replace, params), nnx.map_state(replace, rest)
    prefixes = tuple(ignored)
    problems += [
        f"{name} is not part of the model"
        for name in state_dict
        if name not in used
        and not name.startswith(prefixes)
        and not name.endswith(".num_batches_tracked")
    ]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise WeightsError(f"the weights do not fit the model: {'; '.join(problems[:SHOWN])}{more}")
    return new_params, new_rest


def _place_like(array: np.ndarray, old: jax.Array) -> jax.Array:
    """The array on the devices, and with the sharding, of the one it replaces."""
    return jax.device_put(np.ascontiguousarray(array), old.sharding)
