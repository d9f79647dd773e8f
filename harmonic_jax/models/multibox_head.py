"""What SSD and RefineDet put on each level: feature normalisation and two 3x3 convolutions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.models.conv import Conv, xavier_uniform
from harmonic_jax.structures import Predictions

_TINY = 1e-24  # Squared lengths up to this are a zero vector's.


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
    """Two 3x3 convolutions a level: class logits and box deltas of every default box.

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
