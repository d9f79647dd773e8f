"""The objective of a mask head."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from harmonic_jax.assign.sampled import RoISamples
from harmonic_jax.losses import mask_loss
from harmonic_jax.objectives.sums import LossSums


def mask_objective(
    logits: Float[Array, "b s m m c"],
    coverage: Float[Array, "b s m m"],
    samples: RoISamples,
    is_real: Bool[Array, " b"],
) -> LossSums:
    """Binary cross entropy of the true class's mask, of positive RoIs; other classes' masks are
    not looked at.

    Args:
      logits: of each class.
      coverage: of the matched object, in [0, 1]; at half and more a cell belongs to it.
      samples: [b, s].
      is_real: [b], False for slots that only fill the batch.

    Returns:
      Sums over the batch, to be divided by the number of positive RoIs; the term `mask_loss`.

    Source: He et al., Mask R-CNN, 2017, section 3.
    """
    positive = samples.is_positive & is_real[:, None]
    rows = jnp.where(positive, samples.labels, 0)[..., None, None, None]
    own = jnp.take_along_axis(logits, rows, axis=-1)[..., 0]
    targets = (coverage >= 0.5).astype(jnp.float32)
    total = mask_loss(own, targets, where=positive).sum()
    count = positive.sum(dtype=jnp.float32)
    return LossSums(total, {"mask_loss": total}, normalizer=count, num_positive=count)
