"""The losses that HarDet is compared with, of dense detectors with sigmoid heads.

`cls_losses` and `box_losses` are those of single anchors; `rival_sums` joins those in which a
sample's loss depends on others, of its object or of the batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from harmonic_jax import losses
from harmonic_jax.detectors.parts.matching import MatchConfig, dense_targets
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums, join_groups, masked
from harmonic_jax.losses import rivals
from harmonic_jax.ops.box_coder import decode_boxes, encode_boxes
from harmonic_jax.structures import Batch, Predictions

RIVALS: dict[str, LossConfig] = {
    "focal": LossConfig(hardet=False),
    "gfl": LossConfig(hardet=False, cls_loss="quality_focal", box_loss="giou", box_weight=2.0),
    "vfl": LossConfig(hardet=False, cls_loss="varifocal", box_loss="giou", box_weight=1.5),
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
      cls_logits: of one level.
      labels: 0..k-1 where positive, k elsewhere.
      target: what a positive's score should be, for the losses that ask for it.
      where: positives and negatives.
      loss: names the loss; for those that weigh it, the loss that is weighed.
    """
    match loss.cls_loss:
        case "quality_focal":
            return rivals.quality_focal_loss(
                cls_logits, labels, target, beta=loss.focal_gamma, where=where
            )
        case "varifocal":
            alpha, gamma = 1 - loss.focal_alpha, loss.focal_gamma
            return rivals.varifocal_loss(
                cls_logits, labels, target, alpha=alpha, gamma=gamma, where=where
            )
        case "task_aligned":
            return rivals.task_aligned_loss(
                cls_logits, labels, target, gamma=loss.focal_gamma, where=where
            )
        case _:
            return losses.sigmoid_focal_loss(
                cls_logits, labels, alpha=loss.focal_alpha, gamma=loss.focal_gamma, where=where
            )


def box_losses(
    deltas: Float[Array, "b n 4"],
    boxes: Float[Array, "b n 4"],
    anchors: Float[Array, "n 4"],
    target_boxes: Float[Array, "b n 4"],
    *,
    where: Bool[Array, "b n"],
    loss: LossConfig,
) -> Float[Array, "b n"]:
    """The localization loss of each anchor, without its weight.

    Args:
      deltas: what the network says.
      boxes: the same decoded, xyxy pixels.
      anchors: of this level.
      target_boxes: the matched objects.
      where: the positives.
      loss: names the loss; for those that weigh it, the loss that is weighed.
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


@dataclasses.dataclass(frozen=True)
class _Anchors:
    """What is known of the anchors of all levels, one after the other; arrays without classes,
    so joining the levels costs little."""

    is_positive: Bool[Array, "b n"]
    is_counted: Bool[Array, "b n"]
    labels: Int[Array, "b n"]
    objects: Int[Array, "b n"]  # 0..g-1 where positive
    deltas: Float[Array, "b n 4"]
    anchors: Float[Array, "n 4"]
    target_boxes: Float[Array, "b n 4"]
    boxes: Float[Array, "b n 4"]
    iou: Float[Array, "b n"]
    true_logit: Float[Array, "b n"]
    prob: Float[Array, "b n"]
    alignment: Float[Array, "b n"]  # TOOD's, of the positives


def rival_sums(
    predictions: Predictions,
    anchors: tuple[Float[Array, "_ 4"], ...],
    batch: Batch,
    loss: LossConfig,
    match: MatchConfig,
    batch_axis: str | None,
) -> LossSums:
    """The loss sums of a batch for the losses that look beyond one anchor.

    loss = classification / N_c + box_weight * boxes / N_b + correlation_weight * correlation

    N is the number of positives; for `task_aligned` the sum of the alignments. Weights are those
    of the whole batch, on every device along `batch_axis`, except for the ranks of `isr`, which
    each device gives to its own images. Of a batch that is processed in parts, each part has
    weights of its own.

    Args:
      predictions: raw outputs, [b, n_l, k] and [b, n_l, 4] a level.
      anchors: [n_l, 4] a level, xyxy pixels.
      batch: its objects, and which images are real.
      loss: which losses, and their constants.
      match: IoU thresholds of the assignment.
      batch_axis: as in `join_groups`.

    Returns:
      Sums over the batch, to be divided by the real images.
    """
    joined = _join(predictions, anchors, batch, match)
    groups = [
        _classification(predictions, joined, loss, batch_axis),
        _localization(joined, loss, batch_axis),
        _correlation_and_log(joined, loss, batch_axis),
    ]
    return join_groups(groups, batch.is_real, batch_axis=batch_axis)


def _join(
    predictions: Predictions,
    anchors: tuple[Float[Array, "_ 4"], ...],
    batch: Batch,
    match: MatchConfig,
) -> _Anchors:
    num_classes = predictions.cls_logits[0].shape[-1]
    truth = batch.ground_truth
    # The assignment of indices instead of labels tells which object an anchor belongs to.
    batch_size, num_objects = truth.labels.shape
    index = jnp.broadcast_to(jnp.arange(num_objects, dtype=jnp.int32), (batch_size, num_objects))
    targets = jax.vmap(
        lambda truth: dense_targets(anchors, truth, num_classes=num_classes, match=match)
    )(dataclasses.replace(truth, labels=index))

    def joined(field: str) -> Array:
        return jnp.concatenate([getattr(level, field) for level in targets], axis=1)

    is_positive = joined("is_positive") & batch.is_real[:, None]
    objects = joined("labels")
    labels = jnp.take_along_axis(truth.labels.astype(jnp.int32), objects, axis=1, mode="clip")
    labels = jnp.where(is_positive, labels, num_classes)
    deltas = masked(jnp.concatenate(predictions.deltas, axis=1), is_positive)
    all_anchors = jnp.concatenate(anchors)
    boxes = decode_boxes(deltas, jnp.broadcast_to(all_anchors, deltas.shape))
    iou = losses.aligned_iou(boxes, joined("boxes"), where=is_positive)
    true_logit = jnp.concatenate(
        [
            true_class_logit(logits, own)
            for logits, own in zip(predictions.cls_logits, _split(labels, predictions), strict=True)
        ],
        axis=1,
    )
    prob = jax.nn.sigmoid(true_logit)
    alignment = jax.vmap(
        lambda *arrays, where: rivals.task_alignment(*arrays, num_objects=num_objects, where=where)
    )(prob, iou, objects, where=is_positive)
    return _Anchors(
        is_positive=is_positive,
        is_counted=joined("is_counted") & batch.is_real[:, None],
        labels=labels,
        objects=objects,
        deltas=deltas,
        anchors=all_anchors,
        target_boxes=joined("boxes"),
        boxes=boxes,
        iou=iou,
        true_logit=true_logit,
        prob=prob,
        alignment=alignment,
    )


def _classification(
    predictions: Predictions, every: _Anchors, loss: LossConfig, batch_axis: str | None
) -> LossSums:
    positive, counted = every.is_positive, every.is_counted
    num_positive = positive.sum(dtype=jnp.float32)
    normalizer = num_positive
    target = every.alignment if loss.cls_loss == "task_aligned" else every.iou
    parts = (_split(values, predictions) for values in (every.labels, target, counted))
    cls_loss = jnp.concatenate(
        [
            cls_losses(logits, labels, aim, where=is_counted, loss=loss).sum(-1)
            for logits, labels, aim, is_counted in zip(predictions.cls_logits, *parts, strict=True)
        ],
        axis=1,
    )
    if loss.cls_loss == "task_aligned":
        normalizer = masked(every.alignment, positive).sum()
    elif loss.cls_loss == "isr":
        weighted = rivals.isr_loss(
            cls_loss,
            every.iou,
            every.labels,
            _distinct(every.objects),
            where=positive,
            axis_name=batch_axis,
        )
        cls_loss = jnp.where(positive, weighted, cls_loss)
    elif loss.cls_loss == "iou_balanced":
        own = _of_true_class(every.true_logit, loss)
        weighted = rivals.iou_balanced_cls_loss(
            own, every.iou, where=positive, axis_name=batch_axis
        )
        cls_loss = jnp.where(positive, cls_loss - own + weighted, cls_loss)
    total = cls_loss.sum()
    return LossSums(total, {"cls_loss": total}, normalizer, num_positive)


def _localization(every: _Anchors, loss: LossConfig, batch_axis: str | None) -> LossSums:
    positive = every.is_positive
    num_positive = positive.sum(dtype=jnp.float32)
    normalizer = num_positive
    box_loss = box_losses(
        every.deltas, every.boxes, every.anchors, every.target_boxes, where=positive, loss=loss
    )
    if loss.box_loss == "task_aligned":
        box_loss = every.alignment * box_loss
        normalizer = masked(every.alignment, positive).sum()
    elif loss.box_loss == "iou_balanced":
        box_loss = rivals.iou_balanced_loc_loss(box_loss, every.iou, where=positive)
    elif loss.box_loss == "carl":  # a third loss, beside the plain one
        box_loss += rivals.carl_loss(every.prob, box_loss, where=positive, axis_name=batch_axis)
    total = loss.box_weight * box_loss.sum()
    return LossSums(total, {"box_loss": total}, normalizer, num_positive)


def _correlation_and_log(every: _Anchors, loss: LossConfig, batch_axis: str | None) -> LossSums:
    positive = every.is_positive
    num_positive = positive.sum(dtype=jnp.float32)
    total = jnp.zeros((), jnp.float32)
    terms = {
        "positive_score": masked(every.prob, positive).sum(),
        "positive_iou": every.iou.sum(),
    }
    if loss.correlation != "none":
        value = rivals.correlation_loss(
            every.prob, every.iou, kind=loss.correlation, where=positive, axis_name=batch_axis
        )
        # The batch's number, known to every device: each adds its positives' share of it.
        total = loss.correlation_weight * value * num_positive
        terms["correlation_loss"] = value * num_positive
    return LossSums(total, terms, num_positive, num_positive)


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


def _split(values: Shaped[Array, "b n"], predictions: Predictions) -> list[Array]:
    """[b, n_l] of each level."""
    ends = np.cumsum([level.shape[1] for level in predictions.cls_logits])
    return jnp.split(values, ends[:-1].tolist(), axis=1)
