"""GHM: samples weighted against the density of their gradient's length."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import (
    admit,
    as_labels,
    as_logits,
    as_mask,
    as_number,
    as_pairs,
    keep,
)


def ghm_cls_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 30,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """GHM-C: cross entropy of a sigmoid head, in which equally hard elements share one weight.

    `n / (m n_j) * CE`, where g = |p - y| in [0, 1] is an element's gradient, n_j the number of
    elements whose g lies in its bin, m the number of bins in use and n that of all elements. The
    mean over the counted elements is the loss of the source; each bin in use adds to it the same.

    The weights are constants for the gradient. They depend on the whole batch: the elements of
    the samples kept by `where`, on every device along `axis_name`. No average over past batches
    is kept (the momentum of the source): the function has no state.

    Args:
      logits: [*b, k] of the foreground classes.
      labels: [*b] integers; 0..k-1 is a class, anything else is background (no class is true).
      bins: number of bins of [0, 1], >= 1.
      where: [*b] bool; value and gradient are exactly 0 where it is False.
      axis_name: inside `jax.shard_map` or `jax.vmap`, the axis whose rows are one batch.

    Returns:
      [*b, k] loss of each element, >= 0, float32 (float64 for float64 logits).

    Raises:
      TypeError: a type is wrong, or `bins` not an integer.
      ValueError: the shapes do not fit, or `bins` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import ghm_cls_loss
      >>> logits = jnp.array([[-4.0], [-4.0], [-4.0], [0.0]])  # three easy negatives, one hard
      >>> loss = ghm_cls_loss(logits, jnp.full(4, -1), bins=2)  # weights 4 / (2 * 3), 4 / (2 * 1)
      >>> [round(float(value), 4) for value in loss[:, 0]]
      [0.0121, 0.0121, 0.0121, 1.3863]

    Source: Li et al., "Gradient harmonized single-stage detector", AAAI 2019, arXiv:1811.05181.
      There the density counts all bins; the authors' code, and this, those in use.
    """
    x = as_logits("logits", logits)
    labels = as_labels("labels", labels, x.shape[:-1])
    bins = _as_bins(bins)
    mask = as_mask(where, labels.shape)
    (x,) = admit(mask, x)
    classes = lax.broadcasted_iota(labels.dtype, x.shape, x.ndim - 1)
    s = jnp.where(classes == labels[..., None], -x, x)  # g = sigmoid(s), CE = softplus(s)
    weights = _density_weights(jax.nn.sigmoid(s), mask, bins, axis_name)
    return keep(mask, weights * jax.nn.softplus(s))


def ghm_loc_loss(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    mu: float = 0.02,
    bins: int = 10,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """GHM-R: a smooth L1 loss, in which equally wrong coordinates share one weight.

    `sum_j n / (m n_j) * (sqrt(d_j**2 + mu**2) - mu)`, `d = pred - target`, with the bins of
    g = |d| / sqrt(d**2 + mu**2) in [0, 1], as in `ghm_cls_loss`; n counts coordinates.

    The weights are constants for the gradient, and depend on the whole batch as there. Dividing
    the sum by the number of coordinates, four a positive, gives the loss of the source.

    Args:
      pred: [*b, c] predicted box deltas (c = 4), or any other coordinates.
      target: [*b, c] their targets; differentiable too.
      mu: where the parabola turns into a line, >= 1e-6.
      bins: number of bins of [0, 1], >= 1.
      where: [*b] bool; value and gradient are exactly 0 where it is False.
      axis_name: inside `jax.shard_map` or `jax.vmap`, the axis whose rows are one batch.

    Returns:
      [*b] loss of each sample, >= 0, float32 (float64 for float64 inputs).

    Raises:
      TypeError: a type is wrong, or an option not a number.
      ValueError: the shapes do not fit, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import ghm_loc_loss
      >>> pred = jnp.array([[3.0], [3.0], [0.0]])
      >>> loss = ghm_loc_loss(pred, jnp.zeros((3, 1)), mu=4.0, bins=2)  # sqrt(25) - 4, g = 0.6
      >>> [float(value) for value in loss]  # weights 3 / (2 * 2)
      [0.75, 0.75, 0.0]

    Source: Li et al., AAAI 2019, arXiv:1811.05181.
    """
    pred, target, finish = as_pairs(where, pred, target)
    mu, bins = as_number("mu", mu, 1e-6), _as_bins(bins)
    d = pred - target
    is_far = jnp.abs(d) > 1e9 * max(mu, 1.0)  # the root is |d|, whose square could overflow
    near = jnp.where(is_far, 0.0, d)
    root = jnp.sqrt(near * near + mu * mu)
    g = jnp.where(is_far, 1.0, jnp.abs(near) / root)
    # root - mu without its cancellation for small differences.
    loss = jnp.where(is_far, jnp.abs(d) - mu, near * near / (root + mu))
    mask = as_mask(where, pred.shape[:-1])
    return finish(jnp.sum(_density_weights(g, mask, bins, axis_name) * loss, axis=-1))


def _density_weights(
    g: jax.Array, mask: jax.Array | None, bins: int, axis_name: str | None
) -> jax.Array:
    """n / (bins in use * elements in the bin of g) of each element; constants."""
    g = lax.stop_gradient(g)
    index = jnp.minimum((g * bins).astype(jnp.int32), bins - 1)
    if mask is not None:  # an element that is left out lies in no bin
        expanded = mask.reshape(mask.shape + (1,) * (g.ndim - mask.ndim))
        index = jnp.where(expanded, index, bins)
    every = lax.broadcasted_iota(jnp.int32, (1, bins), 1)
    # Compared and summed in one pass; integers, since float32 stops counting at 2**24.
    counts = jnp.sum(index.reshape(-1, 1) == every, axis=0, dtype=jnp.int32)
    if axis_name is not None:
        counts = lax.psum(counts, axis_name)
    number = counts.astype(g.dtype)
    in_use = jnp.sum(counts > 0).astype(g.dtype)
    by_bin = number.sum() / (jnp.maximum(in_use, 1.0) * jnp.maximum(number, 1.0))
    return by_bin[jnp.minimum(index, bins - 1)]


def _as_bins(bins: int) -> int:
    if isinstance(bins, bool) or not isinstance(bins, int):
        raise TypeError(f"bins is a {type(bins).__name__}; it must be an integer")
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be >= 1")
    return bins
