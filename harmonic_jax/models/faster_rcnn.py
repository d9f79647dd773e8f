"""Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.config import FasterRCNNConfig
from harmonic_jax.models.fpn import FeaturePyramid
from harmonic_jax.models.resnet import ResNet
from harmonic_jax.models.retinanet import normalize_images
from harmonic_jax.models.roi_heads import BoxHead
from harmonic_jax.models.rpn import RPNHead
from harmonic_jax.ops.roi_align import pyramid_roi_align
from harmonic_jax.structures import Predictions

LAST_POOLED_LEVEL = 5

Features = tuple[jax.Array, ...]


class FasterRCNN(nnx.Module):
    """Two stages that are called apart, because selection and assignment lie between them.

    `features` -> `propose` -> (proposals, or samples of them in training) -> `classify`.
    """

    def __init__(
        self,
        config: FasterRCNNConfig,
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
            num_extra=last - LAST_POOLED_LEVEL,
            extra_levels_from="pool",
            norm=config.fpn_norm,
            dtype=dtype,
            rngs=rngs,
        )
        self.rpn = RPNHead(
            config.channels,
            num_anchors=config.rpn.anchors.per_location,
            num_convs=config.rpn.num_convs,
            dtype=dtype,
            rngs=rngs,
        )
        self.box_head = BoxHead(
            config.box_head, config.channels, num_classes, dtype=dtype, rngs=rngs
        )
        self.config = config
        self.num_classes = num_classes
        self.dtype = dtype

    def features(self, images: jax.Array, image_size: jax.Array | None = None) -> Features:
        """Images -> the levels of the pyramid, finest first.

        Args:
            images: `[b, h, w, 3]` uint8, RGB.
            image_size: `[b, 2]` height and width without padding, or None.

        Returns:
            `[b, ceil(h / 2**l), ceil(w / 2**l), channels]` for each level l.
        """
        x = normalize_images(images, image_size).astype(self.dtype)
        return self.fpn(self.backbone(x)[self.config.levels[0] - 2 :])

    def propose(self, features: Features) -> Predictions:
        """The levels -> objectness logits `[b, n, 1]` and deltas `[b, n, 4]` of each."""
        logits, deltas = zip(*(self.rpn(level) for level in features), strict=True)
        return Predictions(cls_logits=logits, deltas=deltas)

    def classify(
        self, features: Features, boxes: jax.Array, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Regions -> classes and refined boxes.

        Args:
            features: all levels.
            boxes: `[b, r, 4]`, xyxy in pixels; constants, no gradient flows to them.
            valid: `[b, r]`, False for padding, which takes no part in batch statistics.

        Returns:
            Logits `[b, r, k + 1]`, background last, and deltas `[b, r, k + 1, 4]`, float32.
        """
        rois = self._pool(features, boxes, self.config.box_head.pool_size)
        logits, deltas = self.box_head(rois, None if valid is None else valid.reshape(-1))
        shape = boxes.shape[:2]
        return logits.reshape(*shape, -1), deltas.reshape(*shape, -1, 4)

    def _pool(self, features: Features, boxes: jax.Array, size: int) -> jax.Array:
        """RoIAlign on the levels up to 5: `[b * r, s, s, c]`."""
        first = self.config.levels[0]
        settings = self.config.roi_align

        def pool(levels: Features, boxes: jax.Array) -> jax.Array:
            return pyramid_roi_align(
                levels,
                boxes,
                output_size=size,
                first_level=first,
                aligned=settings.aligned,
                sampling_ratio=settings.sampling_ratio,
                canonical_size=settings.canonical_size,
            )

        rois = jax.vmap(pool)(features[: LAST_POOLED_LEVEL + 1 - first], boxes)
        return rois.reshape(-1, *rois.shape[2:])
