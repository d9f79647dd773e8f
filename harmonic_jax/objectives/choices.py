"""The losses of single anchors that a config names, for one level of a dense detector."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from harmonic_jax import losses
from harmonic_jax.config import LossConfig
from harmonic_jax.losses import rivals
from harmonic_jax.ops.box_coder import encode_boxes


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
