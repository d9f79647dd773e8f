"""The region proposal network (Ren et al. 2015), slid over every pyramid level."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.models.conv import Conv, head_normal


class RPNHead(nnx.Module):
    """`num_convs` times (3x3 convolution, ReLU), then 1x1 to objectness and to box deltas.

    Args of the call:
        x: `[b, h, w, channels]`.

    Returns of the call:
        Logits `[b, h * w * num_anchors, 1]` and deltas `[b, h * w * num_anchors, 4]`, float32:
        rows, then columns, then the anchors of a location, the order of `assign.anchors`.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_anchors: int,
        num_convs: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        def conv(num_out: int, kernel_size: int) -> Conv:
            return Conv(
                channels,
                num_out,
                kernel_size=kernel_size,
                bias=0.0,
                kernel_init=head_normal,
                dtype=dtype,
                rngs=rngs,
            )

        self.convs = nnx.List([conv(channels, 3) for _ in range(num_convs)])
        self.objectness = conv(num_anchors, 1)
        self.deltas = conv(4 * num_anchors, 1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        # [b, h, w, a * k] -> [b, h * w * a, k]
        logits = self.objectness(x).astype(jnp.float32).reshape(x.shape[0], -1, 1)
        deltas = self.deltas(x).astype(jnp.float32).reshape(x.shape[0], -1, 4)
        return logits, deltas
