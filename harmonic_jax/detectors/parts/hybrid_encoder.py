"""The hybrid encoder of RT-DETR (Lv et al. 2023): attention on one map, then fusion of all."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Conv
from harmonic_jax.backbones.norm import BatchNorm
from harmonic_jax.detectors.parts.pyramid import upsample_like
from harmonic_jax.detectors.parts.transformer import EncoderLayer

NUM_REP_BLOCKS = 3  # of a CSP layer


class ConvNorm(nnx.Module):
    """Convolution, batch norm, and SiLU unless left to the caller."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        has_silu: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(
            num_in, num_out, kernel_size=kernel_size, stride=stride, dtype=dtype, rngs=rngs
        )
        self.norm = BatchNorm(num_out)
        self.has_silu = has_silu

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.conv(x))
        return jax.nn.silu(x) if self.has_silu else x


class RepBlock(nnx.Module):
    """A 3x3 and a 1x1 convolution, added (RepVGG, Ding et al. 2021)."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        conv = partial(ConvNorm, channels, channels, has_silu=False, dtype=dtype, rngs=rngs)
        self.conv3, self.conv1 = conv(kernel_size=3), conv()

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(self.conv3(x) + self.conv1(x))


class CSPLayer(nnx.Module):
    """Two maps joined: one half of the channels passes blocks, the other does not."""

    def __init__(self, channels: int, expansion: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        hidden = int(channels * expansion)
        conv = partial(ConvNorm, dtype=dtype, rngs=rngs)
        self.enter, self.skip = conv(2 * channels, hidden), conv(2 * channels, hidden)
        self.blocks = nnx.List(
            [RepBlock(hidden, dtype=dtype, rngs=rngs) for _ in range(NUM_REP_BLOCKS)]
        )
        self.leave = nnx.List([conv(hidden, channels)] if hidden != channels else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.enter(x)
        for block in self.blocks:
            y = block(y)
        y = y + self.skip(x)
        for conv in self.leave:
            y = conv(y)
        return y


class HybridEncoder(nnx.Module):
    """Attention on the coarsest map, then fusion downwards and upwards.

    Args:
        num_in: channels of the maps, finest first.
        channels: of all that is made of them.
        expansion: channels of the fusion blocks, of those.
        num_heads: of the attention.
        hidden: units behind it.

    Args of the call:
        maps: each of half the sides of the one before.

    Returns of the call:
        Maps of the same sizes, `channels` channels each.
    """

    def __init__(
        self,
        num_in: Sequence[int],
        channels: int,
        *,
        expansion: float,
        num_heads: int,
        hidden: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        count = len(num_in) - 1
        conv = partial(ConvNorm, dtype=dtype, rngs=rngs)
        csp = partial(CSPLayer, channels, expansion, dtype=dtype, rngs=rngs)
        self.inputs = nnx.List([conv(num, channels, has_silu=False) for num in num_in])
        self.layer = EncoderLayer(channels, num_heads, hidden, dtype=dtype, rngs=rngs)
        self.laterals = nnx.List([conv(channels, channels) for _ in range(count)])
        self.down = nnx.List([csp() for _ in range(count)])
        self.strided = nnx.List(
            [conv(channels, channels, kernel_size=3, stride=2) for _ in range(count)]
        )
        self.up = nnx.List([csp() for _ in range(count)])

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        finer = [conv(x) for conv, x in zip(self.inputs, maps, strict=True)]
        x = self.layer(finer.pop())
        coarser = []
        for lateral, fuse in zip(self.laterals, self.down, strict=True):
            below = finer.pop()
            coarser.append(lateral(x))
            x = fuse(jnp.concatenate((upsample_like(coarser[-1], below), below), axis=-1))
        outputs = [x]
        for strided, fuse in zip(self.strided, self.up, strict=True):
            x = fuse(jnp.concatenate((strided(x), coarser.pop()), axis=-1))
            outputs.append(x)
        return outputs
