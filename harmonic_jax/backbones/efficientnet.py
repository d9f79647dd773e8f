"""EfficientNet-Lite (Tan & Le 2019, and its mobile form): no squeeze-and-excitation, ReLU6."""

import dataclasses
import math
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Conv
from harmonic_jax.backbones.depthwise import DepthwiseConv, same_padding
from harmonic_jax.backbones.layers import normalize_images
from harmonic_jax.backbones.norm import build_norm
from harmonic_jax.checks import check_fields

STEM_CHANNELS = 32
NORM_EPS = 1e-3
MEAN = np.full(3, 127, np.float32)
STD = np.full(3, 128, np.float32)
SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
"""Of each variant: factor of the channels, and of the blocks."""


class _Group(NamedTuple):
    """Blocks of equal output channels, of variant 0."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int
    stage: int


# Stage 1 ends at stride 2, stage 5 at stride 32.
GROUPS = (
    _Group(1, 3, 1, 1, 16, stage=1),
    _Group(2, 3, 2, 6, 24, stage=2),
    _Group(2, 5, 2, 6, 40, stage=3),
    _Group(3, 3, 2, 6, 80, stage=4),
    _Group(3, 5, 1, 6, 112, stage=4),
    _Group(4, 5, 2, 6, 192, stage=5),
    _Group(1, 3, 1, 6, 320, stage=5),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """EfficientNet-Lite 0, 1 or 2: 3 to 5 million parameters, ImageNet weights as a package."""

    variant: Literal[0, 1, 2] = 0
    """0 is the smallest; 1 has more blocks, 2 more blocks and channels."""
    norm: Literal["frozen", "batch"] = "batch"
    """`frozen`: constant statistics and affine; `batch`: statistics of the global batch."""
    frozen_stages: Annotated[int, "[0, 5]"] = 0
    """Stages that are not trained, up to 5: 1 ends at stride 2, 5 at stride 32."""
    weights: str | None = None
    """`imagenet`, or a file: efficientnet-lite-pytorch's state dict, .safetensors or .pth."""

    def __post_init__(self) -> None:
        check_fields(self, "backbone")

    @property
    def strides(self) -> tuple[int, ...]:
        return (4, 8, 16, 32)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the last block of each stride."""
        last = {group.stage: _scaled(group.channels, self.variant) for group in GROUPS}
        return tuple(last[stage] for stage in range(2, 6))


def _scaled(channels: int, variant: int) -> int:
    """Channels times the factor, to the nearest multiple of 8 that is not below 90 % of that."""
    wanted = channels * SCALES[variant][0]
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


@jax.custom_jvp
def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6); its derivative at 0 and 6 is 0, as PyTorch's, and needs no x."""
    return jnp.clip(x, 0, 6)


@relu6.defjvp
def _relu6_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y = relu6(primals[0])
    return y, jnp.where((y > 0) & (y < 6), tangents[0], 0)


class Block(nnx.Module):
    """An inverted residual (Sandler et al. 2018): 1x1 that expands, depthwise, 1x1 that projects.

    Every convolution has a norm, the first two a ReLU6. The input is added where it has the shape
    of the output.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kernel_size: int,
        stride: int,
        expansion: int,
        norm: Literal["frozen", "batch"],
        trainable: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        conv = partial(Conv, kernel_size=1, trainable=trainable, dtype=dtype, rngs=rngs)
        new_norm = partial(build_norm, norm, trainable=trainable, eps=NORM_EPS)
        inner = expansion * num_in
        has_expansion = expansion > 1
        self.expand = conv(num_in, inner) if has_expansion else None
        self.expand_norm = new_norm(inner) if has_expansion else None
        self.depthwise = DepthwiseConv(
            inner,
            kernel_size=kernel_size,
            stride=stride,
            trainable=trainable,
            dtype=dtype,
            rngs=rngs,
        )
        self.depthwise_norm = new_norm(inner)
        self.project = conv(inner, num_out)
        self.project_norm = new_norm(num_out)
        self.is_residual = stride == 1 and num_in == num_out

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = x
        if self.expand is not None and self.expand_norm is not None:
            inner = relu6(self.expand_norm(self.expand(x)))
        inner = relu6(self.depthwise_norm(self.depthwise(inner)))
        out = self.project_norm(self.project(inner))
        return x + out if self.is_residual else out


class EfficientNetLite(nnx.Module):
    """A `Backbone` (see `harmonic_jax.backbones`): the last block of each stride from 4 to 32.

    Its classifier's last convolution, of 1280 channels, is left out.
    """

    def __init__(
        self, config: EfficientNetLiteConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        trainable = config.frozen_stages < 1
        self.stem = Conv(
            3, STEM_CHANNELS, kernel_size=3, stride=2, padding=0,
            trainable=trainable, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.stem_norm = build_norm(config.norm, STEM_CHANNELS, trainable=trainable, eps=NORM_EPS)
        blocks: list[Block] = []
        ends: dict[int, int] = {}  # stage -> number of its last block
        num_in = STEM_CHANNELS
        for group in GROUPS:
            # The first and the last group are not scaled in depth.
            is_scaled = group not in (GROUPS[0], GROUPS[-1])
            factor = SCALES[config.variant][1] if is_scaled else 1.0
            num_out = _scaled(group.channels, config.variant)
            for number in range(math.ceil(factor * group.repeats)):
                block = Block(
                    num_in,
                    num_out,
                    kernel_size=group.kernel_size,
                    stride=group.stride if number == 0 else 1,
                    expansion=group.expansion,
                    norm=config.norm,
                    trainable=group.stage > config.frozen_stages,
                    dtype=dtype,
                    rngs=rngs,
                )
                ends[group.stage] = len(blocks)
                blocks.append(block)
                num_in = num_out
        self.blocks = nnx.List(blocks)
        self.ends = tuple(ends[stage] for stage in range(2, 6))
        self.dtype = dtype

    def __call__(
        self, images: jax.Array, image_size: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        x = normalize_images(images, image_size, mean=MEAN, std=STD).astype(self.dtype)
        padding = [same_padding(length, 3, 2) for length in images.shape[1:3]]
        x = self.stem(jnp.pad(x, ((0, 0), *padding, (0, 0))))
        x = relu6(self.stem_norm(x))
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.ends:
                features.append(x)
        return tuple(features)
