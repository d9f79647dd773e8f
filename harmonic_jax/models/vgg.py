"""VGG-16 (Simonyan & Zisserman 2015) as SSD and RefineDet use it: fully convolutional."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from harmonic_jax.config import VGGConfig
from harmonic_jax.models.conv import Conv, he_normal, xavier_uniform
from harmonic_jax.models.norm import build_norm
from harmonic_jax.models.pooling import max_pool
from harmonic_jax.models.retinanet import PIXEL_MEAN, PIXEL_STD, normalize_images

# Of each stage: its convolutions, and its channels in units of the first stage's.
LAYOUT = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
FC_CHANNELS = 16  # of fc6 and fc7, in the same unit
# Caffe's mean colour, 123 117 104, as torchvision writes it.
CAFFE_MEAN = 255 * np.array([0.48235, 0.45882, 0.40784], np.float32)


class ConvReLU(nnx.Module):
    """Convolution, batch norm where the network has norms, and ReLU (unless left to the caller)."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kernel_size: int,
        has_norm: bool,
        has_relu: bool = True,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        kernel_init: Initializer = xavier_uniform,
        trainable: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(
            num_in,
            num_out,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=None if has_norm else 0.0,
            kernel_init=kernel_init,
            trainable=trainable,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = build_norm("batch", num_out, trainable=trainable) if has_norm else None
        self.has_relu = has_relu

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return jax.nn.relu(x) if self.has_relu else x


class VGG16(nnx.Module):
    """Images -> the features that detectors read; pooling rounds sizes up, as Caffe's does.

    fc6 is a 3x3 convolution with holes, which give it the view that the 7x7 fully connected layer
    had: a dilation of 3. Without the stride of pool5 (`atrous`) it is 6.

    Args of the call:
        images: `[b, h, w, 3]` uint8, RGB.
        image_size: `[b, 2]` height and width without padding, or None.

    Returns of the call:
        conv4_3, conv5_3 and fc7: features of stride 8, 16 and 16 (`atrous`) or 32 in `dtype`,
        with `channels` channels.
    """

    def __init__(
        self,
        config: VGGConfig,
        *,
        atrous: bool,
        dilation: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        has_norm = config.norm == "batch"
        stages, num_in = [], 3
        for stage, (num_convs, factor) in enumerate(LAYOUT, start=1):
            width = config.width * factor
            convs = [
                ConvReLU(
                    num_in if i == 0 else width,
                    width,
                    kernel_size=3,
                    has_norm=has_norm,
                    kernel_init=he_normal,
                    trainable=stage > config.frozen_stages,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(num_convs)
            ]
            stages.append(nnx.List(convs))
            num_in = width
        self.stages = nnx.List(stages)
        num_fc = config.width * FC_CHANNELS
        self.fc6 = ConvReLU(
            num_in,
            num_fc,
            kernel_size=3,
            dilation=dilation,
            has_norm=has_norm,
            dtype=dtype,
            rngs=rngs,
        )
        self.fc7 = ConvReLU(
            num_fc, num_fc, kernel_size=1, has_norm=has_norm, dtype=dtype, rngs=rngs
        )
        self.channels = (num_in, num_in, num_fc)
        self.is_atrous = atrous
        self.normalization = config.normalization
        self.dtype = dtype

    def __call__(
        self, images: jax.Array, image_size: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        is_caffe = self.normalization == "caffe"
        x = normalize_images(
            images,
            image_size,
            mean=CAFFE_MEAN if is_caffe else PIXEL_MEAN,
            std=np.ones(3, np.float32) if is_caffe else PIXEL_STD,
        ).astype(self.dtype)
        features = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = max_pool(x, size=2, stride=2)
            for conv in stage:
                x = conv(x)
            features.append(x)
        if self.is_atrous:
            x = max_pool(x, size=3, stride=1, padding=1)
        else:
            x = max_pool(x, size=2, stride=2)
        return features[3], features[4], self.fc7(self.fc6(x))
