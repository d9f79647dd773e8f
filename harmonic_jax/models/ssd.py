"""SSD (Liu et al. 2016, "SSD: Single Shot MultiBox Detector")."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.config import SSDConfig
from harmonic_jax.models.multibox_head import L2Norm, MultiBoxHead
from harmonic_jax.models.vgg import VGG16, ConvReLU
from harmonic_jax.structures import Predictions

# Kernel size, stride and padding of an extra layer's second convolution.
EXTRA_LAYERS = {"3x3/2": (3, 2, 1), "3x3": (3, 1, 0), "4x4": (4, 1, 1)}


class SSD(nnx.Module):
    """Images -> class logits and box deltas of every default box.

    Args of the call:
        images: `[b, h, w, 3]` uint8, RGB.
        image_size: `[b, 2]` height and width without padding, or None.

    Returns of the call:
        `Predictions`, float32; logits of `num_classes + 1` classes, background last. The levels
        are those of `config.SSDConfig.level_shapes`.
    """

    def __init__(
        self,
        config: SSDConfig,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.backbone = VGG16(
            config.backbone, atrous=True, dilation=config.fc6_dilation, dtype=dtype, rngs=rngs
        )
        num_conv4, _, num_fc = self.backbone.channels
        self.l2_norm = L2Norm(num_conv4, scale=config.l2_scale)
        has_norm = config.backbone.norm == "batch"
        width = config.backbone.width
        extra, channels = [], [num_conv4, num_fc]
        for i, layer in enumerate(config.extra_layers):
            # 256 and 512 channels on fc7, 128 and 256 above it.
            narrow, wide = (4 * width, 8 * width) if i == 0 else (2 * width, 4 * width)
            size, stride, padding = EXTRA_LAYERS[layer]
            pair = [
                ConvReLU(
                    channels[-1], narrow, kernel_size=1, has_norm=has_norm, dtype=dtype, rngs=rngs
                ),
                ConvReLU(
                    narrow,
                    wide,
                    kernel_size=size,
                    stride=stride,
                    padding=padding,
                    has_norm=has_norm,
                    dtype=dtype,
                    rngs=rngs,
                ),
            ]
            extra.append(nnx.List(pair))
            channels.append(wide)
        self.extra = nnx.List(extra)
        self.head = MultiBoxHead(
            channels,
            num_outputs=num_classes + 1,
            per_location=config.default_boxes.per_location,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array, image_size: jax.Array | None = None) -> Predictions:
        conv4_3, _, x = self.backbone(images, image_size)
        levels = [self.l2_norm(conv4_3), x]
        for pair in self.extra:
            for conv in pair:
                x = conv(x)
            levels.append(x)
        return self.head(levels)
