"""The heads of RetinaNet (Lin et al. 2017): one small network slid over every pyramid level."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.models.conv import Conv, head_normal
from harmonic_jax.models.norm import new_norms


class DenseHead(nnx.Module):
    """`num_convs` times (3x3 convolution, norm, ReLU), then 3x3 to `num_anchors * num_out`.

    Args of the call:
        x: `[b, h, w, channels]`.

    Returns of the call:
        `[b, h * w * num_anchors, num_out]` float32: rows, then columns, then the anchors of a
        location, the order of `assign.anchors`.
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
