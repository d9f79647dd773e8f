"""Matrix non-maximum suppression: all scores are lowered at once, without a loop over boxes."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Integer, Real

from harmonic_jax.ops.boxes import AnyArray, pairwise_iou
from harmonic_jax.ops.rescored import Rescored, candidate_scores, take_best
from harmonic_jax.ops.soft_nms import MIN_SCORE

MAX_CANDIDATES = 1000


def matrix_nms(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    *,
    sigma: float,
    max_outputs: int,
    min_score: float = MIN_SCORE,
    max_candidates: int = MAX_CANDIDATES,
    valid: Bool[AnyArray, " n"] | None = None,
) -> Rescored:
    """Lower each score by the worst that a better box of the class does to it.

    With the boxes of a class in the order of their scores, c_i = max over k < i of IoU(k, i) tells
    how far box i is suppressed itself, and
    s_j <- s_j min(1, min over i < j of exp(-(IoU(i, j)^2 - c_i^2) / sigma)).
    It does in one step what Gaussian soft-NMS does box after box, approximately: a suppressor
    counts less the more it is suppressed.

    Args:
      boxes: `[n 4]`, xyxy.
      scores: `[n]`, >= 0; of equals the lower index counts as the better.
      labels: `[n]`: only boxes of the same label act on each other.
      sigma: > 0; the smaller, the harder the suppression. The authors' is 0.5 (their code has its
        inverse, 2).
      max_outputs: how many boxes are returned at most.
      min_score: boxes whose score is not above it, before or after, are dropped.
      max_candidates: the boxes with the best scores that are looked at; memory grows with the
        square of it.
      valid: `[n]`, False for rows that are padding (None: none is). A row with a NaN score is
        padding as well.

    Returns:
      `Rescored` of `[max_outputs]`; the boxes are those of the input.

    >>> import jax.numpy as jnp
    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
    >>> scores, labels = jnp.array([0.5, 0.8]), jnp.zeros(2, int)
    >>> found = matrix_nms(boxes, scores, labels, sigma=0.5, max_outputs=2)
    >>> found.indices.tolist(), [round(float(s), 3) for s in found.scores]  # 0.5 exp(-2)
    ([1, 0], [0.8, 0.068])

    Source: Wang et al., SOLOv2, 2020, section 3.3, with boxes in place of masks.
    """
    boxes, labels = jnp.asarray(boxes, jnp.float32), jnp.asarray(labels)
    candidates = candidate_scores(scores, valid, min_score=min_score)
    boxes = jnp.where(jnp.isfinite(candidates)[:, None], boxes, 0.0)
    best, rows = jax.lax.top_k(candidates, min(max_candidates, boxes.shape[0]))
    is_candidate = jnp.isfinite(best)
    boxes, labels = boxes[rows], labels[rows]
    rank = jnp.arange(best.shape[0], dtype=jnp.int32)
    acts = (rank[:, None] < rank[None, :]) & (labels[:, None] == labels[None, :])
    squared = jnp.where(acts, jnp.square(pairwise_iou(boxes, boxes)), 0.0)
    suppressed = jnp.max(squared, axis=0, initial=0.0)  # c^2
    exponent = jnp.where(acts, (suppressed[:, None] - squared) / sigma, 0.0)
    decay = jnp.exp(jnp.min(exponent, axis=0, initial=0.0))
    lowered = jnp.where(is_candidate, best * decay, -jnp.inf)
    return take_best(boxes, lowered, rows, min_score=min_score, max_outputs=max_outputs)
