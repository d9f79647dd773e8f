"""Losses weighted by the IoU that a sample's box reaches (Wu et al. 2020)."""

import jax
from jax import lax
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_number, as_samples, keep
from harmonic_jax.losses.quality._batch import equal_sum_weights


def iou_balanced_cls_loss(
    cls_loss: ArrayLike,
    iou: ArrayLike,
    *,
    exponent: float = 1.5,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Classification losses of positives, weighted by the IoU of their boxes.

    `w_i C_i`, `w_i = iou_i**exponent * sum_j C_j / sum_j(iou_j**exponent C_j)`, C = cls_loss

    The sum over all samples is that of the plain losses; only its distribution changes. The
    weights are constants for the gradient. Where no box overlaps its object, all weights are 0.

    The weights depend on the whole batch: the samples kept by `where`, on every device along
    `axis_name`.

    Args:
      cls_loss: [*b] classification loss of each positive, >= 0. In its source that of the true
        class of a sigmoid head; the other classes' keep weight 1.
      iou: [*b] of the decoded box with its object, in [0, 1].
      exponent: the source's eta, >= 0; 0 leaves the loss as it is.
      where: [*b] bool; value and gradient are exactly 0 where it is False.
      axis_name: inside `jax.shard_map` or `jax.vmap`, the axis whose rows are one batch.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises:
      TypeError: an array is not floating point, `where` not bool, or `exponent` not a number.
      ValueError: the shapes differ, or `exponent` is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import iou_balanced_cls_loss
      >>> loss = iou_balanced_cls_loss(jnp.array([1.0, 1.0]), jnp.array([0.9, 0.3]), exponent=1.0)
      >>> [round(float(value), 4) for value in loss]  # 2 * 0.9 / 1.2 and 2 * 0.3 / 1.2
      [1.5, 0.5]

    Source: Wu et al., "IoU-balanced loss functions for single-stage object detection", Pattern
      Recognition Letters 2022, arXiv:1908.05641.
    """
    (cls_loss, iou), mask = as_samples(where, cls_loss=cls_loss, iou=iou)
    exponent = as_number("exponent", exponent, 0.0)
    weights = equal_sum_weights(keep(mask, iou**exponent), cls_loss, axis_name)
    return keep(mask, weights * cls_loss)


def iou_balanced_loc_loss(
    loc_loss: ArrayLike,
    iou: ArrayLike,
    *,
    exponent: float = 1.5,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Localization loss of each sample, weighted by the IoU of its box.

    `iou**exponent * loc_loss`: boxes that are good already are trained, outliers are not. The
    weight is a constant for the gradient. (The source has one more factor for the balance with
    the classification loss; multiply by it.)

    Args:
      loc_loss: [*b] localization loss of each positive, >= 0: SmoothL1 in the source.
      iou: [*b] of the decoded box with its object, in [0, 1].
      exponent: the source's lambda, >= 0; 0 leaves the loss as it is.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises:
      TypeError: an array is not floating point, `where` not bool, or `exponent` not a number.
      ValueError: the shapes differ, or `exponent` is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import iou_balanced_loc_loss
      >>> loss = iou_balanced_loc_loss(jnp.array([2.0, 2.0]), jnp.array([1.0, 0.25]))
      >>> [float(value) for value in loss]  # 0.25**1.5 = 0.125
      [2.0, 0.25]

    Source: Wu et al., arXiv:1908.05641.
    """
    (loc_loss, iou), mask = as_samples(where, loc_loss=loc_loss, iou=iou)
    exponent = as_number("exponent", exponent, 0.0)
    return keep(mask, lax.stop_gradient(iou**exponent) * loc_loss)
