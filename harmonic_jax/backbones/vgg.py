"""VGG-16 (Simonyan & Zisserman 2015) as SSD and RefineDet use it: fully convolutional."""

import dataclasses
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import he_normal
from harmonic_jax.backbones.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConvLayer,
    max_pool,
    normalize_images,
)
from harmonic_jax.checks import check_fields

# Of each stage: its convolutions, and its channels in units of the first stage's.
LAYOUT = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
FC_CHANNELS = 16  # of fc6 and fc7, in the same unit
# Caffe's mean colour, 123 117 104, as torchvision writes it.
CAFFE_MEAN = 255 * np.array([0.48235, 0.45882, 0.40784], np.float32)


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """VGG-16 (Simonyan & Zisserman 2015) with fc6 and fc7 as convolutions."""

    width: Annotated[int, "[4, 1024]"] = 64
    """Channels of the first stage; 64 is the published network."""
    norm: Literal["none", "batch"] = "none"
    """`none`: the published network, which needs weights; `batch`: a batch norm behind every
    convolution of the backbone and of the layers above it, to train from scratch."""
    atrous: bool = False
    """pool5 keeps the size, as in SSD: fc7 has the stride 16, and takes the place of conv5_3."""
    fc6_dilation: Annotated[int, "[1, 64]"] = 3
    """Holes of fc6, a 3x3 convolution that so sees what the 7x7 fully connected layer saw: 3, and
    6 with `atrous`; small images need smaller ones."""
    frozen_stages: Annotated[int, "[0, 5]"] = 0
    """Stages that are not trained, up to 5: 1 is conv1_1 and conv1_2."""
    normalization: Literal["caffe", "torchvision"] = "caffe"
    """What the weights were trained on: `caffe`: 0..255 minus the mean colour; `torchvision`:
    that over the standard deviation. vgg16's classifier weights need the second; the original
    Caffe weights, torchvision's IMAGENET1K_FEATURES and its ssd300_vgg16 the first."""
    weights: str | None = None
    """`imagenet`, or a file: a torchvision-layout VGG-16 state dict, .safetensors or .pth."""

    def __post_init__(self) -> None:
        check_fields(self, "backbone")

    @property
    def strides(self) -> tuple[int, ...]:
        return (4, 8, 16) if self.atrous else (4, 8, 16, 32)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of conv3_3, conv4_3, conv5_3 and fc7; with `atrous` without conv5_3."""
        convs = tuple(self.width * factor for _, factor in LAYOUT[2 : len(self.strides) + 1])
        return (*convs, self.width * FC_CHANNELS)


class VGG16(nnx.Module):
    """A `Backbone` (see `harmonic_jax.backbones`); pooling rounds sizes up, as Caffe's does.

    Its maps are conv3_3, conv4_3, conv5_3 and fc7; with `atrous` the first two and fc7.
    """

    def __init__(
        self, config: VGGConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        layer = partial(ConvLayer, has_norm=config.norm == "batch", dtype=dtype, rngs=rngs)
        stages, num_in = [], 3
        for stage, (num_convs, factor) in enumerate(LAYOUT, start=1):
            width = config.width * factor
            conv = partial(
                layer, kernel_size=3, kernel_init=he_normal, trainable=stage > config.frozen_stages
            )
            inputs = [num_in, *[width] * (num_convs - 1)]
            stages.append(nnx.List([conv(num, width) for num in inputs]))
            num_in = width
        self.stages = nnx.List(stages)
        num_fc = config.width * FC_CHANNELS
        self.fc6 = layer(num_in, num_fc, kernel_size=3, dilation=config.fc6_dilation)
        self.fc7 = layer(num_fc, num_fc, kernel_size=1)
        self.is_atrous = config.atrous
        self.normalization = config.normalization
        self.dtype = dtype

    def __call__(
        self, images: jax.Array, image_size: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        is_caffe = self.normalization == "caffe"
        x = normalize_images(
            images,
            image_size,
            mean=CAFFE_MEAN if is_caffe else IMAGENET_MEAN,
            std=np.ones(3, np.float32) if is_caffe else IMAGENET_STD,
        ).astype(self.dtype)
        features = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = max_pool(x, size=2, stride=2)
            for conv in stage:
                x = conv(x)
            features.append(x)
        if self.is_atrous:
            features.pop()
            x = max_pool(x, size=3, stride=1, padding=1)
        else:
            x = max_pool(x, size=2, stride=2)
        return (*features[2:], self.fc7(self.fc6(x)))
