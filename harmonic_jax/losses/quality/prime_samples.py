"""PISA: which positives matter most, by the rank of their IoU, and boxes that score well."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_labels, as_number, as_samples, keep
from harmonic_jax.losses.quality._batch import batch_sum, equal_sum_weights


def iou_hierarchical_rank(
    iou: ArrayLike, labels: ArrayLike, objects: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """IoU-HLR: the best box of every object first, then the second best of every object.

    Samples of one object are ranked by IoU; then those of one class by that rank, and by IoU
    within it. Rank 0 is the most important sample of its class.

    Args:
      iou: [*b] of the decoded box with its object.
      labels: [*b] integers, the class of each sample.
      objects: [*b] integers, the object that each sample belongs to; distinct for the objects of
        different images.
      where: [*b] bool; the other samples are not ranked.

    Returns:
      [*b] int32, counted within the class, from 0; -1 where `where` is False. Of equal samples
      the first comes first.

    Raises:
      TypeError: a type is wrong.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import iou_hierarchical_rank
      >>> iou = jnp.array([0.9, 0.8, 0.6, 0.5])  # two boxes of each of two objects
      >>> iou_hierarchical_rank(iou, jnp.zeros(4, int), jnp.array([0, 0, 1, 1])).tolist()
      [0, 2, 1, 3]

    Source: Cao et al., "Prime sample attention in object detection", CVPR 2020, arXiv:1904.04821.
    """
    (iou,), mask = as_samples(where, iou=iou)
    labels = as_labels("labels", labels, iou.shape)
    objects = as_labels("objects", objects, iou.shape)
    is_sample = jnp.ones(iou.shape, bool) if mask is None else mask
    worst_first = lax.stop_gradient(-iou).reshape(-1)
    is_left_out = ~is_sample.reshape(-1)
    of_object = _rank_within(objects.reshape(-1), is_left_out, worst_first)
    of_class = _rank_within(labels.reshape(-1), is_left_out, of_object, worst_first)
    return jnp.where(is_sample, of_class.reshape(iou.shape), -1)


def _rank_within(groups: jax.Array, last: jax.Array, *keys: jax.Array) -> jax.Array:
    """The place of each element among those of its group, ordered by `keys`."""
    order = jnp.lexsort((*reversed(keys), groups, last))  # jnp.lexsort: the last key counts first
    places = jnp.arange(len(groups), dtype=jnp.int32)
    is_first = jnp.concatenate([jnp.ones((1,), bool), jnp.diff(groups[order]) != 0])
    is_first = is_first[: len(groups)]
    starts = lax.cummax(jnp.where(is_first, places, 0))
    return jnp.zeros_like(places).at[order].set(places - starts, unique_indices=True)


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
    """Importance-based sample reweighting of positives (ISR-P), by `iou_hierarchical_rank`.

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

    Raises:
      TypeError: a type is wrong, or an option not a number.
      ValueError: the shapes differ, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import isr_loss
      >>> same = jnp.zeros(2, int)  # two boxes of one object: u = 1 and 1/2, w = 1 and 1/4
      >>> loss = isr_loss(jnp.ones(2), jnp.array([0.9, 0.6]), same, same)
      >>> [round(float(value), 4) for value in loss]
      [1.6, 0.4]

    Source: Cao et al., PISA, CVPR 2020, arXiv:1904.04821. Its ISR-N, for negatives, is left out:
      one-stage detectors of the source do without it.
    """
    rank = iou_hierarchical_rank(iou, labels, objects, where=where)
    (cls_loss, _), mask = as_samples(where, cls_loss=cls_loss, iou=iou)
    exponent, bias = as_number("exponent", exponent, 0.0), as_number("bias", bias, 0.0, 1.0)
    n_max = jnp.max(rank, initial=0) + 1
    importance = (n_max - rank).astype(cls_loss.dtype) / n_max.astype(cls_loss.dtype)
    weights = keep(mask, ((1 - bias) * importance + bias) ** exponent)
    return keep(mask, equal_sum_weights(weights, cls_loss, axis_name) * cls_loss)


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

    Raises:
      TypeError: an array is not floating point, `where` not bool, or an option not a number.
      ValueError: the shapes differ, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import carl_loss
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
    count = batch_sum(keep(mask, jnp.ones_like(v)), axis_name)
    total = batch_sum(v, axis_name)
    is_some = total > 0
    mean = jnp.where(is_some, total, 1.0) / jnp.maximum(count, 1.0)
    return keep(mask, v / mean * loc_loss)
