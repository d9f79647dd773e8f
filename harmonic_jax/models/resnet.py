"""ResNet (He et al. 2016, v1.5: the stride is on the 3x3 convolution) and ResNeXt (Xie 2017)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.config import BackboneConfig
from harmonic_jax.models.conv import Conv
from harmonic_jax.models.norm import BatchNorm, FrozenBatchNorm, NormKind, build_norm

# depth: (has bottlenecks, blocks of each stage)
LAYOUT = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}
BOTTLENECK_EXPANSION = 4


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum with stride 2 and one pixel of padding.

    First along rows, then along columns, from shifted slices: forward and backward take a fifth
    of the time of `lax.reduce_window` on CPU, whose gradient searches every window again.

    Args:
        x: `[b, h, w, c]`.

    Returns:
        `[b, ceil(h / 2), ceil(w / 2), c]`. Where several cells of a window are the maximum, the
        gradient goes to the first in reading order, as in PyTorch. NaN is the greatest value.
    """
    return _max_of_three(_max_of_three(x, axis=2), axis=1)


def _max_of_three(x: jax.Array, *, axis: int) -> jax.Array:
    """Maximum over cells 2i - 1, 2i and 2i + 1 of an axis; outside is -inf."""
    length = x.shape[axis]
    widths = [(1, 1, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), widths)
    first, middle, last = (
        jax.lax.slice_in_dim(x, shift, shift + length, stride=2, axis=axis) for shift in range(3)
    )
    return _first_maximum(_first_maximum(first, middle), last)


def _first_maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    # Not jnp.maximum, which splits the gradient between equal arguments.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


@dataclasses.dataclass(frozen=True)
class _ConvNorm:
    """Makes the (convolution, norm) pairs of one stage."""

    norm: NormKind
    norm_eps: float
    trainable: bool
    dtype: DTypeLike
    rngs: nnx.Rngs

    def __call__(
        self, num_in: int, num_out: int, kernel_size: int, stride: int, groups: int = 1
    ) -> tuple[Conv, BatchNorm | FrozenBatchNorm]:
        conv = Conv(
            num_in,
            num_out,
            kernel_size=kernel_size,
            stride=stride,
            groups=groups,
            trainable=self.trainable,
            dtype=self.dtype,
            rngs=self.rngs,
        )
        norm = build_norm(self.norm, num_out, trainable=self.trainable, eps=self.norm_eps)
        return conv, norm


class Block(nnx.Module):
    """A residual block: two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1.

    Args:
        num_in: channels of the input.
        num_out: channels of the output.
        inner: channels between the convolutions.
        groups: of the bottleneck's 3x3 convolution; ResNeXt has many.
        has_bottleneck: which of the two.
        stride: of the first 3x3 convolution, and of the shortcut.
        conv_norm: makes the layers.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        inner: int,
        groups: int,
        has_bottleneck: bool,
        stride: int,
        conv_norm: _ConvNorm,
    ) -> None:
        # (channels, kernel size, stride, groups) of each convolution
        layers = [(inner, 3, stride, 1), (num_out, 3, 1, 1)]
        if has_bottleneck:
            layers = [(inner, 1, 1, 1), (inner, 3, stride, groups), (num_out, 1, 1, 1)]
        inputs = [num_in, *(layer[0] for layer in layers[:-1])]
        pairs = [conv_norm(num, *layer) for num, layer in zip(inputs, layers, strict=True)]
        self.convs = nnx.List([conv for conv, _ in pairs])
        self.norms = nnx.List([norm for _, norm in pairs])
        changes_shape = stride != 1 or num_in != num_out
        self.shortcut = nnx.List(conv_norm(num_in, num_out, 1, stride) if changes_shape else ())

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        for layer in self.shortcut:
            shortcut = layer(shortcut)
        last = len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            x = jax.nn.relu(x if i < last else x + shortcut)
        return x


class ResNet(nnx.Module):
    """The convolutional part of a ResNet.

    Args of the call:
        x: `[b, h, w, 3]`, normalised.

    Returns of the call:
        C2, C3, C4, C5: features of stride 4, 8, 16 and 32 (sizes rounded up) in `dtype`, with
        `channels` channels.
    """

    def __init__(
        self, config: BackboneConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        has_bottleneck, num_blocks = LAYOUT[config.depth]
        expansion = BOTTLENECK_EXPANSION if has_bottleneck else 1
        # Stage 1 is the stem, stages 2 to 5 give C2 to C5.
        makers = [
            _ConvNorm(config.norm, config.norm_eps, stage > config.frozen_stages, dtype, rngs)
            for stage in range(1, 6)
        ]
        self.conv, self.norm = makers[0](3, config.width, 7, 2)
        stages = []
        num_in = config.width
        for i, num in enumerate(num_blocks):
            width = config.width * 2**i
            blocks = []
            for j in range(num):
                stride = 2 if i > 0 and j == 0 else 1
                block = Block(
                    num_in,
                    width * expansion,
                    inner=width * config.width_per_group // 64 * config.groups,
                    groups=config.groups,
                    has_bottleneck=has_bottleneck,
                    stride=stride,
                    conv_norm=makers[i + 1],
                )
                blocks.append(block)
                num_in = width * expansion
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.channels = tuple(config.width * 2**i * expansion for i in range(len(num_blocks)))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        x = max_pool(jax.nn.relu(self.norm(self.conv(x))))
        features = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            features.append(x)
        return tuple(features)
