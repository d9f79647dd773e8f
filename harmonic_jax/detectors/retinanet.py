"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection").

A feature pyramid, one head slid over its levels, sigmoid scores, max-IoU assignment of anchors.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.backbones import BackboneConfig, ResNetConfig, build_backbone
from harmonic_jax.backbones.norm import check_groups
from harmonic_jax.checks import check_fields
from harmonic_jax.detectors.parts.anchors import AnchorConfig, make_anchors
from harmonic_jax.detectors.parts.heads import DenseHead
from harmonic_jax.detectors.parts.matching import MatchConfig, dense_targets
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums, masked, sample_sums
from harmonic_jax.detectors.parts.pyramid import FeaturePyramid, check_pyramid
from harmonic_jax.detectors.parts.rivals import box_losses, cls_losses, rival_sums, true_class_logit
from harmonic_jax.detectors.parts.selection import (
    PostprocessConfig,
    best_pairs,
    mark_non_finite,
    select_detections,
)
from harmonic_jax.ops.box_coder import decode_boxes
from harmonic_jax.ops.boxes import AnyArray
from harmonic_jax.structures import Batch, Detections, Predictions, Targets

# --- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RetinaNetConfig:
    """RetinaNet (Lin et al. 2017) on a feature pyramid."""

    backbone: BackboneConfig = ResNetConfig()
    levels: Annotated[tuple[int, int], "[3, 8]"] = (3, 7)
    """First and last pyramid level."""
    extra_levels_from: Literal["c5", "p5"] = "c5"
    """What the levels above 5 are computed from: the paper's C5, or P5."""
    channels: Annotated[int, "[8, 4096]"] = 256
    head_convs: Annotated[int, "[0, 16]"] = 4
    head_norm: Literal["none", "group"] = "none"
    """`group` helps training from scratch; the published head has none."""
    prior: Annotated[float, "(0, 1)"] = 0.01
    """Score of every class at the start of training."""
    anchors: AnchorConfig = AnchorConfig()
    match: MatchConfig = MatchConfig()
    postprocess: PostprocessConfig = PostprocessConfig()

    def __post_init__(self) -> None:
        check_fields(self, "model")
        check_pyramid(self.backbone, self.levels)
        check_groups("model.channels", self.channels, self.head_norm)

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: the backbone's last stride."""
        return 2 ** min(self.levels[1], 5)


# --- Module --------------------------------------------------------------------------------------


class RetinaNet(nnx.Module):
    """Images -> class logits and box deltas of every anchor.

    Called with `images` and `image_size` as a `backbones.Backbone` is.

    Returns of the call:
        `Predictions`, float32, a level of `ceil(h / 2**l) * ceil(w / 2**l) * anchors` an entry.
    """

    def __init__(
        self, config: RetinaNetConfig, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.backbone = build_backbone(config.backbone, dtype=dtype, rngs=rngs)
        self.fpn = FeaturePyramid(
            config.backbone,
            config.levels,
            config.channels,
            extra_levels_from=config.extra_levels_from,
            dtype=dtype,
            rngs=rngs,
        )

        head = partial(
            DenseHead,
            config.channels,
            num_anchors=config.anchors.per_location,
            num_convs=config.head_convs,
            norm=config.head_norm,
            dtype=dtype,
            rngs=rngs,
        )
        prior_logit = -math.log((1 - config.prior) / config.prior)
        self.cls_head = head(num_classes, bias=prior_logit)
        self.box_head = head(4)
        self.config = config

    def __call__(self, images: jax.Array, image_size: jax.Array | None = None) -> Predictions:
        levels = self.fpn(self.backbone(images, image_size))
        return Predictions(
            cls_logits=tuple(self.cls_head(level) for level in levels),
            deltas=tuple(self.box_head(level) for level in levels),
        )


# --- Targets and loss ----------------------------------------------------------------------------


def loss_sums(
    model: RetinaNet, batch: Batch, loss: LossConfig, key: jax.Array, batch_axis: str | None
) -> LossSums:
    """Assigns the objects to anchors and sums the losses, to be divided by the positives.

    Positive anchors contribute L_i of the HarDet formula (or classification + box loss without),
    negative ones their classification loss, ignored ones and images that are not real nothing.
    Losses that weigh a sample by others of the batch: `rivals.rival_sums`. Nothing is drawn at
    random. See `detectors.loss_sums`.
    """
    config = model.config
    anchors = make_anchors(batch.images.shape[1:3], config.levels, config.anchors)
    predictions = model(batch.images, batch.image_size)
    if loss.is_weighted:
        return rival_sums(predictions, anchors, batch, loss, config.match, batch_axis)
    num_classes = predictions.cls_logits[0].shape[-1]
    targets = jax.vmap(
        lambda truth: dense_targets(anchors, truth, num_classes=num_classes, match=config.match)
    )(batch.ground_truth)
    # One level at a time: concatenating anchors x classes would copy the largest array there is.
    sums, *others = (
        _level_sums(*level, is_real=batch.is_real, loss=loss)
        for level in zip(predictions.cls_logits, predictions.deltas, anchors, targets, strict=True)
    )
    for level in others:
        sums = sums.add(level)
    return sums


def _level_sums(
    cls_logits: Float[Array, "b n k"],
    deltas: Float[Array, "b n 4"],
    anchors: Float[AnyArray, "n 4"],
    targets: Targets,
    *,
    is_real: Bool[Array, " b"],
    loss: LossConfig,
) -> LossSums:
    positive = targets.is_positive & is_real[:, None]
    negative = targets.is_counted & ~targets.is_positive & is_real[:, None]

    labels = jnp.where(positive, targets.labels, cls_logits.shape[-1])
    deltas = masked(deltas, positive)
    boxes = decode_boxes(deltas, jnp.broadcast_to(anchors, deltas.shape))
    iou = losses.aligned_iou(boxes, targets.boxes, where=positive)
    cls_loss = cls_losses(cls_logits, labels, iou, where=positive | negative, loss=loss).sum(-1)
    box_loss = box_losses(deltas, boxes, anchors, targets.boxes, where=positive, loss=loss)
    true_logit = true_class_logit(cls_logits, labels)
    return sample_sums(
        cls_loss,
        box_loss,
        jax.nn.sigmoid(true_logit),
        iou,
        losses.sigmoid_entropy(true_logit, where=positive),
        cross_entropy=jax.nn.softplus(-true_logit),
        positive=positive,
        negative=negative,
        loss=loss,
    )


# --- Detections ----------------------------------------------------------------------------------


def detect(model: RetinaNet, batch: Batch) -> Detections:
    """The `postprocess.topk` best (anchor, class) pairs of each level pass the suppression.

    See `detectors.detect`. An anchor with a NaN logit or a box that is not finite is never
    detected.
    """
    config = model.config
    anchors = make_anchors(batch.images.shape[1:3], config.levels, config.anchors)
    predictions = model(batch.images, batch.image_size)
    found = jax.vmap(
        lambda predictions, size: detect_in_image(predictions, anchors, size, config.postprocess)
    )(predictions, batch.image_size)
    return mark_non_finite(found, predictions)


def detect_in_image(
    predictions: Predictions,
    anchors: Sequence[Float[AnyArray, "_ 4"]],
    image_size: Float[Array, " 2"],
    config: PostprocessConfig,
) -> Detections:
    """The detections of one image: logits `[n_l k]`, deltas and anchors `[n_l 4]` a level."""
    levels = []
    for logits, deltas, level in zip(
        predictions.cls_logits, predictions.deltas, anchors, strict=True
    ):
        scores, rows, labels = best_pairs(logits, config.score_threshold, config.topk)
        level = jnp.asarray(level, jnp.float32)[rows]
        levels.append((decode_boxes(deltas[rows], level), scores, labels))
    boxes, scores, labels = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    return select_detections(boxes, scores, labels, image_size, config)
