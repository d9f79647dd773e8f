"""The objective of one-stage detectors with sigmoid heads: focal loss and boxes, or HarDet."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.assign.targets import dense_targets
from harmonic_jax.config import LossConfig, MatchConfig
from harmonic_jax.objectives.choices import (
    box_losses,
    cls_losses,
    true_class_logit,
)
from harmonic_jax.objectives.positives import positive_losses
from harmonic_jax.objectives.sums import LossSums, masked
from harmonic_jax.objectives.weighted import weighted_objective
from harmonic_jax.ops.box_coder import decode_boxes
from harmonic_jax.structures import GroundTruth, Predictions, Targets


def dense_objective(
    predictions: Predictions,
    anchors: tuple[Float[Array, "n 4"], ...],
    ground_truth: GroundTruth,
    is_real: Bool[Array, " b"],
    *,
    loss: LossConfig,
    match: MatchConfig,
    batch_axis: str | None = None,
) -> LossSums:
    """Assigns the ground truth to anchors and sums the losses of a batch.

    Positive anchors contribute L_i of the HarDet formula (or classification + box loss without),
    negative ones their classification loss, ignored ones and images that are not real nothing.
    Losses that weigh a sample by others of the batch: `weighted_objective`.

    Args:
      predictions: raw outputs, [b, n_l, k] and [b, n_l, 4] a level.
      anchors: [n_l, 4] a level, xyxy pixels.
      ground_truth: [b, g] padded objects.
      is_real: [b], False for slots that only fill the batch.
      loss: which losses, and their constants.
      match: IoU thresholds of the assignment.
      batch_axis: as in `join_groups`; only losses that depend on the whole batch ask for it.

    Returns:
      Sums over the batch; under jit with a sharded batch they are the global sums.
    """
    num_classes = predictions.cls_logits[0].shape[-1]

    def assign(truth: GroundTruth) -> tuple[Targets, ...]:
        return dense_targets(
            anchors,
            truth,
            num_classes=num_classes,
            positive_iou=match.positive_iou,
            negative_iou=match.negative_iou,
            low_quality=match.low_quality,
        )

    if loss.is_weighted:
        return weighted_objective(
            predictions, anchors, ground_truth, is_real, assign, loss=loss, batch_axis=batch_axis
        )
    targets = jax.vmap(assign)(ground_truth)
    # One level at a time: concatenating anchors x classes would copy the largest array there is.
    per_level = [
        _level_sums(*level, is_real=is_real, loss=loss)
        for level in zip(predictions.cls_logits, predictions.deltas, anchors, targets, strict=True)
    ]
    sums = per_level[0]
    for level in per_level[1:]:
        sums = sums.add(level)
    return sums


def _level_sums(
    cls_logits: Float[Array, "b n k"],
    deltas: Float[Array, "b n 4"],
    anchors: Float[Array, "n 4"],
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
    prob = jax.nn.sigmoid(true_logit)

    terms = {
        "cls_loss": cls_loss.sum(),
        "box_loss": (loss.box_weight * box_loss).sum(),
        "positive_score": masked(prob, positive).sum(),
        "positive_iou": iou.sum(),
    }
    per_positive, hardet_terms = positive_losses(
        cls_loss,
        box_loss,
        prob,
        iou,
        losses.sigmoid_entropy(true_logit, where=positive),
        cross_entropy=jax.nn.softplus(-true_logit),
        where=positive,
        loss=loss,
    )
    total = per_positive.sum() + masked(cls_loss, negative).sum()
    num_positive = positive.sum(dtype=jnp.float32)
    return LossSums(total, terms | hardet_terms, normalizer=num_positive, num_positive=num_positive)
