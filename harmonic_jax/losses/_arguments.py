"""What every loss checks before it computes: types, shapes and options, never values.

All of it is known while tracing, so a wrong call fails under jit as it does outside.
"""

import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def as_array(name: str, value: object) -> jax.Array:
    if isinstance(value, jax.Array):  # left as it is: a conversion would look at its NaN
        return value
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be an array") from None


def as_float(name: str, value: object) -> jax.Array:
    array = as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {array.dtype}; it must be a floating point type")
    return array


def as_floats(**values: object) -> list[jax.Array]:
    """Arrays of one shape; a mismatch that NumPy would broadcast is an error."""
    arrays = [as_float(name, value) for name, value in values.items()]
    names = list(values)
    for name, array in zip(names, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"{name} has shape {array.shape}; it must be that of {names[0]}, {arrays[0].shape}"
            )
    return arrays


def admit(mask: jax.Array | None, *arrays: jax.Array) -> list[jax.Array]:
    """The arrays as they are computed with: zeros where the mask is False, one type, no infinity.

    The mask comes first: what it leaves out is not even looked at. float64 stays if one has it, all
    else becomes float32. Infinities count as numbers so large that only a factor of 1000 is left to
    the largest, without a gradient: what follows multiplies them by small factors and by 0.
    """
    is_double = any(array.dtype == jnp.float64 for array in arrays)
    dtype = jnp.float64 if is_double else jnp.float32
    largest = jnp.finfo(dtype).max / 1024
    return [lax.clamp(-largest, keep(mask, array).astype(dtype), largest) for array in arrays]


def as_samples(
    where: ArrayLike | None, **values: object
) -> tuple[list[jax.Array], jax.Array | None]:
    """Quantities [*b] of samples, ready to compute with, and the mask."""
    arrays = as_floats(**values)
    mask = as_mask(where, arrays[0].shape)
    return admit(mask, *arrays), mask


def as_pairs(
    where: ArrayLike | None, pred: ArrayLike, target: ArrayLike
) -> tuple[jax.Array, jax.Array, Callable[..., jax.Array]]:
    """Coordinates [*b c], ready to compute with, and what finishes a loss of them: its mask.

    A pair with NaN in it has no loss that means anything: it gets inf, which shows in every sum,
    and no gradient.
    """
    pred, target = as_floats(pred=pred, target=target)
    if pred.ndim == 0:
        raise ValueError("pred has shape (); its last axis must hold the coordinates")
    mask = as_mask(where, pred.shape[:-1])
    is_pair = ~(jnp.isnan(pred) | jnp.isnan(target)).any(axis=-1)
    pred, target = admit(is_pair if mask is None else is_pair & mask, pred, target)

    def finish(values: jax.Array, of_nan: float = math.inf) -> jax.Array:
        return keep(mask, jnp.where(is_pair, values, of_nan))

    return pred, target, finish


def as_logits(name: str, value: object) -> jax.Array:
    logits = as_float(name, value)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{name} has shape {logits.shape}; its last axis must hold the classes")
    return logits


def as_labels(name: str, value: object, shape: tuple[int, ...]) -> jax.Array:
    """Integer labels, one a sample, wide enough to compare with any class index."""
    labels = as_array(name, value)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {labels.dtype}; it must be an integer type")
    if labels.shape != shape:
        raise ValueError(f"{name} has shape {labels.shape}; it must be {shape}, one a sample")
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)


def as_mask(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    if where is None:
        return None
    mask = as_array("where", where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"where has dtype {mask.dtype}; it must be bool")
    if mask.shape != shape:
        raise ValueError(f"where has shape {mask.shape}; it must be {shape}, one a sample")
    return mask


def keep(mask: jax.Array | None, array: jax.Array) -> jax.Array:
    """`array` with zeros where the mask is False.

    Applied to the inputs (`admit`) it keeps NaN out of the computation, and so out of the gradient:
    a `where` on the result alone would multiply that NaN by zero. Applied to the result it drops
    what was computed from the zeros.
    """
    if mask is None:
        return array
    expanded = mask.reshape(mask.shape + (1,) * (array.ndim - mask.ndim))
    return jnp.where(expanded, array, jnp.zeros((), array.dtype))


def as_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite number in [low, high]. Hyper-parameters are static: arrays are refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a number")
    number = float(value)
    if not (low <= number <= high and math.isfinite(number)):
        legal = f"finite and >= {low}" if math.isinf(high) else f"in [{low}, {high}]"
        raise ValueError(f"{name} is {value!r}; it must be {legal}")
    return number


def check_choice(name: str, value: object, legal: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be one of {legal}")
    if value not in legal:
        raise ValueError(f"{name} is {value!r}; it must be one of {legal}")
