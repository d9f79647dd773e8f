"""Soft non-maximum suppression: what overlaps a better box loses score, not its place."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer, Real

from harmonic_jax.ops.boxes import AnyArray, iou_of_coordinates
from harmonic_jax.ops.nms import float32_below
from harmonic_jax.ops.rescored import Rescored, candidate_scores, nothing

MIN_SCORE = 0.001


def soft_nms_linear(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    *,
    iou_threshold: float,
    max_outputs: int,
    min_score: float = MIN_SCORE,
    valid: Bool[AnyArray, " n"] | None = None,
) -> Rescored:
    """Lower the scores of boxes that overlap a better one of their class by more than a threshold.

    Again and again the best box m left is taken, and every box b left of its class gets
    s_b <- s_b (1 - IoU(m, b)) where IoU(m, b) > iou_threshold.

    Args:
      boxes: `[n 4]`, xyxy.
      scores: `[n]`, >= 0; of equals the lower index comes first.
      labels: `[n]`: only boxes of the same label act on each other.
      iou_threshold: in [0, 1], compared as the float64 it is.
      max_outputs: how many boxes are taken at most.
      min_score: boxes whose score is not above it, at first or later, are dropped.
      valid: `[n]`, False for rows that are padding (None: none is). A row with a NaN score is
        padding as well.

    Returns:
      `Rescored` of `[max_outputs]`; the boxes are those of the input.

    >>> import jax.numpy as jnp
    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [8.0, 8.0, 9.0, 9.0]])
    >>> scores, labels = jnp.array([0.5, 0.8, 0.25]), jnp.zeros(3, int)
    >>> soft = soft_nms_linear(boxes, scores, labels, iou_threshold=0.5, max_outputs=3)
    >>> soft.indices.tolist(), [round(float(s), 3) for s in soft.scores]
    ([1, 2, 0], [0.8, 0.25, 0.125])

    Source: Bodla et al., Soft-NMS, 2017, section 3; the comparison is that of the authors' code
    (the paper writes >=).
    """
    threshold = float32_below(iou_threshold)

    def decay(iou: Array) -> Array:
        return jnp.where(iou > threshold, 1.0 - iou, 1.0)

    return _soft_nms(
        boxes, candidate_scores(scores, valid, min_score=min_score), labels, decay,
        min_score=min_score, max_outputs=max_outputs,
    )  # fmt: skip


def soft_nms_gaussian(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    *,
    sigma: float,
    max_outputs: int,
    min_score: float = MIN_SCORE,
    valid: Bool[AnyArray, " n"] | None = None,
) -> Rescored:
    """`soft_nms_linear` with a smooth decay and no threshold: s_b <- s_b exp(-IoU(m, b)^2 / sigma).

    Args:
      boxes, scores, labels: as for `soft_nms_linear`.
      sigma: > 0; the smaller, the harder the suppression. The paper's is 0.5.
      max_outputs, min_score, valid: as for `soft_nms_linear`.

    Returns:
      `Rescored` of `[max_outputs]`; the boxes are those of the input.

    >>> import jax.numpy as jnp
    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
    >>> scores, labels = jnp.array([0.5, 0.8]), jnp.zeros(2, int)
    >>> soft = soft_nms_gaussian(boxes, scores, labels, sigma=0.5, max_outputs=2)
    >>> soft.indices.tolist(), [round(float(s), 3) for s in soft.scores]  # 0.5 exp(-2)
    ([1, 0], [0.8, 0.068])

    Source: Bodla et al., Soft-NMS, 2017, section 3.
    """
    return _soft_nms(
        boxes,
        candidate_scores(scores, valid, min_score=min_score),
        labels,
        lambda iou: jnp.exp(-jnp.square(iou) / sigma),
        min_score=min_score,
        max_outputs=max_outputs,
    )


class _Progress(NamedTuple):
    """The state between two boxes."""

    num_taken: Array
    scores: Array  # [n] what is left of them, -inf for boxes that are taken or out
    taken_scores: Array  # [max_outputs]
    taken: Array  # [max_outputs] indices


def _soft_nms(
    boxes: AnyArray,
    scores: Array,
    labels: AnyArray,
    decay: Callable[[Array], Array],
    *,
    min_score: float,
    max_outputs: int,
) -> Rescored:
    """A class's boxes never act on another's, so all classes share one loop, best box first."""
    boxes, labels = jnp.asarray(boxes, jnp.float32), jnp.asarray(labels)
    empty = nothing(max_outputs)
    if boxes.shape[0] == 0:
        return empty
    boxes = jnp.where(jnp.isfinite(scores)[:, None], boxes, 0.0)
    coordinates = tuple(boxes.T)

    def take_one(state: _Progress) -> _Progress:
        best = jnp.argmax(state.scores).astype(jnp.int32)
        iou = iou_of_coordinates(tuple(c[best, None] for c in coordinates), coordinates)
        is_left = jnp.isfinite(state.scores)
        factor = jnp.where(is_left & (labels == labels[best]), decay(iou), 1.0)
        left = jnp.where(is_left, state.scores * factor, -jnp.inf)
        return _Progress(
            state.num_taken + 1,
            jnp.where(left > min_score, left, -jnp.inf).at[best].set(-jnp.inf),
            state.taken_scores.at[state.num_taken].set(state.scores[best]),
            state.taken.at[state.num_taken].set(best),
        )

    def is_unfinished(state: _Progress) -> Array:
        return (state.num_taken < max_outputs) & (jnp.max(state.scores) > min_score)

    start = _Progress(jnp.int32(0), scores, empty.scores, empty.indices)
    end = jax.lax.while_loop(is_unfinished, take_one, start)
    valid = jnp.arange(max_outputs, dtype=jnp.int32) < end.num_taken
    return Rescored(
        jnp.where(valid[:, None], boxes[end.taken], 0.0), end.taken_scores, end.taken, valid
    )
