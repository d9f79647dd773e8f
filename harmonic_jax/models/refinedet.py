"""RefineDet (Zhang et al. 2018, "Single-Shot Refinement Neural Network for Object Detection")."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.config import RefineDetConfig
from harmonic_jax.models.deconv import Doubling
from harmonic_jax.models.multibox_head import L2Norm, MultiBoxHead
from harmonic_jax.models.vgg import VGG16, ConvReLU
from harmonic_jax.structures import Predictions


class RefineDetPredictions(NamedTuple):
    """Raw outputs of both modules, for the same anchors."""

    arm: Predictions  # object and background; deltas of the anchors
    odm: Predictions  # every class, background last; deltas of the refined anchors


class TransferBlock(nnx.Module):
    """A level of the ARM -> the level of the ODM, with what comes from the coarser one.

    conv, ReLU, conv; plus the doubled coarser level; ReLU, conv, ReLU; all 3x3.

    Args of the call:
        x: `[b, h, w, c]`.
        coarser: `[b, ceil(h / 2), ceil(w / 2), channels]`, or None at the top.

    Returns of the call:
        `[b, h, w, channels]`.
    """

    def __init__(
        self,
        num_in: int,
        config: RefineDetConfig,
        *,
        is_top: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        channels = config.channels

        def conv(num_in: int, *, has_relu: bool = True) -> ConvReLU:
            return ConvReLU(
                num_in,
                channels,
                kernel_size=3,
                has_norm=config.backbone.norm == "batch",
                has_relu=has_relu,
                dtype=dtype,
                rngs=rngs,
            )

        self.first = conv(num_in)
        self.second = conv(channels, has_relu=False)
        self.double = (
            None
            if is_top
            else Doubling(channels, channels, size=config.deconv_size, dtype=dtype, rngs=rngs)
        )
        self.last = conv(channels)

    def __call__(self, x: jax.Array, coarser: jax.Array | None) -> jax.Array:
        x = self.second(self.first(x))
        if self.double is not None and coarser is not None:
            x = x + self.double(coarser)[:, : x.shape[1], : x.shape[2]]
        return self.last(jax.nn.relu(x))


class RefineDet(nnx.Module):
    """Images -> outputs of both modules for every anchor.

    Args of the call:
        images: `[b, h, w, 3]` uint8, RGB.
        image_size: `[b, 2]` height and width without padding, or None.

    Returns of the call:
        `RefineDetPredictions`, float32, levels of `ceil(h / s) * ceil(w / s) * anchors` for the
        strides s = 8, 16, 32 and 64.
    """

    def __init__(
        self,
        config: RefineDetConfig,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.backbone = VGG16(
            config.backbone, atrous=False, dilation=config.fc6_dilation, dtype=dtype, rngs=rngs
        )
        num_conv4, num_conv5, num_fc = self.backbone.channels
        self.l2_norms = nnx.List(
            [
                L2Norm(num, scale=scale)
                for num, scale in zip((num_conv4, num_conv5), config.l2_scales, strict=True)
            ]
        )
        width, has_norm = config.backbone.width, config.backbone.norm == "batch"
        self.extra = nnx.List(
            [
                ConvReLU(
                    num_fc, 4 * width, kernel_size=1, has_norm=has_norm, dtype=dtype, rngs=rngs
                ),
                ConvReLU(
                    4 * width,
                    8 * width,
                    kernel_size=3,
                    stride=2,
                    has_norm=has_norm,
                    dtype=dtype,
                    rngs=rngs,
                ),
            ]
        )
        channels = (num_conv4, num_conv5, num_fc, 8 * width)
        self.transfer = nnx.List(
            [
                TransferBlock(num, config, is_top=i == 3, dtype=dtype, rngs=rngs)
                for i, num in enumerate(channels)
            ]
        )

        def head(num_in: tuple[int, ...], num_outputs: int) -> MultiBoxHead:
            return MultiBoxHead(
                num_in,
                num_outputs=num_outputs,
                per_location=(config.per_location,) * 4,
                dtype=dtype,
                rngs=rngs,
            )

        self.arm = head(channels, 2)
        self.odm = head((config.channels,) * 4, num_classes + 1)

    def __call__(
        self, images: jax.Array, image_size: jax.Array | None = None
    ) -> RefineDetPredictions:
        *convs, fc7 = self.backbone(images, image_size)
        normed = [norm(x) for norm, x in zip(self.l2_norms, convs, strict=True)]
        top = fc7
        for conv in self.extra:
            top = conv(top)
        levels = [*normed, fc7, top]
        transferred: list[jax.Array] = []
        coarser = None
        for block, x in zip(reversed(self.transfer), reversed(levels), strict=True):
            coarser = block(x, coarser)
            transferred.insert(0, coarser)
        return RefineDetPredictions(arm=self.arm(levels), odm=self.odm(transferred))
