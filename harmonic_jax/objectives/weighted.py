"""Dense objectives in which a sample's loss depends on others: of its object, or of the batch."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from harmonic_jax import losses
from harmonic_jax.config import LossConfig
from harmonic_jax.losses import rivals
from harmonic_jax.objectives.choices import (
    box_losses,
    cls_losses,
    true_class_logit,
)
from harmonic_jax.objectives.sums import LossSums, join_groups, masked
from harmonic_jax.ops.box_coder import decode_boxes
from harmonic_jax.structures import GroundTruth, Predictions, Targets


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


def weighted_objective(
    predictions: Predictions,
    anchors: tuple[Float[Array, "n 4"], ...],
    ground_truth: GroundTruth,
    is_real: Bool[Array, " b"],
    assign: Callable[[GroundTruth], tuple[Targets, ...]],
    *,
    loss: LossConfig,
    batch_axis: str | None,
) -> LossSums:
    """The sums of `dense_objective` for the losses that look beyond one anchor.

    loss = classification / N_c + box_weight * boxes / N_b + correlation_weight * correlation

    N is the number of positives; for `task_aligned` the sum of the alignments. Weights are those
    of the whole batch, on every device along `batch_axis`, except for the ranks of `isr`, which
    each device gives to its own images. Of a batch that is processed in parts, each part has
    weights of its own.

    Args:
      assign: gives an image's targets, one entry a level.
      predictions, anchors, ground_truth, is_real, loss, batch_axis: as in `dense_objective`.

    Returns:
      Sums over the batch, to be divided by the real images.
    """
    # The assignment of indices instead of labels tells which object an anchor belongs to.
    batch, num_objects = ground_truth.labels.shape
    index = jnp.broadcast_to(jnp.arange(num_objects, dtype=jnp.int32), (batch, num_objects))
    targets = jax.vmap(assign)(dataclasses.replace(ground_truth, labels=index))
    every = _join(predictions, anchors, targets, ground_truth, is_real)
    alignment = jax.vmap(
        lambda *arrays, where: rivals.task_alignment(*arrays, num_objects=num_objects, where=where)
    )(every.prob, every.iou, every.objects, where=every.is_positive)

    cls_group = _classification(predictions, every, alignment, loss, batch_axis)
    box_group = _localization(every, alignment, loss, batch_axis)
    log_group = _correlation_and_log(every, loss, batch_axis)
    return join_groups([cls_group, box_group, log_group], is_real, batch_axis=batch_axis)


def _join(
    predictions: Predictions,
    anchors: tuple[Float[Array, "n 4"], ...],
    targets: tuple[Targets, ...],
    truth: GroundTruth,
    is_real: Bool[Array, " b"],
) -> _Anchors:
    num_classes = predictions.cls_logits[0].shape[-1]

    def joined(field: str) -> Array:
        return jnp.concatenate([getattr(level, field) for level in targets], axis=1)

    is_positive = joined("is_positive") & is_real[:, None]
    objects = joined("labels")
    labels = jnp.take_along_axis(truth.labels.astype(jnp.int32), objects, axis=1, mode="clip")
    labels = jnp.where(is_positive, labels, num_classes)
    deltas = masked(jnp.concatenate(predictions.deltas, axis=1), is_positive)
    all_anchors = jnp.concatenate(anchors)
    boxes = decode_boxes(deltas, jnp.broadcast_to(all_anchors, deltas.shape))
    sizes = [level.shape[1] for level in predictions.cls_logits]
    true_logit = jnp.concatenate(
        [
            true_class_logit(logits, own)
            for logits, own in zip(predictions.cls_logits, _split(labels, sizes), strict=True)
        ],
        axis=1,
    )
    return _Anchors(
        is_positive,
        joined("is_counted") & is_real[:, None],
        labels,
        objects,
        deltas,
        all_anchors,
        joined("boxes"),
        boxes,
        losses.aligned_iou(boxes, joined("boxes"), where=is_positive),
        true_logit,
        jax.nn.sigmoid(true_logit),
    )


def _classification(
    predictions: Predictions,
    every: _Anchors,
    alignment: Float[Array, "b n"],
    loss: LossConfig,
    batch_axis: str | None,
) -> LossSums:
    positive, counted = every.is_positive, every.is_counted
    num_positive = positive.sum(dtype=jnp.float32)
    normalizer = num_positive
    target = alignment if loss.cls_loss == "task_aligned" else every.iou
    sizes = [level.shape[1] for level in predictions.cls_logits]
    parts = (_split(values, sizes) for values in (every.labels, target, counted))
    cls_loss = jnp.concatenate(
        [
            cls_losses(logits, labels, aim, where=is_counted, loss=loss).sum(-1)
            for logits, labels, aim, is_counted in zip(predictions.cls_logits, *parts, strict=True)
        ],
        axis=1,
    )
    if loss.cls_loss == "task_aligned":
        normalizer = masked(alignment, positive).sum()
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


def _localization(
    every: _Anchors,
    alignment: Float[Array, "b n"],
    loss: LossConfig,
    batch_axis: str | None,
) -> LossSums:
    positive = every.is_positive
    num_positive = positive.sum(dtype=jnp.float32)
    normalizer = num_positive
    box_loss = box_losses(
        every.deltas, every.boxes, every.anchors, every.target_boxes, where=positive, loss=loss
    )
    if loss.box_loss == "task_aligned":
        box_loss = alignment * box_loss
        normalizer = masked(alignment, positive).sum()
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


def _split(values: Float[Array, "b n"], sizes: list[int]) -> list[Array]:
    """[b, n_l] of each level."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(values, ends, axis=1)
