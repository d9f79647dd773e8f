"""What a positive sample contributes, in every detector: the baseline's losses, or HarDet."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.config import LossConfig


def positive_losses(
    cls_loss: Float[Array, "*n"],
    box_loss: Float[Array, "*n"],
    prob: Float[Array, "*n"],
    iou: Float[Array, "*n"],
    entropy: Float[Array, "*n"],
    *,
    cross_entropy: Float[Array, "*n"],
    where: Bool[Array, "*n"],
    loss: LossConfig,
) -> tuple[Float[Array, "*n"], dict[str, Float[Array, ""]]]:
    """cls_loss + box_weight * box_loss, or with `loss.hardet` the HarDet loss of each sample.

    Args:
      cls_loss: classification loss, as the head is trained.
      box_loss: localization loss, not weighted: HarDet's factor comes from it.
      prob: predicted probability of the true class.
      iou: of the decoded box with its object.
      entropy: of the class distribution.
      cross_entropy: of the true class; what `loss.factor_source = "ce"` asks for.
      where: the positive samples.
      loss: which losses, and their constants.

    Returns:
      The loss of each sample, exactly 0 where it is not positive; and, with HarDet, the sums
      `hiou_loss` and `tc_loss` for the log.
    """
    if not loss.hardet:
        return jnp.where(where, cls_loss + loss.box_weight * box_loss, 0.0), {}
    total = losses.hardet_loss(
        cls_loss,
        box_loss,
        prob,
        iou,
        entropy,
        alpha=loss.alpha,
        gamma=loss.gamma,
        margin=loss.margin,
        box_weight=loss.box_weight,
        factor_gradient=loss.factor_gradient,
        factor_source=loss.factor_source,
        cross_entropy=cross_entropy if loss.factor_source == "ce" else None,
        where=where,
    )
    # Evaluated again for the log only: the compiler shares the work with hardet_loss.
    hiou = losses.harmonic_iou_loss(iou, gamma=loss.gamma, where=where)
    tc = losses.task_contrastive_loss(prob, iou, entropy, margin=loss.margin, where=where)
    return total, {"hiou_loss": hiou.sum(), "tc_loss": tc.sum()}
