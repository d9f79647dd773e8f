"""ResNet (He et al. 2016), the backbone: v1.5, with the stride on the 3x3 convolution."""

import jax
import jax.numpy as jnp
from flax import nnx

from harmonic_jax.config import BackboneConfig
from harmonic_jax.models.conv import Conv
from harmonic_jax.models.norm import build_norm

# depth: (has bottlenecks, blocks of each stage)
LAYOUT = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum with stride 2 and one pixel of padding: `[b, h, w, c]` to half the size."""
    lowest = jnp.array(-jnp.inf, x.dtype)
    return jax.lax.reduce_window(
        x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )


class Block(nnx.Module):
    """A residual block: two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1."""

    def __init__(
        self,
        num_in: int,
        width: int,
        *,
        has_bottleneck: bool,
        stride: int,
        norm: str,
        trainable: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        if has_bottleneck:
            layers = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
        else:
            layers = ((width, 3, stride), (width, 3, 1))
        num_out = layers[-1][0]

        def conv(num_in: int, num_out: int, kernel_size: int, stride: int) -> Conv:
            return Conv(
                num_in,
                num_out,
                kernel_size=kernel_size,
                stride=stride,
                trainable=trainable,
                dtype=dtype,
                rngs=rngs,
            )

        widths = [num_in, *(layer[0] for layer in layers)]
        self.convs = nnx.List([conv(widths[i], *layer) for i, layer in enumerate(layers)])
        self.norms = nnx.List([build_norm(norm, layer[0], trainable=trainable) for layer in layers])
        changes_shape = stride != 1 or num_in != num_out
        self.shortcut = nnx.List(
            [conv(num_in, num_out, 1, stride), build_norm(norm, num_out, trainable=trainable)]
            if changes_shape
            else []
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        for layer in self.shortcut:
            shortcut = layer(shortcut)
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = jax.nn.relu(norm(conv(x)))
        return jax.nn.relu(self.norms[-1](self.convs[-1](x)) + shortcut)


class ResNet(nnx.Module):
    """The convolutional part of a ResNet.

    Args of the call:
        x: `[b, h, w, 3]`, normalised.

    Returns of the call:
        C2, C3, C4, C5: features of stride 4, 8, 16 and 32, with `channels` channels, in `dtype`.
    """

    def __init__(
        self, config: BackboneConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        has_bottleneck, num_blocks = LAYOUT[config.depth]
        trainable = [stage > config.frozen_stages for stage in range(1, 6)]
        self.conv = Conv(
            3, config.width, kernel_size=7, stride=2, trainable=trainable[0], dtype=dtype, rngs=rngs
        )
        self.norm = build_norm(config.norm, config.width, trainable=trainable[0])
        self.stages = nnx.List()
        self.channels = tuple(
            config.width * 2**i * (4 if has_bottleneck else 1) for i in range(len(num_blocks))
        )
        num_in = config.width
        for i, (num, num_out) in enumerate(zip(num_blocks, self.channels, strict=True)):
            blocks = nnx.List()
            for j in range(num):
                block = Block(
                    num_in,
                    config.width * 2**i,
                    has_bottleneck=has_bottleneck,
                    stride=2 if i > 0 and j == 0 else 1,
                    norm=config.norm,
                    trainable=trainable[i + 1],
                    dtype=dtype,
                    rngs=rngs,
                )
                blocks.append(block)
                num_in = num_out
            self.stages.append(blocks)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        x = max_pool(jax.nn.relu(self.norm(self.conv(x))))
        features = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            features.append(x)
        return tuple(features)
