"""Pixels -> feature maps. A detector takes any of these; its settings choose by their type."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Frozen
from harmonic_jax.backbones.efficientnet import EfficientNetLite, EfficientNetLiteConfig
from harmonic_jax.backbones.resnet import ResNet, ResNetConfig
from harmonic_jax.backbones.vgg import VGG16, VGGConfig

__all__ = [
    "VGG16",
    "Backbone",
    "BackboneConfig",
    "EfficientNetLite",
    "EfficientNetLiteConfig",
    "Frozen",
    "ResNet",
    "ResNetConfig",
    "VGGConfig",
    "build_backbone",
]

BackboneConfig = ResNetConfig | VGGConfig | EfficientNetLiteConfig
"""The settings of a backbone. All have `strides` (of the maps, finest first, each twice the one
before), `channels` (of each map), `frozen_stages` (what is not trained) and `weights` (the
classifier that training starts from)."""


class Backbone(Protocol):
    """What a detector sees of a backbone: it standardises its images itself, as its weights want.

    Args of the call:
        images: `[b, h, w, 3]` uint8, RGB.
        image_size: `[b, 2]` height and width without padding, or None.

    Returns of the call:
        A map `[b, ceil(h / s), ceil(w / s), c]` for each of the settings' strides s and channels c.
    """

    def __call__(
        self, images: jax.Array, image_size: jax.Array | None = None
    ) -> tuple[jax.Array, ...]: ...


def build_backbone(
    config: BackboneConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> ResNet | VGG16 | EfficientNetLite:
    """The backbone that its settings describe, with random weights.

    Args:
        config: its settings; their type chooses the network.
        dtype: compute type, float32 or bfloat16; parameters are float32 always.
        rngs: the random stream of the initial weights.
    """
    match config:
        case ResNetConfig():
            return ResNet(config, dtype=dtype, rngs=rngs)
        case VGGConfig():
            return VGG16(config, dtype=dtype, rngs=rngs)
        case EfficientNetLiteConfig():
            return EfficientNetLite(config, dtype=dtype, rngs=rngs)
