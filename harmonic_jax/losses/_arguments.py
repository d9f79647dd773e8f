"""What every loss checks before it computes: types, shapes and options, never values.

All of it is known while tracing, so a wrong call fails under jit as it does outside.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def as_array(name: str, value: object, kind: Any, words: str) -> jax.Array:
    """An array of a kind of dtype, such as `jnp.floating`."""
    if not isinstance(value, jax.Array):  # one stays as it is: a conversion would look at its NaN
        try:
            value = jnp.asarray(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} is a {type(value).__name__}; it must be an array") from None
    if not jnp.issubdtype(value.dtype, kind):
        raise TypeError(f"{name} has dtype {value.dtype}; it must be {words}")
    return value


def as_float(name: str, value: object) -> jax.Array:
    return as_array(name, value, jnp.floating, "a floating point type")


def as_labels(name: str, value: object, shape: tuple[int, ...]) -> jax.Array:
    """Integer labels, one a sample, wide enough to compare with any class index."""
    labels = as_array(name, value, jnp.integer, "an integer type")
    check_shape(name, labels, shape)
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)


def as_mask(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    if where is None:
        return None
    mask = as_array("where", where, jnp.bool_, "bool")
    check_shape("where", mask, shape)
    return mask


def check_shape(
    name: str, array: jax.Array, shape: tuple[int, ...], words: str = "one a sample"
) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; it must be {shape}, {words}")


def as_floats(**values: object) -> list[jax.Array]:
    """Arrays of one shape; a mismatch that NumPy would broadcast is an error."""
    arrays = [as_float(name, value) for name, value in values.items()]
    names = list(values)
    for name, array in zip(names, arrays, strict=True):
        check_shape(name, array, arrays[0].shape, f"that of {names[0]}")
    return arrays


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


def as_logits(value: object) -> jax.Array:
    logits = as_float("logits", value)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {logits.shape}; its last axis must hold the classes")
    return logits


def as_classes(
    where: ArrayLike | None, logits: object, labels: object, **per_sample: object
) -> tuple[list[jax.Array], jax.Array, jax.Array | None]:
    """Logits [*b k] and quantities [*b] to compute with, where the labels are [*b k], the mask."""
    logits = as_logits(logits)
    labels = as_labels("labels", labels, logits.shape[:-1])
    others = [as_float(name, value) for name, value in per_sample.items()]
    for name, array in zip(per_sample, others, strict=True):
        check_shape(name, array, labels.shape)
    mask = as_mask(where, labels.shape)
    # A one-hot array that fuses away: it is compared anew wherever it is needed.
    classes = lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    return admit(mask, logits, *others), classes == labels[..., None], mask


def as_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite number in [low, high]. Hyper-parameters are static: arrays are refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a number")
    number = float(value)
    if not (low <= number <= high and math.isfinite(number)):
        legal = f"finite and >= {low}" if math.isinf(high) else f"in [{low}, {high}]"
        raise ValueError(f"{name} is {value!r}; it must be {legal}")
    return number


def check_choice(name: str, value: object, literal: Any) -> None:
    """A member of a `Literal` type."""
    if not isinstance(value, str) or value not in get_args(literal):
        raise ValueError(f"{name} is {value!r}; it must be one of {get_args(literal)}")
