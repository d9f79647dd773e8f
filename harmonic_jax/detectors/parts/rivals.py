"""The losses that HarDet is compared with, of dense detectors with sigmoid heads.

`cls_losses` and `box_losses` are those of single anchors; `rival_sums` joins those in which a
sample's loss depends on others, of its object or of the batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from harmonic_jax import losses
from harmonic_jax.detectors.parts.matching import MatchConfig, dense_targets
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums, join_groups, masked
from harmonic_jax.losses import rivals
from harmonic_jax.ops.box_coder import decode_boxes, encode_boxes
from harmonic_jax.ops.boxes import AnyArray
from harmonic_jax.structures import Batch, Predictions

RIVALS: dict[str, LossConfig] = {
    "focal": LossConfig(hardet=False),
    "gfl": LossConfig(hardet=False, cls_loss="quality_focal", box_loss="giou", box_weight=2.0),
    "vfl": LossConfig(hardet=False, cls_loss="varifocal", box_loss="giou", box_weight=1.5),
    "ia_bce": LossConfig(hardet=False, cls_loss="ia_bce", box_loss="giou", box_weight=2.0),
    "mal": LossConfig(
        hardet=False, cls_loss="mal", focal_gamma=1.5, box_loss="giou", box_weight=2.0
    ),
    "position": LossConfig(hardet=False, cls_loss="position", box_loss="giou", box_weight=2.0),
    "tood": LossConfig(
        hardet=False, cls_loss="task_aligned", box_loss="task_aligned", box_weight=2.0
    ),
    "iou_balanced": LossConfig(hardet=False, cls_loss="iou_balanced", box_loss="iou_balanced"),
    "pisa": LossConfig(hardet=False, cls_loss="isr", box_loss="carl"),
    "correlation": LossConfig(hardet=False, correlation="concordance"),
    "giou": LossConfig(hardet=False, box_loss="giou", box_weight=2.0),
    "diou": LossConfig(hardet=False, box_loss="diou", box_weight=2.0),
    "ciou": LossConfig(hardet=False, box_loss="ciou", box_weight=2.0),
    "eiou": LossConfig(hardet=False, box_loss="eiou", box_weight=2.0),
}
"""For a config file: `loss=RIVALS["gfl"]`. Of each method the losses only: its own assignment of
anchors, heads and schedules are left out, so that the losses alone are compared. The weights of
the box losses are those of the methods' published configurations where there is one, and 2 for
the others of the IoU family; none was tuned here."""


def cls_losses(
    cls_logits: Float[Array, "b n k"],
    labels: Int[Array, "b n"],
    target: Float[Array, "b n"],
    *,
    where: Bool[Array, "b n"],
    loss: LossConfig,
) -> Float[Array, "b n k"]:
    """The classification loss of each element.

    Args:
      labels: 0..k-1 where positive, k elsewhere.
      target: what a positive's score should be, for the losses that ask for it.
      where: positives and negatives.
      loss: names the loss; for those that weigh it, the loss that is weighed.
    """
    soft = (cls_logits, labels, target)
    focal: dict[str, Any] = {"gamma": loss.focal_gamma, "where": where}
    match loss.cls_loss:
        case "quality_focal" | "task_aligned":
            return rivals.quality_focal_loss(*soft, beta=loss.focal_gamma, where=where)
        case "position":
            return rivals.position_supervised_loss(*soft, **focal)
        case "varifocal":
            return rivals.varifocal_loss(*soft, alpha=1 - loss.focal_alpha, **focal)
        case "ia_bce":
            return rivals.ia_bce_loss(*soft, **focal)
        case "mal":
            return rivals.matchability_aware_loss(*soft, **focal)
        case _:
            return losses.sigmoid_focal_loss(cls_logits, labels, alpha=loss.focal_alpha, **focal)


def box_losses(
    deltas: Float[Array, "b n 4"],
    boxes: Float[Array, "b n 4"],
    anchors: Float[AnyArray, "n 4"],
    target_boxes: Float[Array, "b n 4"],
    *,
    where: Bool[Array, "b n"],
    loss: LossConfig,
) -> Float[Array, "b n"]:
    """The localization loss of each anchor, without its weight.

    `boxes` are the decoded `deltas`, xyxy pixels; `where` marks the positives.
    """
    match loss.box_loss:
        case "giou" | "task_aligned":
            return losses.giou_loss(boxes, target_boxes, where=where)
        case "diou":
            return losses.diou_loss(boxes, target_boxes, where=where)
        case "ciou":
            return losses.ciou_loss(boxes, target_boxes, where=where)
        case "eiou":
            return losses.eiou_loss(boxes, target_boxes, where=where)
    target_deltas = encode_boxes(target_boxes, jnp.broadcast_to(anchors, target_boxes.shape))
    return losses.smooth_l1_loss(deltas, target_deltas, beta=loss.smooth_l1_beta, where=where)


def true_class_logit(cls_logits: Float[Array, "b n k"], labels: Array) -> Float[Array, "b n"]:
    """The logit of each anchor's class; 0 for background. A masked sum: its gradient is fused
    with the focal loss's, where that of a gather would scatter into a second copy."""
    classes = jnp.arange(cls_logits.shape[-1], dtype=labels.dtype)
    return jnp.where(labels[..., None] == classes[None, None], cls_logits, 0.0).sum(-1)


def rival_sums(
    predictions: Predictions,
    anchors: Sequence[Float[AnyArray, "_ 4"]],
    batch: Batch,
    loss: LossConfig,
    match: MatchConfig,
    batch_axis: str | None,
) -> LossSums:
    """The loss sums of a batch for the losses that look beyond one anchor.

    loss = cls_weight * classification / N_c + box_weight * boxes / N_b
           + correlation_weight * correlation

    N is the number of positives; for `task_aligned` the sum of the alignments. Weights are those
    of the whole batch, on every device along `batch_axis`, except for the ranks of `isr`, which
    each device gives to its own images. Of a batch that is processed in parts, each part has
    weights of its own.

    Predictions are raw, [b, n_l, k] and [b, n_l, 4] a level; anchors are xyxy pixels. The sums are
    to be divided by the real images.
    """
    num_classes = predictions.cls_logits[0].shape[-1]
    truth, is_real = batch.ground_truth, batch.is_real[:, None]
    # The assignment of indices instead of labels tells which object an anchor belongs to.
    num_objects = truth.labels.shape[1]
    index = jnp.broadcast_to(jnp.arange(num_objects, dtype=jnp.int32), truth.labels.shape)
    levels = jax.vmap(
        lambda truth: dense_targets(anchors, truth, num_classes=num_classes, match=match)
    )(dataclasses.replace(truth, labels=index))
    # Arrays without classes: joining the levels costs little.
    targets = jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=1), *levels)
    positive, counted, objects = targets.is_positive & is_real, targets.is_counted, targets.labels
    labels = jnp.take_along_axis(truth.labels.astype(jnp.int32), objects, axis=1, mode="clip")
    labels = jnp.where(positive, labels, num_classes)
    ends = np.cumsum([level.shape[0] for level in anchors])[:-1].tolist()

    def of_levels(function: Callable[..., Array], *values: Shaped[Array, "b n"]) -> Array:
        """[b n]: a function of the logits of each level, and of its part of the values."""
        parts = (jnp.split(rows, ends, axis=1) for rows in values)
        each = zip(predictions.cls_logits, *parts, strict=True)
        return jnp.concatenate([function(*level) for level in each], axis=1)

    deltas = masked(jnp.concatenate(predictions.deltas, axis=1), positive)
    all_anchors = jnp.concatenate(anchors)
    boxes = decode_boxes(deltas, jnp.broadcast_to(all_anchors, deltas.shape))
    iou = losses.aligned_iou(boxes, targets.boxes, where=positive)
    true_logit = of_levels(true_class_logit, labels)
    prob = jax.nn.sigmoid(true_logit)
    alignment = jax.vmap(
        lambda *arrays, where: rivals.task_alignment(*arrays, num_objects=num_objects, where=where)
    )(prob, iou, objects, where=positive)

    def cls_sums(logits: Array, labels: Array, target: Array, where: Array) -> Array:
        return cls_losses(logits, labels, target, where=where, loss=loss).sum(-1)

    target = alignment if loss.cls_loss == "task_aligned" else iou
    if loss.cls_loss == "position":
        target = iou**2 / jnp.maximum(iou.max(axis=1, keepdims=True), 1e-12)
    cls_loss = of_levels(cls_sums, labels, target, counted & is_real)
    weigh: dict[str, Any] = {"where": positive, "axis_name": batch_axis}
    match loss.cls_loss:
        case "isr":
            weighted = rivals.isr_loss(cls_loss, iou, labels, _distinct(objects), **weigh)
            cls_loss = jnp.where(positive, weighted, cls_loss)
        case "iou_balanced":
            own = _of_true_class(true_logit, loss)
            weighted = rivals.iou_balanced_cls_loss(own, iou, **weigh)
            cls_loss = jnp.where(positive, cls_loss - own + weighted, cls_loss)

    box_loss = box_losses(deltas, boxes, all_anchors, targets.boxes, where=positive, loss=loss)
    match loss.box_loss:
        case "task_aligned":
            box_loss = alignment * box_loss
        case "iou_balanced":
            box_loss = rivals.iou_balanced_loc_loss(box_loss, iou, where=positive)
        case "carl":  # a third loss, beside the plain one
            box_loss += rivals.carl_loss(prob, box_loss, **weigh)

    num_positive = positive.sum(dtype=jnp.float32)
    log = {"positive_score": masked(prob, positive).sum(), "positive_iou": iou.sum()}
    correlation = jnp.zeros((), jnp.float32)
    if loss.correlation != "none":
        value = rivals.correlation_loss(prob, iou, kind=loss.correlation, **weigh)
        # The batch's number, known to every device: each adds its positives' share of it.
        correlation = loss.correlation_weight * value * num_positive
        log["correlation_loss"] = value * num_positive

    num_aligned = masked(alignment, positive).sum()
    cls_normalizer = num_aligned if loss.cls_loss == "task_aligned" else num_positive
    box_normalizer = num_aligned if loss.box_loss == "task_aligned" else num_positive
    cls_total, box_total = loss.cls_weight * cls_loss.sum(), loss.box_weight * box_loss.sum()
    groups = [
        LossSums(cls_total, {"cls_loss": cls_total}, cls_normalizer, num_positive),
        LossSums(box_total, {"box_loss": box_total}, box_normalizer, num_positive),
        LossSums(correlation, log, num_positive, num_positive),
    ]
    return join_groups(groups, batch.is_real, batch_axis=batch_axis)


def _of_true_class(true_logit: Float[Array, "b n"], loss: LossConfig) -> Float[Array, "b n"]:
    """The focal loss of the one element that is the anchor's class."""
    labels = jnp.zeros(true_logit.shape, jnp.int32)
    return losses.sigmoid_focal_loss(
        true_logit[..., None], labels, alpha=loss.focal_alpha, gamma=loss.focal_gamma
    )[..., 0]


def _distinct(objects: Int[Array, "b n"]) -> Int[Array, "b n"]:
    """The objects of different images with different numbers."""
    images = jnp.arange(objects.shape[0], dtype=objects.dtype)[:, None]
    return objects + images * (objects.max() + 1)
