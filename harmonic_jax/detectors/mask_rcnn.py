"""Mask R-CNN (He et al. 2017): Faster R-CNN, and a mask for each detection."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.backbones.conv import Conv, he_normal
from harmonic_jax.backbones.norm import NewNormKind, check_groups
from harmonic_jax.checks import check_fields
from harmonic_jax.detectors.faster_rcnn import (
    FasterRCNN,
    FasterRCNNConfig,
    Features,
    detect_boxes,
    stage_sums,
)
from harmonic_jax.detectors.parts.heads import ConvStack, ConvTranspose
from harmonic_jax.detectors.parts.matching import Samples
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums, join_groups
from harmonic_jax.detectors.parts.selection import finite_or_nan, mark_non_finite
from harmonic_jax.ops.filled_chunks import map_filled
from harmonic_jax.ops.mask_targets import crop_masks
from harmonic_jax.structures import Batch, Detections

NUM_CHUNKS = 8

# --- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MaskHeadConfig:
    """The mask head: pooled features -> a mask of twice the side for each class."""

    num_convs: Annotated[int, "[0, 16]"] = 4
    channels: Annotated[int, "[8, 4096]"] = 256
    norm: NewNormKind = "none"
    """torchvision's v2 has `batch`."""
    pool_size: Annotated[int, "[1, 64]"] = 14

    def __post_init__(self) -> None:
        check_fields(self, "mask_head")
        check_groups("mask_head.channels", self.channels, self.norm)


@dataclasses.dataclass(frozen=True)
class MaskRCNNConfig(FasterRCNNConfig):
    """Mask R-CNN (He et al. 2017): Faster R-CNN and a mask for each detection."""

    mask_head: MaskHeadConfig = MaskHeadConfig()


# --- Module --------------------------------------------------------------------------------------


class MaskHead(nnx.Module):
    """Features of a RoI -> a mask for each class, of twice the side.

    Background, the last class, has one too: see `BoxHead`.

    Args of the call:
        x: `[r, s, s, channels]`.
        where: `[r]`, rows that exist.

    Returns of the call:
        Logits `[r, 2s, 2s, k + 1]`, float32.
    """

    def __init__(
        self,
        config: MaskHeadConfig,
        channels: int,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.convs = ConvStack(
            channels,
            config.channels,
            num_convs=config.num_convs,
            norm=config.norm,
            dtype=dtype,
            rngs=rngs,
        )
        num_in = config.channels if config.num_convs else channels
        self.upsample = ConvTranspose(
            num_in, config.channels, size=2, kernel_init=he_normal, dtype=dtype, rngs=rngs
        )
        self.output = Conv(
            config.channels,
            num_classes + 1,
            kernel_size=1,
            bias=0.0,
            kernel_init=nnx.initializers.normal(0.001),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.upsample(self.convs(x, where)))
        return self.output(x).astype(jnp.float32)


class MaskRCNN(FasterRCNN):
    """`FasterRCNN` and a third call, `segment`: of positive samples, or of final detections."""

    def __init__(
        self, config: MaskRCNNConfig, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        super().__init__(config, num_classes, dtype=dtype, rngs=rngs)
        self.mask_head = MaskHead(
            config.mask_head, config.channels, num_classes, dtype=dtype, rngs=rngs
        )
        self.mask_pool_size = config.mask_head.pool_size

    def segment(
        self, features: Features, boxes: jax.Array, valid: jax.Array, *, skips_padding: bool = False
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
        rois = self.pool(features, boxes, self.mask_pool_size)
        if skips_padding:
            rows = rois.reshape(*boxes.shape[:2], *rois.shape[1:])
            return map_filled(self.mask_head, rows, valid, num_chunks=NUM_CHUNKS)
        logits = self.mask_head(rois, valid.reshape(-1))
        return logits.reshape(*boxes.shape[:2], *logits.shape[1:])


# --- Targets and loss ----------------------------------------------------------------------------


def loss_sums(
    model: MaskRCNN, batch: Batch, loss: LossConfig, key: jax.Array, batch_axis: str | None
) -> LossSums:
    """Faster R-CNN's, and masks / N_positive_rois. See `detectors.loss_sums`."""
    features, rois, rpn, boxes, log = stage_sums(model, batch, loss, key)
    groups = [rpn, _mask_sums(model, features, rois, batch), boxes, log]
    return join_groups(groups, batch.is_real, batch_axis=batch_axis)


def _mask_sums(model: MaskRCNN, features: Features, rois: Samples, batch: Batch) -> LossSums:
    """The masks of the positive RoIs, which come first among the samples."""
    assert batch.ground_truth.masks is not None
    head, masks = model.config.box_head, batch.ground_truth.masks
    most = max(1, int(head.num_samples * head.positive_fraction))
    positives = jax.tree.map(lambda rows: rows[:, :most], rois)
    logits = model.segment(features, positives.boxes, positives.is_positive)
    coverage = jax.vmap(lambda *arrays: crop_masks(*arrays, size=logits.shape[-2]))(
        masks.values, masks.frames, positives.objects, positives.boxes
    )
    # A grid of zeros is a mask that the data do not tell: there is nothing to learn from it.
    known = jnp.take_along_axis(masks.values.any(axis=(2, 3)), positives.objects, axis=1)
    with_mask = positives._replace(is_positive=positives.is_positive & known)
    return mask_sums(logits, coverage, with_mask, batch.is_real)


def mask_sums(
    logits: Float[Array, "b s m m c"],
    coverage: Float[Array, "b s m m"],
    samples: Samples,
    is_real: Bool[Array, " b"],
) -> LossSums:
    """Binary cross entropy of the true class's mask, of positive RoIs; other classes' masks are
    not looked at.

    Args:
      logits: of each class.
      coverage: of the matched object, in [0, 1]; at half and more a cell belongs to it.
      samples: [b, s].
      is_real: [b], False for slots that only fill the batch.

    Returns:
      Sums over the batch, to be divided by the number of positive RoIs; the term `mask_loss`.

    Source: He et al., Mask R-CNN, 2017, section 3.
    """
    positive = samples.is_positive & is_real[:, None]
    rows = jnp.where(positive, samples.labels, 0)[..., None, None, None]
    own = jnp.take_along_axis(logits, rows, axis=-1)[..., 0]
    targets = (coverage >= 0.5).astype(jnp.float32)
    total = losses.mask_loss(own, targets, where=positive).sum()
    count = positive.sum(dtype=jnp.float32)
    return LossSums(total, {"mask_loss": total}, normalizer=count, num_positive=count)


# --- Detections ----------------------------------------------------------------------------------


def detect(model: MaskRCNN, batch: Batch) -> Detections:
    """Faster R-CNN's, with a mask each. See `detectors.detect`.

    Masks are of the final boxes, not of the proposals: 100 in place of 1000, and better placed.
    """
    features, found = detect_boxes(model, batch)
    logits = model.segment(features, found.boxes, found.valid, skips_padding=True)
    with_masks = take_masks(logits, found)
    return mark_non_finite(with_masks, with_masks.masks)


def take_masks(logits: Float[Array, "*b d m m c"], detections: Detections) -> Detections:
    """Detections with the masks of their classes.

    Args:
      logits: `[*b d m m c]` for each detection and class.
      detections: `[*b d]`.

    Returns:
      The detections with `masks` `[*b d m m]`: probabilities, and 0 where not valid.

    Source: He et al., Mask R-CNN, 2017, section 3.
    """
    rows = detections.labels[..., None, None, None]
    own = jnp.take_along_axis(logits, rows, axis=-1)[..., 0]
    own = finite_or_nan(own.astype(jnp.float32))
    masks = jnp.where(detections.valid[..., None, None], jax.nn.sigmoid(own), 0.0)
    return dataclasses.replace(detections, masks=masks)
