"""The networks that look at single regions: features of a RoI -> classes, boxes, masks."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from harmonic_jax.config import BoxHeadConfig, MaskHeadConfig
from harmonic_jax.models.conv import Conv, add_bias, he_normal, xavier_uniform
from harmonic_jax.models.norm import NewNormKind, new_norms

NUM_BOX_CONVS = 4


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


class BoxHead(nnx.Module):
    """Features of a RoI -> logits of all classes, and a box for each of them.

    The last class is background. It has box deltas as well, which nothing reads, so that the
    weights are those of torchvision, all of them.

    Args of the call:
        x: `[r, s, s, channels]`.
        where: `[r]`, rows that exist.

    Returns of the call:
        Logits `[r, k + 1]` and deltas `[r, k + 1, 4]`, float32.
    """

    def __init__(
        self,
        config: BoxHeadConfig,
        channels: int,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        def linear(num_in: int, num_out: int, kernel_init: Initializer) -> Linear:
            return Linear(num_in, num_out, kernel_init=kernel_init, dtype=dtype, rngs=rngs)

        has_convs = config.layers == "four_conv_fc"
        self.convs = ConvStack(
            channels,
            channels,
            num_convs=NUM_BOX_CONVS if has_convs else 0,
            norm=config.norm if has_convs else "none",
            dtype=dtype,
            rngs=rngs,
        )
        hidden, flat = config.num_hidden, channels * config.pool_size**2
        sizes = [flat, hidden] if has_convs else [flat, hidden, hidden]
        self.hidden = nnx.List(
            [linear(sizes[i], sizes[i + 1], xavier_uniform) for i in range(len(sizes) - 1)]
        )
        normal = nnx.initializers.normal
        self.logits = linear(hidden, num_classes + 1, normal(0.01))
        self.deltas = linear(hidden, 4 * (num_classes + 1), normal(0.001))

    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        x = self.convs(x, where)
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        deltas = self.deltas(x).astype(jnp.float32)
        return self.logits(x).astype(jnp.float32), deltas.reshape(x.shape[0], -1, 4)


class Upsample(nnx.Module):
    """A 2x2 transposed convolution with stride 2: each cell becomes four, `[r, 2h, 2w, out]`."""

    def __init__(self, num_in: int, num_out: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(he_normal(rngs.params(), (2, 2, num_in, num_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_out,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        r, h, w, _ = x.shape
        kernel = self.kernel[...].astype(self.dtype)
        x = jnp.einsum("rhwi,yxio->rhywxo", x, kernel).reshape(r, 2 * h, 2 * w, -1)
        return add_bias(x, self.bias[...])


class MaskHead(nnx.Module):
    """Features of a RoI -> a mask for each class, of twice the side.

    Background, the last class, has one too: see `BoxHead`.

    Args of the call:
        x: `[r, s, s, channels]`.
        where: `[r]`, rows that exist.

    Returns of the call:
        Logits `[r, 2s, 2s, k + 1]`, float32.
    """

    def __init__(
        self,
        config: MaskHeadConfig,
        channels: int,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.convs = ConvStack(
            channels,
            config.channels,
            num_convs=config.num_convs,
            norm=config.norm,
            dtype=dtype,
            rngs=rngs,
        )
        num_in = config.channels if config.num_convs else channels
        self.upsample = Upsample(num_in, config.channels, dtype=dtype, rngs=rngs)
        self.output = Conv(
            config.channels,
            num_classes + 1,
            kernel_size=1,
            bias=0.0,
            kernel_init=nnx.initializers.normal(0.001),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.upsample(self.convs(x, where)))
        return self.output(x).astype(jnp.float32)
