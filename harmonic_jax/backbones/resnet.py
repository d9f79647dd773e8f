"""ResNet (He et al. 2016, v1.5: the stride is on the 3x3 convolution; 2019: D), ResNeXt (2017)."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Conv
from harmonic_jax.backbones.layers import max_pool, mean_pool, normalize_images
from harmonic_jax.backbones.norm import BatchNorm, FrozenBatchNorm, build_norm
from harmonic_jax.checks import check_fields, require

# depth: (has bottlenecks, blocks of each stage)
LAYOUT = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}
BOTTLENECK_EXPANSION = 4
Norm = BatchNorm | FrozenBatchNorm


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """ResNet (He et al. 2016, v1.5: the stride sits on the 3x3 convolution), or ResNeXt."""

    depth: Literal[10, 18, 34, 50, 101] = 50
    """10 has one block a stage: no published weights, quick to compile."""
    width: Annotated[int, "[8, 1024]"] = 64
    """Channels of the stem; 64 is the published network."""
    groups: Annotated[int, "[1, 1024]"] = 1
    """Groups of the 3x3 convolutions: 32 in ResNeXt-101 32x4d (Xie et al. 2017)."""
    width_per_group: Annotated[int, "[1, 1024]"] = 64
    """Channels of a group in the first stage at width 64: 4 in ResNeXt-101 32x4d."""
    variant: Literal["v1.5", "d"] = "v1.5"
    """`d` (He et al. 2019, "Bag of Tricks"; RT-DETR's `vd`): a stem of three 3x3 convolutions, and
    shortcuts that average where they stride."""
    normalization: Literal["torchvision", "unit"] = "torchvision"
    """Of the pixels: by ImageNet's mean and deviation, or only to 0..1 (RT-DETR's weights)."""
    norm: Literal["frozen", "batch"] = "frozen"
    """`frozen`: constant statistics and affine; `batch`: statistics of the global batch."""
    norm_eps: Annotated[float, "[0, 0.1]"] = 1e-5
    """Added to the variance. 0 in torchvision's COCO weights of its first detectors."""
    frozen_stages: Annotated[int, "[0, 5]"] = 0
    """Stages that are not trained: 1 is the stem, 2 adds the first residual stage, up to 5."""
    weights: str | None = None
    """`imagenet`, or a file: a torchvision-layout ResNet state dict, .safetensors or .pth."""

    def __post_init__(self) -> None:
        check_fields(self, "backbone")
        require(
            self.width * self.width_per_group % 64 == 0,
            "backbone.width_per_group",
            self.width_per_group,
            "such that backbone.width * backbone.width_per_group is a multiple of 64",
        )
        require(
            self.depth >= 50 or (self.groups, self.width_per_group) == (1, 64),
            "backbone.groups, backbone.width_per_group",
            (self.groups, self.width_per_group),
            "(1, 64) for depths without bottlenecks, 10 to 34",
        )

    @property
    def strides(self) -> tuple[int, ...]:
        return (4, 8, 16, 32)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of C2, C3, C4 and C5."""
        expansion = BOTTLENECK_EXPANSION if LAYOUT[self.depth][0] else 1
        return tuple(self.width * 2**i * expansion for i in range(4))


class Block(nnx.Module):
    """A residual block: two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1.

    Args:
        num_in: channels of the input.
        num_out: channels of the output.
        inner: channels between the convolutions.
        groups: of the bottleneck's 3x3 convolution; ResNeXt has many.
        has_bottleneck: which of the two.
        stride: of the first 3x3 convolution, and of the shortcut.
        shortcut: what the input passes: nothing; a 1x1 convolution; one behind a mean over cells.
        conv_norm: makes a convolution and its norm.
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
        shortcut: Literal["none", "conv", "mean"],
        conv_norm: Callable[..., tuple[Conv, Norm]],
    ) -> None:
        # (channels, kernel size, stride, groups) of each convolution
        layers = [(inner, 3, stride, 1), (num_out, 3, 1, 1)]
        if has_bottleneck:
            layers = [(inner, 1, 1, 1), (inner, 3, stride, groups), (num_out, 1, 1, 1)]
        inputs = [num_in, *(layer[0] for layer in layers[:-1])]
        pairs = [conv_norm(num, *layer) for num, layer in zip(inputs, layers, strict=True)]
        self.convs = nnx.List([conv for conv, _ in pairs])
        self.norms = nnx.List([norm for _, norm in pairs])
        self.pooling = stride if shortcut == "mean" else 1
        layer = () if shortcut == "none" else conv_norm(num_in, num_out, 1, stride // self.pooling)
        self.shortcut = nnx.List(layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.pooling == 1 else mean_pool(x, self.pooling)
        for layer in self.shortcut:
            shortcut = layer(shortcut)
        last = len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            x = jax.nn.relu(x if i < last else x + shortcut)
        return x


class ResNet(nnx.Module):
    """A `Backbone` (see `harmonic_jax.backbones`): C2, C3, C4 and C5 of strides 4 to 32."""

    def __init__(
        self, config: ResNetConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        has_bottleneck, num_blocks = LAYOUT[config.depth]

        def conv_norm(
            stage: int, num_in: int, num_out: int, kernel_size: int, stride: int, groups: int = 1
        ) -> tuple[Conv, Norm]:
            trainable = stage > config.frozen_stages
            conv = Conv(
                num_in,
                num_out,
                kernel_size=kernel_size,
                stride=stride,
                groups=groups,
                trainable=trainable,
                dtype=dtype,
                rngs=rngs,
            )
            return conv, build_norm(config.norm, num_out, trainable=trainable, eps=config.norm_eps)

        # Stage 1 is the stem, stages 2 to 5 give C2 to C5.
        is_d, half = config.variant == "d", config.width // 2
        deep = [conv_norm(1, 3, half, 3, 2), conv_norm(1, half, half, 3, 1)] if is_d else []
        self.stem_convs = nnx.List([conv for conv, _ in deep])
        self.stem_norms = nnx.List([norm for _, norm in deep])
        last = (half, config.width, 3, 1) if is_d else (3, config.width, 7, 2)
        self.conv, self.norm = conv_norm(1, *last)
        stages = []
        num_in = config.width
        for i, (num, num_out) in enumerate(zip(num_blocks, config.channels, strict=True)):
            blocks = []
            for j in range(num):
                stride = 2 if i > 0 and j == 0 else 1
                changes_shape = stride != 1 or num_in != num_out or (is_d and j == 0)
                block = Block(
                    num_in,
                    num_out,
                    inner=config.width * 2**i * config.width_per_group // 64 * config.groups,
                    groups=config.groups,
                    has_bottleneck=has_bottleneck,
                    stride=stride,
                    shortcut=("mean" if is_d else "conv") if changes_shape else "none",
                    conv_norm=partial(conv_norm, i + 2),
                )
                blocks.append(block)
                num_in = num_out
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.normalization = config.normalization
        self.dtype = dtype

    def __call__(
        self, images: jax.Array, image_size: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        pixels = {"mean": np.zeros(3, np.float32), "std": np.full(3, 255, np.float32)}
        x = normalize_images(images, image_size, **pixels if self.normalization == "unit" else {})
        x = x.astype(self.dtype)
        convs, norms = (*self.stem_convs, self.conv), (*self.stem_norms, self.norm)
        for conv, norm in zip(convs, norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        x = max_pool(x, size=3, stride=2, padding=1, ceil_mode=False)
        features = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            features.append(x)
        return tuple(features)
