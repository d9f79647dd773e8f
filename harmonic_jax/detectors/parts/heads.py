"""The heads that detectors put on feature maps, and the layers of heads on single regions."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Conv, add_bias, head_normal, xavier_uniform
from harmonic_jax.backbones.norm import NewNormKind, new_norms
from harmonic_jax.structures import Predictions

_TINY = 1e-24  # Squared lengths up to this are a zero vector's.


class DenseHead(nnx.Module):
    """RetinaNet's: `num_convs` times (3x3, norm, ReLU), then 3x3 to `num_anchors * num_out`.

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
        has_norm = norm == "group"

        def conv(num_out: int, bias: float | None) -> Conv:
            return Conv(
                channels,
                num_out,
                kernel_size=3,
                bias=bias,
                kernel_init=head_normal,
                dtype=dtype,
                rngs=rngs,
            )

        self.convs = nnx.List([conv(channels, None if has_norm else 0.0) for _ in range(num_convs)])
        self.norms = new_norms(norm, channels, num_convs, dtype=dtype, rngs=rngs)
        self.output = conv(num_anchors * num_out, bias)
        self.num_out = num_out

    def __call__(self, x: jax.Array) -> jax.Array:
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = jax.nn.relu(self.norms[i](x) if self.norms else x)
        x = self.output(x).astype(jnp.float32)
        return x.reshape(x.shape[0], -1, self.num_out)  # [b, h, w, a * k] -> [b, h * w * a, k]


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
        def convs(num_out: int) -> nnx.List:
            return nnx.List(
                [
                    Conv(
                        channels,
                        num_boxes * num_out,
                        kernel_size=3,
                        bias=0.0,
                        kernel_init=xavier_uniform,
                        dtype=dtype,
                        rngs=rngs,
                    )
                    for channels, num_boxes in zip(num_in, per_location, strict=True)
                ]
            )

        self.cls = convs(num_outputs)
        self.box = convs(4)
        self.num_outputs = num_outputs

    def __call__(self, levels: Sequence[jax.Array]) -> Predictions:
        return Predictions(
            cls_logits=tuple(
                _by_box(conv(x), self.num_outputs) for conv, x in zip(self.cls, levels, strict=True)
            ),
            deltas=tuple(_by_box(conv(x), 4) for conv, x in zip(self.box, levels, strict=True)),
        )


def _by_box(x: jax.Array, num_out: int) -> jax.Array:
    """[b, h, w, a * num_out] -> [b, h * w * a, num_out] float32."""
    return x.astype(jnp.float32).reshape(x.shape[0], -1, num_out)


class Linear(nnx.Linear):
    """`[r, in]` -> `[r, out]`; nnx's layer, but for the bias, which is added in float32."""

    def __call__(self, inputs: jax.Array, out_sharding: None = None) -> jax.Array:
        x = jnp.matmul(inputs.astype(self.dtype), self.kernel[...].astype(self.dtype))
        assert self.bias is not None
        return add_bias(x, self.bias[...])


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
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.convs = nnx.List(
            [
                Conv(
                    num_in if i == 0 else channels,
                    channels,
                    kernel_size=3,
                    bias=0.0 if norm == "none" else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(num_convs)
            ]
        )
        self.norms = new_norms(norm, channels, num_convs, dtype=dtype, rngs=rngs)
        self.has_statistics = norm == "batch"

    def __call__(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.norms:
                x = self.norms[i](x, where) if self.has_statistics else self.norms[i](x)
            x = jax.nn.relu(x)
        return x
