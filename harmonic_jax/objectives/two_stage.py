"""The objectives of two-stage detectors, from samples: the RPN, and the RoI head with HarDet."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.assign.sampled import AnchorSamples, RoISamples
from harmonic_jax.config import LossConfig
from harmonic_jax.objectives.positives import positive_losses
from harmonic_jax.objectives.sums import LossSums, masked
from harmonic_jax.ops.box_coder import Weights, decode_boxes, encode_boxes
from harmonic_jax.structures import Predictions


def rpn_objective(
    predictions: Predictions,
    samples: AnchorSamples,
    is_real: Bool[Array, " b"],
    *,
    smooth_l1_beta: float,
) -> LossSums:
    """Binary cross entropy of the sampled anchors and SmoothL1 of the positive ones.

    Both are divided by the number of sampled anchors.

    Args:
      predictions: objectness logits [b, n_l, 1] and deltas [b, n_l, 4] a level.
      samples: [b, s], of the same anchors.
      is_real: [b], False for slots that only fill the batch.
      smooth_l1_beta: of SmoothL1, >= 0.

    Returns:
      Sums over the batch, with the terms `rpn_cls_loss` and `rpn_box_loss`.

    Source: Ren et al., Faster R-CNN, 2015, equation 1 (its lambda balances the two numbers of
      anchors; divided by the same number, both losses weigh 1).
    """
    logits = _take(predictions.cls_logits, samples)  # [b, s, 1]
    deltas = _take(predictions.deltas, samples)
    counted = samples.valid & is_real[:, None]
    positive = samples.is_positive & counted
    # One class, 0: an anchor that is not positive has a label that is none.
    labels = jnp.where(samples.is_positive, 0, 1)
    cls_loss = losses.sigmoid_cross_entropy(logits, labels, where=counted).sum()
    target_deltas = encode_boxes(samples.targets, samples.anchors)
    box_loss = losses.smooth_l1_loss(
        deltas, target_deltas, beta=smooth_l1_beta, where=positive
    ).sum()
    return LossSums(
        cls_loss + box_loss,
        {"rpn_cls_loss": cls_loss, "rpn_box_loss": box_loss},
        normalizer=counted.sum(dtype=jnp.float32),
        num_positive=positive.sum(dtype=jnp.float32),
    )


def roi_objective(
    cls_logits: Float[Array, "b s c"],
    deltas: Float[Array, "b s c 4"],
    samples: RoISamples,
    is_real: Bool[Array, " b"],
    *,
    loss: LossConfig,
    delta_weights: Weights,
) -> tuple[LossSums, LossSums]:
    """Softmax cross entropy and SmoothL1 of the true class's box, or HarDet, of sampled RoIs.

    HarDet joins the two losses of positives; negatives keep their cross entropy. Its probability
    is the softmax's of the true class, its entropy runs over all c = k + 1 classes, background
    included. In either case the sum is divided by the number of sampled RoIs, positive and
    negative, so that the balance with the RPN is the baseline's.

    Args:
      cls_logits: background last.
      deltas: for each class.
      samples: [b, s].
      is_real: [b], False for slots that only fill the batch.
      loss: which losses, and their constants.
      delta_weights: factors of the regression targets.

    Returns:
      Sums over the batch, to be divided by the number of sampled RoIs; and means for the log,
      `positive_score` and `positive_iou`, to be divided by the number of positive ones. With
      HarDet the log has `hiou_loss` and `tc_loss` too.
    """
    counted = samples.valid & is_real[:, None]
    positive = samples.is_positive & counted
    cls_loss = losses.softmax_cross_entropy(cls_logits, samples.labels, where=counted)
    own = masked(_of_class(deltas, samples), positive)
    target_deltas = encode_boxes(samples.targets, samples.boxes, weights=delta_weights)
    box_loss = losses.smooth_l1_loss(own, target_deltas, beta=loss.smooth_l1_beta, where=positive)
    boxes = decode_boxes(own, samples.boxes, weights=delta_weights)
    iou = losses.aligned_iou(boxes, samples.targets, where=positive)
    prob = jnp.exp(-cls_loss)  # of the true class

    terms = {"cls_loss": cls_loss.sum(), "box_loss": (loss.box_weight * box_loss).sum()}
    log = {"positive_score": masked(prob, positive).sum(), "positive_iou": iou.sum()}
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
    total = per_positive.sum() + masked(cls_loss, counted & ~positive).sum()
    num_positive = positive.sum(dtype=jnp.float32)
    num_counted = counted.sum(dtype=jnp.float32)
    nothing = jnp.zeros((), jnp.float32)
    return (
        LossSums(total, terms, normalizer=num_counted, num_positive=num_positive),
        LossSums(nothing, log | hardet_terms, normalizer=num_positive, num_positive=num_positive),
    )


def _take(levels: tuple[Float[Array, "b n _"], ...], samples: AnchorSamples) -> Array:
    """Rows of the sampled anchors, [b, s, _]."""
    rows = samples.rows[..., None]
    return jnp.take_along_axis(jnp.concatenate(levels, axis=1), rows, axis=1)


def _of_class(deltas: Float[Array, "b s c 4"], samples: RoISamples) -> Float[Array, "b s 4"]:
    """The deltas of each RoI's class."""
    return jnp.take_along_axis(deltas, samples.labels[..., None, None], axis=2)[:, :, 0]
