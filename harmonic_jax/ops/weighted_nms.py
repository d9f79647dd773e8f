"""Box voting: non-maximum suppression whose boxes are means of what they suppressed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Real

from harmonic_jax.ops.boxes import AnyArray, pairwise_iou
from harmonic_jax.ops.nms import batched_nms, float32_below, is_real
from harmonic_jax.ops.rescored import Rescored, nothing


def weighted_nms(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    *,
    iou_threshold: float,
    max_outputs: int,
    valid: Bool[AnyArray, " n"] | None = None,
) -> Rescored:
    """`batched_nms`, then each box that is kept becomes the mean of the boxes it stands for.

    b_k <- (sum over j of s_j b_j) / (sum over j of s_j), over the boxes j of its class with
    IoU(k, j) > iou_threshold, and k itself. A box may vote for several. Scores stay.

    Args:
      boxes: `[n 4]`, xyxy. One that is not finite stays as it is and has no vote.
      scores: `[n]`, >= 0; of equals the lower index comes first.
      labels: `[n]`, any integers.
      iou_threshold: in [0, 1], of the suppression and of the vote.
      max_outputs: how many boxes of all classes together are kept at most.
      valid: `[n]`, False for rows that are padding (None: none is). A row with a NaN score is
        padding as well.

    Returns:
      `Rescored` of `[max_outputs]`; indices and scores are those of `batched_nms`.

    >>> import jax.numpy as jnp
    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [8.0, 8.0, 9.0, 9.0]])
    >>> scores, labels = jnp.array([0.25, 0.75, 0.2]), jnp.zeros(3, int)
    >>> found = weighted_nms(boxes, scores, labels, iou_threshold=0.5, max_outputs=2)
    >>> found.boxes.tolist(), found.indices.tolist()
    ([[0.0, 0.0, 4.0, 3.25], [8.0, 8.0, 9.0, 9.0]], [1, 2])

    Source: Gidaris and Komodakis, Object detection via a multi-region and semantic
    segmentation-aware CNN model, 2015, section 4 (bounding box voting).
    """
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    labels = jnp.asarray(labels)
    is_candidate = is_real(scores, valid)
    boxes = jnp.where(is_candidate[:, None], boxes, 0.0)
    scores = jnp.where(is_candidate, scores, 0.0)
    kept = batched_nms(
        boxes,
        scores,
        labels,
        iou_threshold=iou_threshold,
        max_outputs=max_outputs,
        valid=is_candidate,
    )
    if boxes.shape[0] == 0:
        return nothing(max_outputs)
    own = boxes[kept.indices]
    is_voter = is_candidate & jnp.isfinite(boxes).all(axis=1)
    boxes = jnp.where(is_voter[:, None], boxes, 0.0)  # NaN times 0 is NaN.
    votes = pairwise_iou(own, boxes) > float32_below(iou_threshold)
    votes &= labels[kept.indices, None] == labels[None, :]
    votes |= kept.indices[:, None] == jnp.arange(boxes.shape[0], dtype=jnp.int32)[None, :]
    mean = _weighted_mean(jnp.where(votes & is_voter[None, :], scores[None, :], 0.0), boxes)
    mean = jnp.where(jnp.isfinite(mean), mean, own)  # all scores 0
    return Rescored(
        jnp.where(kept.valid[:, None], mean, 0.0),
        jnp.where(kept.valid, scores[kept.indices], 0.0),
        kept.indices,
        kept.valid,
    )


def _weighted_mean(weights: Float[Array, "m n"], boxes: Float[Array, "n 4"]) -> Array:
    # Accelerators multiply float32 matrices in fewer bits, unless told not to.
    total = jnp.matmul(weights, boxes, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.sum(weights, axis=1, keepdims=True)
