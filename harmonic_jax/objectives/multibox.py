"""The objective of softmax heads on default boxes, SSD's: hard negatives, and HarDet."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.assign.default_boxes import BOX_WEIGHTS
from harmonic_jax.assign.multibox_matcher import multibox_targets
from harmonic_jax.config import LossConfig, MultiBoxMatchConfig
from harmonic_jax.objectives.positives import positive_losses
from harmonic_jax.objectives.sums import LossSums, masked
from harmonic_jax.ops.box_coder import decode_boxes, encode_boxes
from harmonic_jax.structures import GroundTruth, Predictions, Targets


def multibox_objective(
    predictions: Predictions,
    anchors: tuple[Float[Array, "n 4"], ...],
    ground_truth: GroundTruth,
    is_real: Bool[Array, " b"],
    *,
    loss: LossConfig,
    match: MultiBoxMatchConfig,
) -> LossSums:
    """Assigns the ground truth to default boxes and sums the losses of a batch.

    Positives contribute L_i of the HarDet formula (or cross entropy + SmoothL1 for the baseline).
    Of the negatives of each image, those with the highest cross entropy contribute it,
    `match.negative_ratio` for each positive: none in an image without objects. Images that are
    not real contribute nothing.

    Args:
      predictions: raw outputs, [b, n_l, k + 1] (background last) and [b, n_l, 4] a level.
      anchors: [n_l, 4] a level, xyxy pixels.
      ground_truth: [b, g] padded objects.
      is_real: [b], False for slots that only fill the batch.
      loss: which losses, and their constants.
      match: thresholds of the assignment.

    Returns:
      Sums over the batch, to be divided by the positives; under jit with a sharded batch they
      are the global sums.

    Source: Liu et al., SSD, 2016, section 2.2.
    """
    all_anchors = jnp.concatenate(anchors)
    num_classes = predictions.cls_logits[0].shape[-1] - 1
    targets = jax.vmap(
        lambda truth: multibox_targets(
            all_anchors, truth, num_classes=num_classes, positive_iou=match.positive_iou
        )
    )(ground_truth)
    cls_logits = jnp.concatenate(predictions.cls_logits, axis=1)
    deltas = jnp.concatenate(predictions.deltas, axis=1)
    return multibox_sums(
        cls_logits,
        deltas,
        jnp.broadcast_to(all_anchors, deltas.shape),
        dataclasses.replace(targets, is_counted=targets.is_counted & is_real[:, None]),
        loss=loss,
        negative_ratio=match.negative_ratio,
    )


def multibox_sums(
    cls_logits: Float[Array, "b n c"],
    deltas: Float[Array, "b n 4"],
    anchors: Float[Array, "b n 4"],
    targets: Targets,
    *,
    loss: LossConfig,
    negative_ratio: float,
) -> LossSums:
    """The sums of `multibox_objective` for boxes that have their targets.

    Args:
      cls_logits: of all classes, background last.
      deltas: relative to `anchors`.
      anchors: xyxy pixels, of each image.
      targets: a box that is not counted is neither positive nor negative.
      loss: see `multibox_objective`.
      negative_ratio: hard negatives a positive, in each image.
    """
    counted = targets.is_counted
    positive = targets.is_positive & counted
    cls_loss = losses.softmax_cross_entropy(cls_logits, targets.labels, where=counted)
    negative = hardest(cls_loss, counted & ~positive, positive.sum(-1), ratio=negative_ratio)

    deltas = masked(deltas, positive)
    box_loss = losses.smooth_l1_loss(
        deltas,
        encode_boxes(targets.boxes, anchors, weights=BOX_WEIGHTS),
        beta=loss.smooth_l1_beta,
        where=positive,
    )
    boxes = decode_boxes(deltas, anchors, weights=BOX_WEIGHTS)
    iou = losses.aligned_iou(boxes, targets.boxes, where=positive)
    prob = jnp.exp(-cls_loss)
    terms = {
        "cls_loss": masked(cls_loss, positive | negative).sum(),
        "box_loss": (loss.box_weight * box_loss).sum(),
        "positive_score": masked(prob, positive).sum(),
        "positive_iou": iou.sum(),
    }
    per_positive, hardet_terms = positive_losses(
        cls_loss,
        box_loss,
        prob,
        iou,
        losses.softmax_entropy(cls_logits, where=positive),
        cross_entropy=cls_loss,  # of a softmax head they are one
        where=positive,
        loss=loss,
    )
    total = per_positive.sum() + masked(cls_loss, negative).sum()
    num_positive = positive.sum(dtype=jnp.float32)
    return LossSums(total, terms | hardet_terms, normalizer=num_positive, num_positive=num_positive)


def hardest(
    loss: Float[Array, "b n"],
    is_candidate: Bool[Array, "b n"],
    num_positive: Array,
    *,
    ratio: float,
) -> Bool[Array, "b n"]:
    """The candidates of each image with the highest losses, `ratio` for each of its positives.

    Args:
      loss: [b, n]; a NaN is the highest, so that it shows in the sum.
      is_candidate: [b, n].
      num_positive: [b] int.
      ratio: the number is rounded down; where there are fewer candidates all are taken.

    Returns:
      [b, n], exactly as many as asked: among equal losses the first ones are taken.
    """
    loss = jax.lax.stop_gradient(jnp.where(jnp.isnan(loss), jnp.inf, loss))
    loss = jnp.where(is_candidate, loss, -jnp.inf)
    wanted = jnp.minimum(jnp.floor(ratio * num_positive), is_candidate.sum(-1)).astype(jnp.int32)
    ranked = jnp.sort(loss, axis=-1, descending=True)
    last = jnp.take_along_axis(ranked, jnp.maximum(wanted - 1, 0)[:, None], axis=-1)
    is_above = loss > last
    is_equal = (loss == last) & is_candidate
    place = is_above.sum(-1, keepdims=True) + jnp.cumsum(is_equal, axis=-1)
    is_taken = is_above | (is_equal & (place <= wanted[:, None]))
    return is_taken & (wanted > 0)[:, None]
