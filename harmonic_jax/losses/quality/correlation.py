"""One number for a batch: how little the scores of positives correlate with their IoUs."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_samples, check_choice, keep
from harmonic_jax.losses.quality._batch import batch_sum

Correlation = Literal["concordance", "pearson"]


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

    Raises:
      TypeError: an array is not floating point, or `where` not bool.
      ValueError: the shapes differ, or `kind` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import correlation_loss
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
    check_choice("kind", kind, get_args(Correlation))
    number = batch_sum(keep(mask, jnp.ones_like(p)), axis_name)
    n = jnp.maximum(number, 1.0)

    def mean(values: jax.Array) -> jax.Array:
        return batch_sum(keep(mask, values), axis_name) / n

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


# Variances up to this, a spread of 1e-6, are rounding.
_TINY = 1e-12
