"""Mask R-CNN (He et al. 2017): Faster R-CNN with a mask for each detection."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.config import MaskRCNNConfig
from harmonic_jax.models.faster_rcnn import FasterRCNN, Features
from harmonic_jax.models.roi_heads import MaskHead
from harmonic_jax.ops.filled_chunks import map_filled

NUM_CHUNKS = 8


class MaskRCNN(FasterRCNN):
    """`FasterRCNN` and a third call, `segment`: of positive samples, or of final detections."""

    def __init__(
        self,
        config: MaskRCNNConfig,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, num_classes, dtype=dtype, rngs=rngs)
        self.mask_head = MaskHead(
            config.mask_head, config.channels, num_classes, dtype=dtype, rngs=rngs
        )
        self.mask_pool_size = config.mask_head.pool_size

    def segment(
        self,
        features: Features,
        boxes: jax.Array,
        valid: jax.Array,
        *,
        skips_padding: bool = False,
    ) -> jax.Array:
        """Regions -> masks.

        Args:
            features: all levels.
            boxes: `[b, r, 4]`, xyxy in pixels; constants, no gradient flows to them.
            valid: `[b, r]`, False for padding, which takes no part in batch statistics.
            skips_padding: parts of the rows with nothing but padding are not computed, and get
                zeros. For inference, with padding last: most images have few detections, and
                batch statistics are not collected. (The gradient would take longer, not shorter:
                on processors XLA makes slower programs of convolutions in a loop.)

        Returns:
            Logits `[b, r, m, m, k + 1]`, float32, of the mask on an m x m grid over the box, for
            each class; background, which has no mask, comes last.
        """
        rois = self._pool(features, boxes, self.mask_pool_size)
        if skips_padding:
            rows = rois.reshape(*boxes.shape[:2], *rois.shape[1:])
            return map_filled(self.mask_head, rows, valid, num_chunks=NUM_CHUNKS)
        logits = self.mask_head(rois, valid.reshape(-1))
        return logits.reshape(*boxes.shape[:2], *logits.shape[1:])
