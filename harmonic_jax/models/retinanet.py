"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection")."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.config import RetinaNetConfig
from harmonic_jax.models.fpn import FeaturePyramid
from harmonic_jax.models.heads import DenseHead
from harmonic_jax.models.resnet import ResNet
from harmonic_jax.structures import Predictions

# ImageNet's, RGB, of 0..255: what torchvision's weights were trained with.
PIXEL_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
PIXEL_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)


def normalize_images(
    images: jax.Array,
    image_size: jax.Array | None = None,
    *,
    mean: np.ndarray = PIXEL_MEAN,
    std: np.ndarray = PIXEL_STD,
) -> jax.Array:
    """Standardise uint8 images: `(images - mean) / std` in float32, 0 in the padding.

    Args:
        images: `[b, h, w, 3]` uint8, RGB.
        image_size: `[b, 2]` height and width of the image in the top-left corner; what lies
            outside becomes 0, the mean colour, as if padded after normalisation. None: no
            padding.
        mean, std: `[3]`, of 0..255; ImageNet's unless the weights were trained with others.

    Returns:
        `[b, h, w, 3]` float32.

    Raises:
        TypeError: images are not uint8.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise TypeError(
            f"images is {images.dtype}{list(images.shape)}; it must be uint8 [b, h, w, 3], RGB"
        )
    mean, std = (a.reshape(1, 1, 1, 3) for a in (mean, std))
    normalized = (images.astype(jnp.float32) - mean) / std
    if image_size is None:
        return normalized
    rows, columns = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    is_row = rows[None, :] < image_size[:, :1]  # [b, h]
    is_column = columns[None, :] < image_size[:, 1:]  # [b, w]
    is_image = is_row[:, :, None, None] & is_column[:, None, :, None]  # [b, h, w, 1]
    return jnp.where(is_image, normalized, 0.0)


class RetinaNet(nnx.Module):
    """Images -> class logits and box deltas of every anchor.

    Args of the call:
        images: `[b, h, w, 3]` uint8, RGB.
        image_size: `[b, 2]` height and width without padding, or None.

    Returns of the call:
        `Predictions`, float32, a level of `ceil(h / 2**l) * ceil(w / 2**l) * anchors` an entry.
    """

    def __init__(
        self,
        config: RetinaNetConfig,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        first, last = config.levels
        self.backbone = ResNet(config.backbone, dtype=dtype, rngs=rngs)
        self.fpn = FeaturePyramid(
            self.backbone.channels[first - 2 :],
            config.channels,
            num_extra=last - 5,
            extra_levels_from=config.extra_levels_from,
            dtype=dtype,
            rngs=rngs,
        )

        def head(num_out: int, bias: float) -> DenseHead:
            return DenseHead(
                config.channels,
                num_out,
                num_anchors=config.anchors.per_location,
                num_convs=config.head_convs,
                norm=config.head_norm,
                bias=bias,
                dtype=dtype,
                rngs=rngs,
            )

        self.cls_head = head(num_classes, -math.log((1 - config.prior) / config.prior))
        self.box_head = head(4, 0.0)
        self.first_level = first
        self.dtype = dtype

    def __call__(self, images: jax.Array, image_size: jax.Array | None = None) -> Predictions:
        x = normalize_images(images, image_size).astype(self.dtype)
        features = self.backbone(x)[self.first_level - 2 :]
        levels = self.fpn(features)
        return Predictions(
            cls_logits=tuple(self.cls_head(level) for level in levels),
            deltas=tuple(self.box_head(level) for level in levels),
        )
