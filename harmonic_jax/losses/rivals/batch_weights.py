"""Losses that look at the whole batch: IoU-balanced and PISA weights, and the correlation loss.

Statistics of the batch are those of the samples kept by `where`, on every device along `axis_name`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_labels, as_number, as_samples, check_choice, keep

Correlation = Literal["concordance", "pearson"]

# Variances up to this, a spread of 1e-6, are rounding.
_TINY = 1e-12


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

    Args:
      cls_loss: [*b] classification loss of each positive, >= 0. In its source that of the true
        class of a sigmoid head; the other classes' keep weight 1.
      iou: [*b] of the decoded box with its object, in [0, 1].
      exponent: the source's eta, >= 0; 0 leaves the loss as it is.
      where: [*b] bool; value and gradient are exactly 0 where it is False.
      axis_name: inside `jax.shard_map` or `jax.vmap`, the axis whose rows are one batch.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> loss = iou_balanced_cls_loss(jnp.array([1.0, 1.0]), jnp.array([0.9, 0.3]), exponent=1.0)
      >>> [round(float(value), 4) for value in loss]  # 2 * 0.9 / 1.2 and 2 * 0.3 / 1.2
      [1.5, 0.5]

    Source: Wu et al., "IoU-balanced loss functions for single-stage object detection", Pattern
      Recognition Letters 2022, arXiv:1908.05641.
    """
    (cls_loss, iou), mask = as_samples(where, cls_loss=cls_loss, iou=iou)
    exponent = as_number("exponent", exponent, 0.0)
    weights = _equal_sum_weights(keep(mask, iou**exponent), cls_loss, axis_name)
    return keep(mask, weights * cls_loss)


def iou_balanced_loc_loss(
    loc_loss: ArrayLike, iou: ArrayLike, *, exponent: float = 1.5, where: ArrayLike | None = None
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

    Returns, Raises: as `iou_balanced_cls_loss`.

    Example:
      >>> loss = iou_balanced_loc_loss(jnp.array([2.0, 2.0]), jnp.array([1.0, 0.25]))
      >>> [float(value) for value in loss]  # 0.25**1.5 = 0.125
      [2.0, 0.25]

    Source: Wu et al., arXiv:1908.05641.
    """
    (loc_loss, iou), mask = as_samples(where, loc_loss=loc_loss, iou=iou)
    exponent = as_number("exponent", exponent, 0.0)
    return keep(mask, lax.stop_gradient(iou**exponent) * loc_loss)


def isr_loss(
    cls_loss: ArrayLike,
    iou: ArrayLike,
    labels: ArrayLike,
    objects: ArrayLike,
    *,
    exponent: float = 2.0,
    bias: float = 0.0,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Importance-based sample reweighting of positives (ISR-P), by their IoU-hierarchical rank.

    Samples of one object are ranked by IoU, then those of one class by that rank, and by IoU within
    it: the best box of every object comes first, then the second best of every object; of equals
    the first.

    `w_i * cls_loss_i` with `u_i = (n_max - rank_i) / n_max`, `n_max` the number of positives of
    the class that has most, and `w_i = ((1 - bias) u_i + bias)**exponent`, scaled so that the sum
    of the losses stays what it was. The weights are constants for the gradient.

    The ranks are those among the samples given, on this device; the scale is that of all
    samples, on every device along `axis_name`. So the result depends a little on how a batch is
    split over devices, as it does in the reference implementation.

    Args:
      cls_loss: [*b] classification loss of each positive, >= 0.
      iou: [*b] of the decoded box with its object, in [0, 1].
      labels: [*b] integers, the class of each sample.
      objects: [*b] integers, the object of each sample; distinct for different images' objects.
      exponent: of the importance, >= 0.
      bias: in [0, 1], the weight of the least important sample before the exponent.
      where: [*b] bool; value and gradient are exactly 0 where it is False.
      axis_name: inside `jax.shard_map` or `jax.vmap`, the axis whose rows are one batch.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> same = jnp.zeros(2, int)  # two boxes of one object: u = 1 and 1/2, w = 1 and 1/4
      >>> loss = isr_loss(jnp.ones(2), jnp.array([0.9, 0.6]), same, same)
      >>> [round(float(value), 4) for value in loss]
      [1.6, 0.4]

    Source: Cao et al., "Prime sample attention in object detection" (PISA), CVPR 2020,
      arXiv:1904.04821. Its ISR-N, for negatives, is left out:
      one-stage detectors of the source do without it.
    """
    (cls_loss, iou), mask = as_samples(where, cls_loss=cls_loss, iou=iou)
    labels = as_labels("labels", labels, iou.shape)
    rank = _hierarchical_rank(iou, labels, as_labels("objects", objects, iou.shape), mask)
    exponent, bias = as_number("exponent", exponent, 0.0), as_number("bias", bias, 0.0, 1.0)
    n_max = jnp.max(rank, initial=0) + 1
    importance = (n_max - rank).astype(cls_loss.dtype) / n_max.astype(cls_loss.dtype)
    weights = keep(mask, ((1 - bias) * importance + bias) ** exponent)
    return keep(mask, _equal_sum_weights(weights, cls_loss, axis_name) * cls_loss)


def carl_loss(
    prob: ArrayLike,
    loc_loss: ArrayLike,
    *,
    exponent: float = 1.0,
    bias: float = 0.2,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Classification-aware regression loss: boxes weighted by their scores.

    `c_i * loc_loss_i` with `v_i = ((1 - bias) prob_i + bias)**exponent` and `c_i = v_i / mean(v)`

    The gradient flows through the weights: with the mean held, d/dprob_i is proportional to
    loc_loss_i, so that the scores of badly placed boxes fall, relative to those of good ones.

    The mean is over the samples kept by `where`, on every device along `axis_name`.

    Args:
      prob: [*b] predicted probability of the true class, in [0, 1].
      loc_loss: [*b] localization loss of each positive, >= 0.
      exponent: >= 0.
      bias: in [0, 1].
      where: [*b] bool; value and gradient are exactly 0 where it is False.
      axis_name: inside `jax.shard_map` or `jax.vmap`, the axis whose rows are one batch.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> loss = carl_loss(jnp.array([1.0, 0.25]), jnp.array([1.0, 1.0]))  # v = 1 and 0.4
      >>> [round(float(value), 4) for value in loss]
      [1.4286, 0.5714]

    Source: Cao et al., PISA, CVPR 2020, arXiv:1904.04821. The reference implementation adds it
      to the plain box loss, as a third loss.
    """
    (prob, loc_loss), mask = as_samples(where, prob=prob, loc_loss=loc_loss)
    exponent, bias = as_number("exponent", exponent, 0.0), as_number("bias", bias, 0.0, 1.0)
    base = (1 - bias) * prob + bias
    # A score of exactly 0 without bias: the power's slope could be infinite there.
    is_safe = base > 0
    v = keep(mask, jnp.where(is_safe, jnp.where(is_safe, base, 1.0) ** exponent, 0.0**exponent))
    count = _batch_sum(keep(mask, jnp.ones_like(v)), axis_name)
    total = _batch_sum(v, axis_name)
    is_some = total > 0
    mean = jnp.where(is_some, total, 1.0) / jnp.maximum(count, 1.0)
    return keep(mask, v / mean * loc_loss)


def correlation_loss(
    prob: ArrayLike,
    iou: ArrayLike,
    *,
    kind: Correlation = "concordance",
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """1 minus the correlation of scores and IoUs over a batch of positives.

    - "concordance": `1 - 2 cov(p, u) / (var p + var u + (mean p - mean u)**2)`, which is 0 only if
      the scores equal the IoUs;
    - "pearson": `1 - cov(p, u) / sqrt(var p var u)`, which is 0 for any rising line. Its slope is
      inverse to the spread of the scores, steep at the start of training, when they are alike.

    Unlike the losses of samples this is one number: it is added, with a weight (0.2 in most of
    the source's configurations), to a loss that is divided by its normaliser already. The
    gradient flows to the scores only. With fewer than two samples, or where the correlation is
    not defined (no spread), value and gradient are 0.

    Args:
      prob: [*b] predicted probability of the true class, in [0, 1].
      iou: [*b] of the decoded box with its object, in [0, 1]; a constant for the gradient.
      kind: which correlation, see above.
      where: [*b] bool; the other samples have no part in it and gradient exactly 0.
      axis_name: inside `jax.shard_map` or `jax.vmap`, the axis whose rows are one batch; each
        device then has the loss of the whole batch.

    Returns:
      [] in [0, 2], float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> prob, iou = jnp.array([0.0, 0.2, 0.4]), jnp.array([0.6, 0.7, 0.8])  # on a line
      >>> round(float(correlation_loss(prob, iou, kind="pearson")), 4)
      0.0
      >>> round(float(correlation_loss(prob, iou)), 4)  # but the scores are 0.5 too low
      0.9059

    Source: Kahraman et al., "Correlation loss: enforcing correlation between classification and
      localization", AAAI 2023, arXiv:2301.01019. Its third, Spearman's, needs a differentiable
      sorting and is left out. Variances are those of the batch (divided by n), as in Lin's
      definition (1989); the authors' code divides two of them by n - 1.
    """
    (p, u), mask = as_samples(where, prob=prob, iou=iou)
    u = lax.stop_gradient(u)
    check_choice("kind", kind, Correlation)
    number = _batch_sum(keep(mask, jnp.ones_like(p)), axis_name)
    n = jnp.maximum(number, 1.0)

    def mean(values: jax.Array) -> jax.Array:
        return _batch_sum(keep(mask, values), axis_name) / n

    mean_p, mean_u = mean(p), mean(u)
    # Deviations first: the difference of squared means would cancel.
    dp, du = keep(mask, p - mean_p), keep(mask, u - mean_u)
    covariance, var_p, var_u = mean(dp * du), mean(dp * dp), mean(du * du)
    if kind == "pearson":
        is_defined = (var_p > _TINY) & (var_u > _TINY)
        numerator = covariance
        product = jnp.where(is_defined, var_p, 1.0) * jnp.where(is_defined, var_u, 1.0)
        denominator = jnp.sqrt(product)
    else:
        distance = var_p + var_u + (mean_p - mean_u) ** 2
        is_defined = distance > _TINY
        numerator, denominator = 2 * covariance, jnp.where(is_defined, distance, 1.0)
    is_defined &= number > 1
    return jnp.where(is_defined, 1 - numerator / denominator, 0.0)


def _hierarchical_rank(
    iou: jax.Array, labels: jax.Array, objects: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """[*b] int32, counted within the class from 0; -1 where the mask is False."""
    is_sample = jnp.ones(iou.shape, bool) if mask is None else mask
    is_left_out = ~is_sample.reshape(-1)
    worst_first = lax.stop_gradient(-iou).reshape(-1)
    of_object = _rank_within(objects.reshape(-1), is_left_out, worst_first)
    of_class = _rank_within(labels.reshape(-1), is_left_out, of_object, worst_first)
    return jnp.where(is_sample, of_class.reshape(iou.shape), -1)


def _rank_within(groups: jax.Array, last: jax.Array, *keys: jax.Array) -> jax.Array:
    """The place of each element among those of its group, ordered by `keys`."""
    order = jnp.lexsort((*reversed(keys), groups, last))  # jnp.lexsort: the last key counts first
    places = jnp.arange(len(groups), dtype=jnp.int32)
    is_first = jnp.concatenate([jnp.ones((1,), bool), jnp.diff(groups[order]) != 0])
    starts = lax.cummax(jnp.where(is_first[: len(groups)], places, 0))
    return jnp.zeros_like(places).at[order].set(places - starts, unique_indices=True)


def _batch_sum(values: jax.Array, axis_name: str | None) -> jax.Array:
    """The sum of all values, of every device along `axis_name`."""
    total = jnp.sum(values)
    return total if axis_name is None else lax.psum(total, axis_name)


def _equal_sum_weights(weights: jax.Array, losses: jax.Array, axis_name: str | None) -> jax.Array:
    """The weights, scaled so that the weighted losses have the sum of the losses; constants.

    As constants they are no part of the gradient: a gradient through the scale would undo them,
    since the sum itself does not depend on the weights.
    """
    weights, losses = lax.stop_gradient((weights, losses))
    weighted = _batch_sum(weights * losses, axis_name)
    plain = _batch_sum(losses, axis_name)
    is_some = weighted > 1e-12 * plain  # otherwise the scale means nothing, and may overflow
    scale = jnp.where(is_some, plain, 1.0) / jnp.where(is_some, weighted, 1.0)
    return weights * scale
