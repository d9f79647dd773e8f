"""Greedy non-maximum suppression with static shapes, decision for decision torchvision's.

Boxes are taken best first, a tile at a time. A tile is compared with the boxes kept so far (a
compacted list), then settled within itself, and the loop ends as soon as the output is full: to
keep 100 of 5000 boxes, a few hundred are sorted and compared, never all pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax.ops._types import AnyArray, Array, Bool, Int, Integer, Real
from harmonic_jax.ops.boxes import as_boxes, iou_of_coordinates

_TILE = 128  # Candidates sorted and settled at a time.
_CHUNK = 128  # Kept boxes compared with a tile at a time.


class Kept(NamedTuple):
    """The boxes that survive, best first."""

    indices: Int[Array, "*b max_outputs"]  # int32, into the input; 0 where not valid
    valid: Bool[Array, "*b max_outputs"]


def nms(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    *,
    iou_threshold: float,
    max_outputs: int,
    valid: Bool[AnyArray, " n"] | None = None,
) -> Kept:
    """Keep the boxes that overlap no better kept box by more than a threshold.

    Taken best first, a box is kept unless IoU(box, k) > iou_threshold for a box k kept before.

    Args:
      boxes: `[n 4]`, xyxy.
      scores: `[n]`, higher is better; of equals the lower index comes first.
      iou_threshold: in [0, 1], compared as the float64 it is.
      max_outputs: how many boxes are kept at most.
      valid: `[n]`, False for rows that are padding (None: none is). A row with a NaN score is
        padding as well.

    Returns:
      `Kept` of `[max_outputs]`: the first `max_outputs` of `torchvision.ops.nms`.

    Raises:
      ValueError: shapes that do not fit, or a number that is not legal.

    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [8.0, 8.0, 9.0, 9.0]])
    >>> kept = nms(boxes, jnp.array([0.5, 0.9, 0.2]), iou_threshold=0.5, max_outputs=4)
    >>> kept.indices.tolist(), kept.valid.tolist()
    ([1, 2, 0, 0], [True, True, False, False])

    Source: Girshick et al., Rich feature hierarchies (R-CNN), 2014, section 2.2.
    """
    labels = jnp.zeros(scores.shape, jnp.int32)
    return batched_nms(
        boxes, scores, labels, iou_threshold=iou_threshold, max_outputs=max_outputs, valid=valid
    )


def batched_nms(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    *,
    iou_threshold: float,
    max_outputs: int,
    valid: Bool[AnyArray, " n"] | None = None,
) -> Kept:
    """`nms` class by class: only a box of the same label suppresses a box.

    torchvision does the same above 1000 boxes (on the CPU). Up to 1000 it adds label * (largest
    coordinate + 1) to the coordinates and runs one suppression; the sum is rounded, by 1/256 pixel
    at 80 classes and 1333 pixels, so that an IoU beside the threshold may fall on its other side,
    and classes mix where coordinates are negative.

    Args:
      boxes, scores, iou_threshold, valid: as for `nms`; coordinates may lie anywhere.
      labels: `[n]`, any integers.
      max_outputs: how many boxes of all classes together are kept at most.

    Returns:
      `Kept` of `[max_outputs]`: the first `max_outputs` of `torchvision.ops.batched_nms`, up to
      its rounding.

    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]])
    >>> scores, labels = jnp.array([0.5, 0.9]), jnp.array([3, 7])
    >>> batched_nms(boxes, scores, labels, iou_threshold=0.5, max_outputs=2).indices.tolist()
    [1, 0]

    Source: Girshick et al., Rich feature hierarchies (R-CNN), 2014, section 2.2.
    """
    boxes, scores, labels = check_candidates(boxes, scores, labels)
    if not 0 <= iou_threshold <= 1 or max_outputs < 1:
        raise ValueError(
            f"iou_threshold is {iou_threshold} and max_outputs {max_outputs}; they must be in "
            "[0, 1] and >= 1"
        )
    is_candidate = ~jnp.isnan(scores) if valid is None else jnp.asarray(valid) & ~jnp.isnan(scores)
    return _suppress(
        boxes,
        scores,
        labels,
        is_candidate,
        threshold=float32_below(iou_threshold),
        max_outputs=max_outputs,
    )


def check_candidates(
    boxes: AnyArray, scores: AnyArray, labels: AnyArray
) -> tuple[Array, Array, Array]:
    """Boxes [n 4], scores and labels [n] that belong together; a ValueError where they do not."""
    boxes, scores, labels = (
        as_boxes("boxes", boxes),
        jnp.asarray(scores, jnp.float32),
        jnp.asarray(labels),
    )
    shapes = boxes.shape[:-1], scores.shape, labels.shape
    if len(set(shapes)) > 1 or scores.ndim != 1:
        raise ValueError(
            f"boxes, scores and labels have shapes {boxes.shape}, {scores.shape} and "
            f"{labels.shape}; they must be [n, 4], [n] and [n]; jax.vmap takes batches"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are {labels.dtype}; they must be integers")
    return boxes, scores, labels


class _Progress(NamedTuple):
    """The state between two tiles."""

    num_seen: Array  # candidates taken
    num_kept: Array  # boxes kept so far; exceeds the size of the output at the end, at times
    remaining: Array  # [n] scores, -inf for what was taken
    boxes: Array  # [4 c] coordinates of the kept boxes, compacted; c: chunks for max_outputs
    labels: Array  # [c]
    indices: Array  # [c]


def _suppress(
    boxes: Array,
    scores: Array,
    labels: Array,
    valid: Array,
    *,
    threshold: np.float32,
    max_outputs: int,
) -> Kept:
    """Greedy suppression among boxes of equal label."""
    if boxes.shape[0] == 0:
        return Kept(jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, jnp.bool_))
    capacity = -(-max_outputs // _CHUNK) * _CHUNK
    scores = jnp.where(valid & (scores != 0.0), scores, 0.0)  # -0 and 0 are equals.
    lowest = jnp.finfo(jnp.float32).min  # Sorted before padding, even if it is -inf.
    scores = jnp.where(valid, jnp.maximum(scores, lowest), -jnp.inf)
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    num_valid = jnp.sum(valid, dtype=jnp.int32)
    if threshold >= 1.0:  # no IoU is above it: the best, and nothing to compare
        _, best = jax.lax.top_k(scores, min(max_outputs, scores.shape[0]))
        indices = jnp.zeros(max_outputs, jnp.int32).at[: len(best)].set(best)
        is_kept = jnp.arange(max_outputs, dtype=jnp.int32) < num_valid
        return Kept(jnp.where(is_kept, indices, 0), is_kept)

    def settle_tile(state: _Progress) -> _Progress:
        index, remaining = _take_best(state.remaining, scores)
        tile, tile_labels = boxes[index].T, labels[index]  # [4 t], [t]
        alive = state.num_seen + jnp.arange(index.shape[0], dtype=jnp.int32) < num_valid
        alive &= ~_overlaps_kept(state, tile, tile_labels, threshold)
        keep = _settle(alive, _duplicates(tile, tile_labels, tile, tile_labels, threshold))
        place = jnp.where(keep, state.num_kept + jnp.cumsum(keep, dtype=jnp.int32) - 1, capacity)
        return _Progress(
            state.num_seen + index.shape[0],
            state.num_kept + jnp.sum(keep, dtype=jnp.int32),
            remaining,
            state.boxes.at[:, place].set(tile, mode="drop"),
            state.labels.at[place].set(tile_labels, mode="drop"),
            state.indices.at[place].set(index, mode="drop"),
        )

    def is_unfinished(state: _Progress) -> Array:
        return (state.num_seen < num_valid) & (state.num_kept < max_outputs)

    zero, empty = jnp.int32(0), jnp.zeros(capacity, jnp.int32)
    no_boxes, no_labels = jnp.zeros((4, capacity), jnp.float32), jnp.zeros(capacity, labels.dtype)
    start = _Progress(zero, zero, scores, no_boxes, no_labels, empty)
    end = jax.lax.while_loop(is_unfinished, settle_tile, start)
    is_kept = jnp.arange(max_outputs, dtype=jnp.int32) < end.num_kept
    return Kept(jnp.where(is_kept, end.indices[:max_outputs], 0), is_kept)


def _take_best(remaining: Array, scores: Array) -> tuple[Array, Array]:
    """Indices of the next tile, best first, and the scores without them.

    Everything before the last of the tile, in the order of scores and indices, was taken. That
    last one is found by reductions: XLA sorts all of it where it sees a slice of a top-k.
    """
    values, index = jax.lax.top_k(remaining, min(_TILE, remaining.shape[0]))
    last = jnp.min(values)
    last_index = jnp.max(jnp.where(values == last, index, -1))
    is_after = (scores < last) | (
        (scores == last) & (jnp.arange(scores.shape[0], dtype=jnp.int32) > last_index)
    )
    return index.astype(jnp.int32), jnp.where(is_after, scores, -jnp.inf)


def _overlaps_kept(state: _Progress, tile: Array, labels: Array, threshold: np.float32) -> Array:
    """Whether a kept box suppresses a box of the tile, [t]; reads only the filled chunks."""

    def compare_chunk(chunk: Array, overlaps: Array) -> Array:
        start = chunk * _CHUNK
        kept = jax.lax.dynamic_slice_in_dim(state.boxes, start, _CHUNK, axis=1)
        kept_labels = jax.lax.dynamic_slice_in_dim(state.labels, start, _CHUNK)
        is_filled = start + jnp.arange(_CHUNK, dtype=jnp.int32) < state.num_kept
        duplicates = _duplicates(kept, kept_labels, tile, labels, threshold)
        return overlaps | jnp.any(duplicates & is_filled[:, None], axis=0)

    num_chunks = (state.num_kept + _CHUNK - 1) // _CHUNK
    none = jnp.zeros(labels.shape, jnp.bool_)
    return jax.lax.fori_loop(0, num_chunks, compare_chunk, none)


def _duplicates(
    a: Array, labels_a: Array, b: Array, labels_b: Array, threshold: np.float32
) -> Array:
    """Pairs of one label that overlap by more than the threshold: [4 n], [4 m] -> [n m]."""
    iou = iou_of_coordinates(tuple(a[:, :, None]), tuple(b[:, None, :]))
    return (iou > threshold) & (labels_a[:, None] == labels_b[None, :])


def _settle(alive: Array, duplicates: Array) -> Array:
    """Which boxes of a sorted tile are kept, [t], from duplicates [t t].

    Kept = alive and suppressed by none that is kept and better. Each round settles at least one
    more box for good, the best ones first, so the repetition ends, and at the greedy answer.
    """
    rank = jnp.arange(alive.shape[0], dtype=jnp.int32)
    suppresses = duplicates & (rank[:, None] < rank[None, :])

    def survivors(keep: Array) -> Array:
        return alive & ~jnp.any(suppresses & keep[:, None], axis=0)

    def two_rounds(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        once = survivors(carry[0])
        twice = survivors(once)
        return twice, jnp.any(once != twice)

    keep, _ = jax.lax.while_loop(lambda carry: carry[1], two_rounds, (alive, jnp.any(alive)))
    return keep


def float32_below(value: float) -> np.float32:
    """The largest float32 that is not above a number.

    A float32 IoU is above a float64 threshold exactly if it is above this; 0.7 rounded to float32
    is not 0.7, and an IoU of 7/10 would be judged wrongly.
    """
    rounded = np.float32(value)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf))
