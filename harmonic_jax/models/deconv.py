"""The transposed convolution that doubles a map, as one matrix product."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.models.conv import add_bias, xavier_uniform


class Doubling(nnx.Module):
    """Transposed convolution of stride 2 with a 2x2 kernel, or a 4x4 one that overlaps by two.

    PyTorch's `ConvTranspose2d(num_in, num_out, size, stride=2, padding=(size - 2) / 2)`. The
    kernel is `[size, size, num_in, num_out]`; tap (y, x) of cell (r, c) adds to the output cell
    (2 r + y - padding, 2 c + x - padding).

    Args of the call:
        x: `[b, h, w, num_in]`.

    Returns of the call:
        `[b, 2 h, 2 w, num_out]` in `dtype`.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        size: Literal[2, 4],
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, num_in, num_out)
        self.kernel = nnx.Param(xavier_uniform(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_out,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        # Every tap of every cell, then what falls on one output is added up: no multiplication
        # with the zeros between the cells, on which XLA's transposed convolution spends most.
        taps = jnp.einsum("bhwi,yxio->bhwyxo", x.astype(self.dtype), self._kernel())
        taps = _overlap_add(taps, axis=1, tap_axis=3)  # [b, 2h, w, x, o]
        taps = _overlap_add(taps, axis=2, tap_axis=3)  # [b, 2h, 2w, o]
        return add_bias(taps, self.bias[...])

    def _kernel(self) -> jax.Array:
        return self.kernel[...].astype(self.dtype)


def _overlap_add(taps: jax.Array, *, axis: int, tap_axis: int) -> jax.Array:
    """Adds the taps of one axis: twice as many cells there, and no axis of taps."""
    tap = [jax.lax.index_in_dim(taps, i, tap_axis, False) for i in range(taps.shape[tap_axis])]
    if len(tap) == 2:
        even, odd = tap
    else:
        # Tap y of cell r adds to 2r + y - 1: an even output has tap 1 of its own cell and tap 3
        # of the cell before, an odd one tap 2 of its own and tap 0 of the next.
        even = tap[1] + _shift(tap[3], axis=axis, by=1)
        odd = tap[2] + _shift(tap[0], axis=axis, by=-1)
    pairs = jnp.stack((even, odd), axis=axis + 1)
    return pairs.reshape(*even.shape[:axis], 2 * even.shape[axis], *even.shape[axis + 1 :])


def _shift(x: jax.Array, *, axis: int, by: int) -> jax.Array:
    """Moves cells along an axis by one; zeros come in."""
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (by, -by, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)
