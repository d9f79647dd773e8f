"""The loss of an instance mask."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import admit, as_floats, as_mask, keep


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

    Raises:
      TypeError: an array is not floating point, or `where` not bool.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses import mask_loss
      >>> loss = mask_loss(jnp.array([[[2.0, 0.0]]]), jnp.array([[[1.0, 0.0]]]))
      >>> [round(float(value), 4) for value in loss]
      [0.41]

    Source: He et al., "Mask R-CNN", ICCV 2017, section 3.
    """
    logits, targets = as_floats(logits=logits, targets=targets)
    if logits.ndim < 2:
        raise ValueError(f"logits has shape {logits.shape}; its last two axes must hold the mask")
    mask = as_mask(where, logits.shape[:-2])
    logits, targets = admit(mask, logits, jax.lax.stop_gradient(targets))
    return keep(mask, jnp.mean(jax.nn.softplus(logits) - targets * logits, axis=(-2, -1)))
