"""Greedy non-maximum suppression with static shapes, decision for decision torchvision's.

Boxes are taken best first in tiles. A tile is compared with the boxes kept so far (a compacted
list), then settled within itself; the loop ends as soon as the output is full. A detector that
keeps 100 of 5000 boxes compares a few hundred of them, never all pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from harmonic_jax.ops.boxes import pairwise_iou

_TILE = 128


class Kept(NamedTuple):
    """What survives the suppression, best first."""

    indices: Int[Array, " max_outputs"]  # int32, into the input; 0 where not valid
    valid: Bool[Array, " max_outputs"]


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    *,
    iou_threshold: float,
    max_outputs: int,
    valid: Bool[Array, " n"] | None = None,
) -> Kept:
    """Keep the best boxes that overlap no better kept box by more than a threshold."""
    labels = jnp.zeros(scores.shape, jnp.int32)
    return batched_nms(
        boxes,
        scores,
        labels,
        iou_threshold=iou_threshold,
        max_outputs=max_outputs,
        valid=valid,
    )


def batched_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    labels: Int[Array, " n"],
    *,
    iou_threshold: float,
    max_outputs: int,
    valid: Bool[Array, " n"] | None = None,
) -> Kept:
    """`nms` among boxes of the same label."""
    threshold = _float32_below(iou_threshold)
    valid = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
    order = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), scores.shape[0])[1]
    num_valid = jnp.sum(valid)
    order = jnp.pad(order, (0, -order.shape[0] % _TILE)).astype(jnp.int32)
    boxes = jnp.where(valid[:, None], boxes, 0.0)[order]
    labels = labels[order]
    is_earlier = jnp.arange(_TILE)[:, None] < jnp.arange(_TILE)[None, :]

    def settle_tile(carry):
        start, count, kept_boxes, kept_labels, kept = carry
        tile = jax.lax.dynamic_slice_in_dim(boxes, start, _TILE)
        tile_labels = jax.lax.dynamic_slice_in_dim(labels, start, _TILE)
        tile_order = jax.lax.dynamic_slice_in_dim(order, start, _TILE)
        alive = start + jnp.arange(_TILE) < num_valid
        hit = pairwise_iou(kept_boxes, tile) > threshold
        hit &= kept_labels[:, None] == tile_labels[None, :]
        alive &= ~hit.any(0)
        suppresses = (pairwise_iou(tile, tile) > threshold) & is_earlier
        suppresses &= tile_labels[:, None] == tile_labels[None, :]

        def step(carry):
            keep, _ = carry
            new = alive & ~(suppresses & keep[:, None]).any(0)
            return new, (new != keep).any()

        keep, _ = jax.lax.while_loop(lambda carry: carry[1], step, (alive, alive.any()))
        place = jnp.where(keep, count + jnp.cumsum(keep) - 1, max_outputs)
        kept_boxes = kept_boxes.at[place].set(tile, mode="drop")
        kept_labels = kept_labels.at[place].set(tile_labels, mode="drop")
        kept = kept.at[place].set(tile_order, mode="drop")
        return start + _TILE, count + keep.sum(), kept_boxes, kept_labels, kept

    start = (
        0,
        0,
        jnp.zeros((max_outputs, 4), boxes.dtype),
        jnp.full(max_outputs, -1, labels.dtype),
        jnp.zeros(max_outputs, jnp.int32),
    )
    _, count, _, _, kept = jax.lax.while_loop(
        lambda carry: (carry[0] < num_valid) & (carry[1] < max_outputs), settle_tile, start
    )
    return Kept(kept, jnp.arange(max_outputs) < count)


def _float32_below(value: float) -> np.float32:
    """The largest float32 that is not above a number."""
    rounded = np.float32(value)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf))
