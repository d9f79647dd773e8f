"""Images for which a network says NaN or infinity: no detections, but not to be taken for none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax.structures import Detections


def mark_non_finite(found: Detections, said: Any) -> Detections:
    """NaN for all scores of an image for which the network's output is not finite.

    Args:
      found: `[b d]`.
      said: arrays `[b ..]`, what the network said of each image.
    """
    is_finite = jnp.ones(found.scores.shape[0], jnp.bool_)
    for leaf in jax.tree.leaves(said):
        is_finite &= jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1)
    return dataclasses.replace(found, scores=jnp.where(is_finite[:, None], found.scores, jnp.nan))


def non_finite_images(found: Detections) -> np.ndarray:
    """The rows of a batch, on the host, that `mark_non_finite` marked."""
    return np.flatnonzero(np.isnan(np.asarray(found.scores)).any(axis=-1))
