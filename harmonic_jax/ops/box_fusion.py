"""Weighted boxes fusion: one set of boxes from several looks at the same image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer, Real

from harmonic_jax.ops.boxes import AnyArray, iou_of_coordinates
from harmonic_jax.ops.nms import float32_below
from harmonic_jax.ops.rescored import Rescored, candidate_scores, nothing, take_best


def fuse_boxes(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    *,
    num_views: int,
    iou_threshold: float,
    max_outputs: int,
    min_score: float = 0.0,
    valid: Bool[AnyArray, " n"] | None = None,
) -> Rescored:
    """Replace the boxes that several views give for an object by their weighted mean.

    Taken best first, a box joins the cluster of its class whose fused box it overlaps best, if
    by more than iou_threshold, and opens a new one otherwise. A cluster of t boxes has the fused
    box (sum of s_i b_i) / (sum of s_i), renewed with each box that joins, and at the end the
    score (sum of s_i) / t * min(t, num_views) / num_views: what only some views saw counts less.

    Args:
      boxes: `[n 4]`, xyxy, of all views one after the other.
      scores: `[n]`, > 0; of equals the lower index comes first.
      labels: `[n]`: only boxes of the same label are fused.
      num_views: >= 1, how many views there were, whether or not they saw anything.
      iou_threshold: in [0, 1]; the authors' is 0.55.
      max_outputs: how many fused boxes are returned at most, the best ones.
      min_score: boxes whose score is not above it take no part; >= 0.
      valid: `[n]`, False for rows that are padding (None: none is). A row with a NaN score is
        padding as well.

    Returns:
      `Rescored` of `[max_outputs]`; indices name the first box of each cluster, its best. Of
      clusters with equal scores the one opened first comes first.

    >>> import jax.numpy as jnp
    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [9.0, 9.0, 12.0, 12.0], [0.0, 0.0, 4.0, 3.0]])
    >>> scores, labels = jnp.array([0.75, 0.5, 0.25]), jnp.zeros(3, int)
    >>> fused = fuse_boxes(
    ...     boxes, scores, labels, num_views=2, iou_threshold=0.55, max_outputs=2
    ... )
    >>> fused.boxes.tolist(), fused.scores.tolist()
    ([[0.0, 0.0, 4.0, 3.75], [9.0, 9.0, 12.0, 12.0]], [0.5, 0.25])

    Source: Solovyev et al., Weighted boxes fusion, 2021, section 3.
    """
    boxes, labels = jnp.asarray(boxes, jnp.float32), jnp.asarray(labels)
    number = boxes.shape[0]
    if number == 0:
        return nothing(max_outputs)
    candidates = candidate_scores(scores, valid, min_score=min_score)
    ordered, order = jax.lax.top_k(candidates, number)
    boxes = jnp.where(jnp.isfinite(candidates)[:, None], boxes, 0.0)[order]
    end = jax.lax.fori_loop(
        0,
        jnp.sum(jnp.isfinite(ordered), dtype=jnp.int32),
        lambda i, state: _join(
            state, boxes[i], ordered[i], labels[order[i]], order[i], float32_below(iou_threshold)
        ),
        _Clusters(
            jnp.int32(0),
            jnp.zeros((4, number), jnp.float32),
            jnp.zeros(number, jnp.float32),
            jnp.zeros(number, jnp.int32),
            jnp.zeros(number, labels.dtype),
            jnp.zeros(number, jnp.int32),
        ),
    )
    size = jnp.maximum(end.sizes, 1).astype(jnp.float32)
    fused = end.sums / size * jnp.minimum(size, num_views) / num_views
    is_cluster = jnp.arange(number, dtype=jnp.int32) < end.number
    return take_best(
        _fused(end).T,
        jnp.where(is_cluster, fused, -jnp.inf),
        end.first,
        min_score=0.0,
        max_outputs=max_outputs,
    )


class _Clusters(NamedTuple):
    """The state between two boxes; a place for as many clusters as there are boxes."""

    number: Array
    weighted: Array  # [4 n] sum of s_i b_i
    sums: Array  # [n] sum of s_i
    sizes: Array  # [n] boxes in it
    labels: Array  # [n]
    first: Array  # [n] index of the first box


def _fused(state: _Clusters) -> Array:
    return state.weighted / jnp.where(state.sums > 0.0, state.sums, 1.0)[None, :]


def _join(
    state: _Clusters, box: Array, score: Array, label: Array, index: Array, threshold: np.float32
) -> _Clusters:
    iou = iou_of_coordinates(tuple(_fused(state)), tuple(box[:, None]))
    can_join = (iou > threshold) & (state.labels == label)  # nothing overlaps an unused place
    best = jnp.argmax(jnp.where(can_join, iou, -1.0)).astype(jnp.int32)
    is_new = ~can_join[best]
    place = jnp.where(is_new, state.number, best)
    return _Clusters(
        state.number + is_new.astype(jnp.int32),
        state.weighted.at[:, place].add(score * box),
        state.sums.at[place].add(score),
        state.sizes.at[place].add(1),
        state.labels.at[place].set(label),
        state.first.at[place].set(jnp.where(is_new, index.astype(jnp.int32), state.first[place])),
    )
