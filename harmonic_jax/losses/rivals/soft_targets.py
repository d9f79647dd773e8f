"""Classification towards a quality instead of 1, as the IoU of the box or the score with it."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import (
    admit,
    as_classes,
    as_floats,
    as_labels,
    as_mask,
    as_number,
    keep,
)


def quality_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    quality: ArrayLike,
    *,
    beta: float = 2.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Focal loss whose target is the quality of the box, a number in [0, 1] instead of 1.

    `-|y - p|**beta * (y log p + (1 - y) log(1 - p))`, `p = sigmoid(logits)`; y is `quality` for
    the class of the label and 0 for all others.

    The gradient flows to the logits only, through both factors; at p = y it is 0. With the
    `task_alignment` as quality and gamma for beta it is TOOD's classification loss.

    Args:
      logits: [*b, k] of the foreground classes.
      labels: [*b] integers; 0..k-1 is a class, anything else is background (no class is true).
      quality: [*b] in [0, 1], as a rule the IoU of the decoded box with its object; a constant
        for the gradient. It is not read where the label is background.
      beta: focusing exponent, >= 0; 0 is the cross entropy with a soft target.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b, k] loss of each element, >= 0, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> loss = quality_focal_loss(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([0.9]))
      >>> [round(float(value), 4) for value in loss[0]]  # 0.4**2 log 2 and 0.5**2 log 2
      [0.1109, 0.1733]

    Source: Li et al., "Generalized focal loss", NeurIPS 2020, arXiv:2006.04388.
    """
    beta = as_number("beta", beta, 0.0)
    (x, y), is_label, mask = as_classes(where, logits, labels, quality=quality)
    y = _target(y, is_label)
    if beta == 0.0:
        return keep(mask, _cross_entropy(x, y))
    distance = jnp.abs(y - jax.nn.sigmoid(x))
    # For beta < 1 the slope at 0 is infinite: the power sees 1 there, and 0 is put in after.
    is_apart = distance > 0
    power = jnp.where(is_apart, jnp.where(is_apart, distance, 1.0) ** beta, 0.0)
    return keep(mask, power * _cross_entropy(x, y))


def task_alignment(
    prob: ArrayLike,
    iou: ArrayLike,
    objects: ArrayLike,
    *,
    num_objects: int,
    alpha: float = 1.0,
    beta: float = 6.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """How well score and box of a sample agree, relative to the others of the same object.

    `t = prob**alpha * iou**beta`, then scaled for each object, so that its largest t becomes the
    largest IoU among its samples.

    What TOOD trains on: `quality_focal_loss` with this as quality, and this times `giou_loss`, both
    sums divided by that of the alignments. The reference implementation adds 1e-7 to the largest t,
    which lets targets vanish while all t are small; here the scale is exact. Nothing flows back:
    the result is a target.

    Args:
      prob: [n] score of the true class of each sample, in [0, 1]; `jax.vmap` over images.
      iou: [n] of the decoded box with its object, in [0, 1].
      objects: [n] integers in 0..num_objects-1, the object that each sample belongs to. Any other
        number leaves the sample out, with alignment 0.
      num_objects: how many there can be; static.
      alpha: exponent of the score, >= 0.
      beta: exponent of the IoU, >= 0.
      where: [n] bool; the other samples have alignment 0 and do not enter the largest values.

    Returns:
      [n] in [0, 1], float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> prob, iou = jnp.array([0.5, 0.5, 0.1]), jnp.array([0.8, 0.4, 0.6])
      >>> t = task_alignment(prob, iou, jnp.array([0, 0, 1]), num_objects=2)
      >>> [round(float(value), 4) for value in t]  # 0.8 * (0.4 / 0.8)**6 in the middle
      [0.8, 0.0125, 0.6]

    Source: Feng et al., TOOD, ICCV 2021, arXiv:2108.07755, task alignment metric.
    """
    prob, iou = lax.stop_gradient(as_floats(prob=prob, iou=iou))
    if prob.ndim != 1:
        raise ValueError(f"prob has shape {prob.shape}; it must be [n], one image's samples")
    alpha, beta = as_number("alpha", alpha, 0.0), as_number("beta", beta, 0.0)
    objects = as_labels("objects", objects, prob.shape)
    mask = as_mask(where, prob.shape)
    is_sample = (objects >= 0) & (objects < num_objects)
    is_sample = is_sample if mask is None else is_sample & mask
    prob, iou = admit(is_sample, prob, iou)
    t = keep(is_sample, prob**alpha * iou**beta)
    index = jnp.where(is_sample, objects, num_objects)  # of the others, whose t is 0, one more
    empty = jnp.zeros((num_objects + 1,), t.dtype)
    largest_t, largest_iou = (empty.at[index].max(v)[index] for v in (t, iou))
    is_some = largest_t > 0
    return jnp.where(is_some, t, 0.0) / jnp.where(is_some, largest_t, 1.0) * largest_iou


def varifocal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    quality: ArrayLike,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Focal weights for negatives only; a positive counts as much as its quality.

    `q * BCE(p, q)` where q > 0, else `-alpha * p**gamma * log(1 - p)`, `p = sigmoid(logits)`; q is
    `quality` for the class of the label and 0 for all others. A positive of quality 0 is a
    negative, as the formula says.

    The gradient flows to the logits only; for negatives through p**gamma too.

    Args:
      logits, labels, quality, where: as in `quality_focal_loss`.
      alpha: weight of the negatives, >= 0.
      gamma: focusing exponent of the negatives, >= 0.

    Returns, Raises: as `quality_focal_loss`.

    Example:
      >>> loss = varifocal_loss(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([0.8]))
      >>> [round(float(value), 4) for value in loss[0]]  # 0.8 log 2 and 0.75 * 0.5**2 log 2
      [0.5545, 0.13]

    Source: Zhang et al., "VarifocalNet", CVPR 2021, arXiv:2008.13367.
    """
    alpha, gamma = as_number("alpha", alpha, 0.0), as_number("gamma", gamma, 0.0)
    (x, q), is_label, mask = as_classes(where, logits, labels, quality=quality)
    q = _target(q, is_label)
    # p**gamma = exp(gamma log p): exact for small p, and its slope has p**gamma as a factor.
    negative = alpha * jnp.exp(-gamma * jax.nn.softplus(-x)) * jax.nn.softplus(x)
    return keep(mask, jnp.where(q > 0, q * _cross_entropy(x, q), negative))


def ia_bce_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    quality: ArrayLike,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """IoU-aware cross entropy: a positive's target is a mean of its score and its quality.

    `BCE(p, t)`, `t = p**alpha * quality**(1 - alpha)`, for the class of the label, else
    `p**gamma * BCE(p, 0)`, `p = sigmoid(logits)`. Of these t alone is a constant for the gradient.
    The released code raises t to 0.01 at least and weighs an object's samples by rank.

    Args:
      logits, labels, quality, where: as in `quality_focal_loss`.
      alpha: share of the score in the target, in [0, 1].
      gamma: focusing exponent of the negatives, >= 0.

    Returns, Raises: as `quality_focal_loss`.

    Example:
      >>> loss = ia_bce_loss(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([0.5]))
      >>> [round(float(value), 4) for value in loss[0]]  # log 2 and 0.5**2 log 2
      [0.6931, 0.1733]

    Source: Cai et al., "Align-DETR", 2023, arXiv:2304.07527.
    """
    alpha, gamma = as_number("alpha", alpha, 0.0, 1.0), as_number("gamma", gamma, 0.0)
    (x, u), is_label, mask = as_classes(where, logits, labels, quality=quality)
    t = jax.nn.sigmoid(lax.stop_gradient(x)) ** alpha * _target(u, is_label) ** (1 - alpha)
    return keep(mask, _soft_or_negative(x, t, is_label, gamma))


def matchability_aware_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    quality: ArrayLike,
    *,
    gamma: float = 1.5,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross entropy of positives with a power of their quality; focal weights for negatives.

    `BCE(p, quality**gamma)` for the class of the label, else `p**gamma * BCE(p, 0)`,
    `p = sigmoid(logits)`: unlike in `varifocal_loss` every positive has weight 1. The gradient
    flows to the logits only; the released code holds the negatives' p**gamma.

    Args:
      logits, labels, quality, where: as in `quality_focal_loss`.
      gamma: exponent of the quality and of the negatives' score, >= 0.

    Returns, Raises: as `quality_focal_loss`.

    Example:
      >>> loss = matchability_aware_loss(jnp.array([[0.0, 2.0]]), jnp.array([1]), jnp.array([0.25]))
      >>> [round(float(value), 4) for value in loss[0]]  # 0.5**1.5 log 2 and BCE(0.8808, 0.125)
      [0.2451, 1.8769]

    Source: Huang et al., "DEIM", CVPR 2025, arXiv:2412.04234.
    """
    gamma = as_number("gamma", gamma, 0.0)
    (x, q), is_label, mask = as_classes(where, logits, labels, quality=quality)
    return keep(mask, _soft_or_negative(x, _target(q, is_label) ** gamma, is_label, gamma))


def position_supervised_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    quality: ArrayLike,
    *,
    gamma: float = 2.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`quality_focal_loss` of another quality: the squared IoU u, rescaled within the image.

    `|t - p|**gamma * BCE(p, t)` for the class of the label, else `p**gamma * BCE(p, 0)`, where
    `t = u**2 / max(u)` of the image is for the caller to compute. The released code has
    `(u / max(u))**2` instead, and weighs positives by 0.25, negatives by 0.75.

    Args:
      logits, labels, quality, where: as in `quality_focal_loss`; quality is t.
      gamma: focusing exponent, >= 0.

    Returns, Raises: as `quality_focal_loss`.

    Example:
      >>> iou = jnp.array([0.8, 0.4])  # t = 0.8 and 0.2, both 0.3 from p
      >>> loss = position_supervised_loss(jnp.zeros((2, 1)), jnp.array([0, 0]), iou**2 / iou.max())
      >>> [round(float(value), 4) for value in loss[:, 0]]  # 0.3**2 log 2
      [0.0624, 0.0624]

    Source: Liu et al., "Stable-DINO", ICCV 2023, arXiv:2304.04742.
    """
    gamma = as_number("gamma", gamma, 0.0)
    return quality_focal_loss(logits, labels, quality, beta=gamma, where=where)


def _soft_or_negative(x: jax.Array, y: jax.Array, is_label: jax.Array, gamma: float) -> jax.Array:
    """BCE(p, y) for the class of the label, p**gamma BCE(p, 0) for all others."""
    negative = jnp.exp(-gamma * jax.nn.softplus(-x)) * jax.nn.softplus(x)
    return jnp.where(is_label, _cross_entropy(x, y), negative)


def _target(quality: jax.Array, is_label: jax.Array) -> jax.Array:
    """[*b, k]: the quality for the class of the label, 0 for all others; a constant."""
    return jnp.where(is_label, lax.stop_gradient(quality)[..., None], 0.0)


def _cross_entropy(x: jax.Array, y: jax.Array) -> jax.Array:
    """-(y log p + (1 - y) log(1 - p)): two terms >= 0, so nothing cancels."""
    return y * jax.nn.softplus(-x) + (1 - y) * jax.nn.softplus(x)
