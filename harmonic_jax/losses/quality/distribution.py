"""Boxes whose sides are distributions over bins: the distribution focal loss."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import admit, as_floats, as_logits, as_mask, keep


def distribution_focal_loss(
    logits: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Cross entropy with the two bins next to a continuous target.

    `-((i + 1 - y) log S_i + (y - i) log S_{i+1})`, `S = softmax(logits)` and i = floor(y).

    Args:
      logits: [*b, m] of the bins 0..m-1, whose expectation is the predicted distance.
      target: [*b] distance in units of bins, in [0, m - 1]; any other gives inf, without
        gradient, since no two bins lie around it: clip it, or mask the sample with `where`. A
        constant for the gradient.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each side, >= 0, float32 (float64 for float64 inputs). Its smallest value is
      the entropy of the two weights, not 0.

    Raises:
      TypeError: an array is not floating point, or `where` not bool.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import distribution_focal_loss
      >>> logits = jnp.log(jnp.array([[0.1, 0.3, 0.6]]))
      >>> loss = distribution_focal_loss(logits, jnp.array([1.5]))
      >>> [round(float(value), 4) for value in loss]  # -(log 0.3 + log 0.6) / 2
      [0.8574]

    Source: Li et al., "Generalized focal loss", NeurIPS 2020, arXiv:2006.04388. RetinaNet here has
      no head for it; the function is for detectors that have one.
    """
    logits = as_logits("logits", logits)
    (target,) = as_floats(target=target)
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target has shape {target.shape}; it must be {logits.shape[:-1]}, one a side"
        )
    mask = as_mask(where, target.shape)
    logits, target = admit(mask, logits, lax.stop_gradient(target))
    bins = lax.broadcasted_iota(logits.dtype, logits.shape, logits.ndim - 1)
    # The weights of all bins at once: 1 at the target, 0 from one bin away on.
    weights = jnp.maximum(1 - jnp.abs(bins - target[..., None]), 0.0)
    log_s = jax.nn.log_softmax(logits, axis=-1)
    loss = -jnp.sum(jnp.where(weights > 0, weights * log_s, 0.0), axis=-1)
    is_between = (target >= 0) & (target <= logits.shape[-1] - 1)
    return keep(mask, jnp.where(is_between, loss, jnp.inf))
