"""Cross entropy, focal loss and entropy, from logits and integer labels, and the loss of masks."""

import functools

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import (
    admit,
    as_classes,
    as_float,
    as_floats,
    as_logits,
    as_mask,
    as_number,
    keep,
)


def softmax_entropy(logits: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Entropy of the class distribution of a softmax head.

    `-sum_k p_k log p_k` with `p = softmax(logits)`; a class of probability 0 adds 0.

    Args:
      logits: [*b, k] of all classes, background included.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] entropy in nats, in [0, log k], float32 (float64 for float64 logits). The gradient is
      finite, and 0 where a logit is infinite.

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> [round(float(h), 4) for h in softmax_entropy(jnp.array([[0.0, 0.0], [200.0, -200.0]]))]
      [0.6931, 0.0]

    Source: Shannon (1948); as the uncertainty of a sample: arXiv:2108.10809.
    """
    logits = as_logits(logits)
    mask = as_mask(where, logits.shape[:-1])
    (logits,) = admit(mask, logits)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    # 0 * -inf is NaN, in the value and in the gradient: make the factor finite first.
    return keep(mask, jnp.sum(p * jnp.where(p > 0, -log_p, 0.0), axis=-1))


def sigmoid_entropy(logits: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Entropy of each class of a sigmoid head, taken as a coin of its own (Bernoulli).

    `-p log p - (1 - p) log(1 - p)` with `p = sigmoid(logits)`, per element.

    A sigmoid head has no distribution over the classes: its scores do not add up to 1, and
    `-sum_k p_k log p_k` over them grows with their number until its exponential overflows. One
    coin is at most log 2 whatever the number of classes. Which coin is asked is the caller's
    choice; that of the true class goes with the `prob` of `task_contrastive_loss`.

    Args:
      logits: [*b] of any shape.
      where: [*b] bool, or of the leading axes alone; value and gradient are exactly 0 where it is
        False.

    Returns:
      [*b] entropy in nats, in [0, log 2], float32 (float64 for float64 logits). The gradient,
      `-logits * p * (1 - p)`, is finite, and 0 at infinite logits.

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> [round(float(h), 4) for h in sigmoid_entropy(jnp.array([0.0, 200.0]))]
      [0.6931, 0.0]

    Source: Shannon (1948).
    """
    x = as_float("logits", logits)
    mask = as_mask(where, x.shape if where is None else x.shape[: jnp.ndim(where)])
    (x,) = admit(mask, x)
    # sigmoid(-x) is 1 - p without cancellation; both terms vanish in the limit, never 0 * inf.
    entropy = jax.nn.sigmoid(x) * jax.nn.softplus(-x) + jax.nn.sigmoid(-x) * jax.nn.softplus(x)
    return keep(mask, entropy)


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Cross entropy of a softmax head, from integer labels.

    `-log softmax(logits)[label]`

    Args:
      logits: [*b, k] of all classes, background included.
      labels: [*b] integers in 0..k-1. Any other label has probability 0 and the loss inf, without
        gradient, since no class could explain it: mask the samples that have none with `where`.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, >= 0, float32 (float64 for float64 logits).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> loss = softmax_cross_entropy(jnp.array([[2.0, 0.0, -1.0]]), jnp.array([0]))
      >>> [round(float(value), 4) for value in loss]
      [0.1698]

    Source: the negative log-likelihood of a categorical distribution.
    """
    (logits,), is_label, mask = as_classes(where, logits, labels)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    # A comparison and a sum fuse into one pass; a gather's gradient would be a scatter.
    loss = -jnp.sum(jnp.where(is_label, log_p, 0.0), axis=-1)
    return keep(mask, jnp.where(is_label.any(axis=-1), loss, jnp.inf))


def sigmoid_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Binary cross entropy of each class of a sigmoid head, from integer labels.

    `-log p` for the class of the label and `-log(1 - p)` for all others, `p = sigmoid(logits)`

    Args:
      logits: [*b, k] of the foreground classes.
      labels: [*b] integers; 0..k-1 is a class, anything else is background (no class is true).
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b, k] loss of each element, >= 0, float32 (float64 for float64 logits).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> loss = sigmoid_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0]))
      >>> [round(float(value), 4) for value in loss[0]]
      [0.1269, 0.6931]

    Source: the negative log-likelihood of Bernoulli distributions.
    """
    (logits,), is_label, mask = as_classes(where, logits, labels)
    return keep(mask, jax.nn.softplus(jnp.where(is_label, -logits, logits)))


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Focal loss of each class of a sigmoid head, from integer labels.

    `-alpha_t * (1 - p_t)**gamma * log p_t`, where for the class of the label p_t = p and
    alpha_t = alpha, for all others p_t = 1 - p and alpha_t = 1 - alpha; `p = sigmoid(logits)`

    The derivative is written out, so that value and gradient share one exponential, no
    power of 0 occurs for gamma < 1, and forward mode (`jax.jvp`, `jax.linearize`) and higher
    derivatives work too.

    Args:
      logits: [*b, k] of the foreground classes.
      labels: [*b] integers; 0..k-1 is a class, anything else is background (no class is true).
      alpha: weight of the true class in [0, 1], 1 - alpha that of the others; None for no weights.
      gamma: focusing exponent, >= 0; 0 is the weighted cross entropy.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b, k] loss of each element, >= 0, float32 (float64 for float64 logits).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> loss = sigmoid_focal_loss(jnp.zeros((2, 2)), jnp.array([1, -1]))
      >>> [[round(float(value), 4) for value in row] for row in loss]
      [[0.13, 0.0433], [0.13, 0.13]]

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """
    gamma = as_number("gamma", gamma, 0.0)
    weights = (1.0, 1.0)
    if alpha is not None:
        alpha = as_number("alpha (None: no weights)", alpha, 0.0, 1.0)
        weights = (alpha, 1.0 - alpha)
    (logits,), is_label, mask = as_classes(where, logits, labels)
    return keep(mask, _focal(logits, is_label, weights, gamma))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _focal(
    logits: jax.Array, is_label: jax.Array, weights: tuple[float, float], gamma: float
) -> jax.Array:
    return _focal_and_slope(logits, is_label, weights, gamma)[0]


@_focal.defjvp
def _focal_jvp(
    weights: tuple[float, float],
    gamma: float,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    # Linear in the tangent, so reverse mode transposes it: the slope is all that is stored.
    value, slope = _focal_and_slope(*primals, weights, gamma)
    return value, slope * tangents[0]


def _focal_and_slope(
    logits: jax.Array, is_label: jax.Array, weights: tuple[float, float], gamma: float
) -> tuple[jax.Array, jax.Array]:
    """Value and derivative of w * q**gamma * ce, where q = 1 - p_t and ce = -log p_t.

    With s = -logits for the true class and logits for the others, q = sigmoid(s) and
    ce = softplus(s); dq/ds = q (1 - q) and dce/ds = q, so the slope in s has q**gamma as a
    factor and never q**(gamma - 1).
    """
    s = jnp.where(is_label, -logits, logits)
    # One exponential for all. Each branch is the whole analytic function on its side, so the
    # derivatives of this code are exact at s = 0 too.
    is_high = s >= 0
    e = jnp.exp(jnp.where(is_high, -s, s))  # in (0, 1]
    log1p_e = jnp.log1p(e)
    q = jnp.where(is_high, 1.0, e) / (1 + e)
    ce = jnp.where(is_high, s, 0.0) + log1p_e
    # The usual exponent is worth a case of its own; log q is exact for small q.
    log_q = jnp.where(is_high, 0.0, s) - log1p_e
    power = q * q if gamma == 2.0 else jnp.exp(gamma * log_q)
    scale = jnp.where(is_label, weights[0], weights[1]).astype(logits.dtype) * power
    slope = scale * (gamma * (1 - q) * ce + q)
    return scale * ce, jnp.where(is_label, -slope, slope)


def mask_loss(
    logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Binary cross entropy of each cell of a mask, averaged over the cells.

    `mean_ij(softplus(z_ij) - t_ij z_ij)`

    Args:
      logits: [*b, m, m] of the mask of the sample's class.
      targets: [*b, m, m] in [0, 1].
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, >= 0, float32 (float64 for float64 inputs). The gradient flows to
      the logits only.

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> loss = mask_loss(jnp.array([[[2.0, 0.0]]]), jnp.array([[[1.0, 0.0]]]))
      >>> [round(float(value), 4) for value in loss]
      [0.41]

    Source: He et al., "Mask R-CNN", ICCV 2017, section 3.
    """
    logits, targets = as_floats(logits=logits, targets=targets)
    if logits.ndim < 2:
        raise ValueError(f"logits has shape {logits.shape}; its last two axes must hold the mask")
    mask = as_mask(where, logits.shape[:-2])
    logits, targets = admit(mask, logits, stop_gradient(targets))
    return keep(mask, jnp.mean(jax.nn.softplus(logits) - targets * logits, axis=(-2, -1)))
