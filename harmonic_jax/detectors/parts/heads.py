"""The heads that detectors put on feature maps, and the layers of heads on single regions."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Conv, add_bias, he_normal, head_normal, xavier_uniform
from harmonic_jax.backbones.norm import NewNormKind, new_norms
from harmonic_jax.structures import Predictions

_TINY = 1e-24  # Squared lengths up to this are a zero vector's.


class ConvStack(nnx.Module):
    """A number of times (3x3 convolution, norm, ReLU).

    Args of the call:
        x: `[r, h, w, num_in]`.
        where: `[r]`, rows that exist; the others take no part in batch statistics.

    Returns of the call:
        `[r, h, w, channels]`.
    """

    def __init__(
        self,
        num_in: int,
        channels: int,
        *,
        num_convs: int,
        norm: NewNormKind,
        kernel_init: Initializer = he_normal,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        bias = 0.0 if norm == "none" else None
        conv = partial(
            Conv, kernel_size=3, bias=bias, kernel_init=kernel_init, dtype=dtype, rngs=rngs
        )
        inputs = [num_in, *[channels] * num_convs][:num_convs]
        self.convs = nnx.List([conv(num, channels) for num in inputs])
        self.norms = new_norms(norm, channels, num_convs, dtype=dtype, rngs=rngs)
        self.has_statistics = norm == "batch"

    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.norms:
                x = self.norms[i](x, where) if self.has_statistics else self.norms[i](x)
            x = jax.nn.relu(x)
        return x


class DenseHead(ConvStack):
    """RetinaNet's: a stack of convolutions, then 3x3 to `num_anchors * num_out`.

    Args of the call:
        x: `[b, h, w, channels]`.

    Returns of the call:
        `[b, h * w * num_anchors, num_out]` float32: rows, then columns, then the anchors of a
        location, the order of `make_anchors`.
    """

    def __init__(
        self,
        channels: int,
        num_out: int,
        *,
        num_anchors: int,
        num_convs: int,
        norm: Literal["none", "group"],
        bias: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        made: dict[str, Any] = {"kernel_init": head_normal, "dtype": dtype, "rngs": rngs}
        super().__init__(channels, channels, num_convs=num_convs, norm=norm, **made)
        self.output = Conv(channels, num_anchors * num_out, kernel_size=3, bias=bias, **made)
        self.num_out = num_out

    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
        return by_anchor(self.output(super().__call__(x, where)), self.num_out)


def by_anchor(x: jax.Array, num_out: int) -> jax.Array:
    """[b, h, w, a * num_out] -> [b, h * w * a, num_out] float32."""
    return x.astype(jnp.float32).reshape(x.shape[0], -1, num_out)


class L2Norm(nnx.Module):
    """Feature vectors brought to length one, then scaled a channel at a time (learned).

    A zero vector stays zero and gets no gradient. Source: Liu et al., ParseNet, 2015.
    """

    def __init__(self, num_channels: int, *, scale: float) -> None:
        self.scale = nnx.Param(jnp.full((num_channels,), scale, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.astype(jnp.float32)
        square = jnp.square(features).sum(-1, keepdims=True)
        is_zero = square <= _TINY
        inverse = jnp.where(is_zero, 0.0, jax.lax.rsqrt(jnp.where(is_zero, 1.0, square)))
        return (features * inverse * self.scale[...].reshape(1, 1, 1, -1)).astype(x.dtype)


class MultiBoxHead(nnx.Module):
    """SSD's: two 3x3 convolutions a level, to class logits and box deltas of every default box.

    Args of the call:
        levels: `[b, h_l, w_l, c_l]` each.

    Returns of the call:
        `Predictions`, float32: `[b, h_l * w_l * a_l, num_outputs]` and `[b, h_l * w_l * a_l, 4]`;
        rows, then columns, then the boxes of a location.
    """

    def __init__(
        self,
        num_in: Sequence[int],
        *,
        num_outputs: int,
        per_location: Sequence[int],
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        conv = partial(
            Conv, kernel_size=3, bias=0.0, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs
        )

        def convs(num_out: int) -> nnx.List:
            sizes = zip(num_in, per_location, strict=True)
            return nnx.List([conv(channels, boxes * num_out) for channels, boxes in sizes])

        self.cls = convs(num_outputs)
        self.box = convs(4)
        self.num_outputs = num_outputs

    def __call__(self, levels: Sequence[jax.Array]) -> Predictions:
        def outputs(convs: nnx.List, num_out: int) -> tuple[jax.Array, ...]:
            return tuple(by_anchor(conv(x), num_out) for conv, x in zip(convs, levels, strict=True))

        return Predictions(outputs(self.cls, self.num_outputs), outputs(self.box, 4))


class Linear(nnx.Linear):
    """`[r, in]` -> `[r, out]`; nnx's layer, but for the bias, which is added in float32."""

    def __call__(self, inputs: jax.Array, out_sharding: None = None) -> jax.Array:
        x = jnp.matmul(inputs.astype(self.dtype), self.kernel[...].astype(self.dtype))
        assert self.bias is not None
        return add_bias(x, self.bias[...])


class ConvTranspose(nnx.Module):
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
        kernel_init: Initializer,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, num_in, num_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_out,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        # Every tap of every cell, then what falls on one output is added up: no multiplication
        # with the zeros between the cells, on which XLA's transposed convolution spends most.
        kernel = self.kernel[...].astype(self.dtype)
        taps = jnp.einsum("bhwi,yxio->bhwyxo", x.astype(self.dtype), kernel)
        taps = _overlap_add(taps, axis=1, tap_axis=3)  # [b, 2h, w, x, o]
        taps = _overlap_add(taps, axis=2, tap_axis=3)  # [b, 2h, 2w, o]
        return add_bias(taps, self.bias[...])


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
