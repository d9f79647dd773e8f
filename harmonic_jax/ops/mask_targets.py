"""Cutting the masks of objects to regions."""

import jax
import jax.numpy as jnp

from harmonic_jax.ops._types import AnyArray, Array, Float, Integer, Real, UInt8
from harmonic_jax.ops.boxes import as_boxes


def crop_masks(
    values: UInt8[AnyArray, "g m m"],
    frames: Real[AnyArray, "g 4"],
    objects: Integer[AnyArray, " r"],
    boxes: Real[AnyArray, "r 4"],
    *,
    size: int,
    sampling_ratio: int = 2,
) -> Float[Array, "r s s"]:
    """The mask of one object inside each box, on an s x s grid over the box.

    A cell of the result is the mean of sampling_ratio x sampling_ratio bilinear samples of the
    object's own grid, whose cells have their values at their centers; outside of it there is
    nothing of the object.

    Args:
      values: `[g m m]` coverage of the cells of each object's grid, 0..255.
      frames: `[g 4]`, the box that the grid covers, xyxy in pixels.
      objects: `[r]`, whose mask is wanted in a box, 0..g-1.
      boxes: `[r 4]`, xyxy in pixels.
      size: s.
      sampling_ratio: samples of a cell along each axis, >= 1.

    Returns:
      `[r s s]` float32 coverage in [0, 1]; 0 for an object whose frame is empty. It is a target:
      it has no gradient.

    >>> left_half = jnp.zeros((1, 4, 4), jnp.uint8).at[0, :, :2].set(255)
    >>> box = jnp.array([[0.0, 0.0, 16.0, 8.0]])  # twice as wide as the frame
    >>> crop_masks(
    ...     left_half, jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.array([0]), box, size=4
    ... )[0, 1].tolist()
    [1.0, 0.0, 0.0, 0.0]

    Source: He et al., Mask R-CNN, 2017, section 3.1.
    """
    grid, fine = values.shape[-1], size * sampling_ratio
    frames, boxes = jax.lax.stop_gradient(
        (as_boxes("frames", frames)[objects], as_boxes("boxes", boxes))
    )

    def weights(axis: int) -> Float[Array, "r s m"]:
        """How much each cell of the result takes of each cell of the grid, along one axis."""
        low, high, start, end = (
            corners[:, side, None] for corners in (boxes, frames) for side in (axis, axis + 2)
        )
        parts = (jnp.arange(fine, dtype=jnp.float32) + 0.5) / fine
        at = low + parts[None] * (high - low)  # pixels
        at = (at - start) * (grid / (end - start)) - 0.5  # 0 is the first cell's center
        at = jnp.where(jnp.isfinite(at), at, -1.0)
        distance = jnp.abs(at[:, :, None] - jnp.arange(grid, dtype=jnp.float32)[None, None])
        each = jnp.maximum(1.0 - distance, 0.0)
        return each.reshape(-1, size, sampling_ratio, grid).mean(axis=2)

    own = jnp.asarray(values)[objects].astype(jnp.float32) / 255.0
    return jnp.einsum("rsy,ryx,rtx->rst", weights(1), own, weights(0))
