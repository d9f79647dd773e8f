"""From scored boxes to detections: the last step of every detector, by the chosen suppression."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Bool, Integer, Real

from harmonic_jax.ops.boxes import AnyArray
from harmonic_jax.ops.matrix_nms import matrix_nms
from harmonic_jax.ops.nms import Kept, batched_nms, nms
from harmonic_jax.ops.rescored import Rescored
from harmonic_jax.ops.soft_nms import MIN_SCORE, soft_nms_gaussian, soft_nms_linear
from harmonic_jax.ops.weighted_nms import weighted_nms
from harmonic_jax.structures import Detections

Suppression = Literal["class", "agnostic", "soft_linear", "soft_gaussian", "matrix", "weighted"]


def select_detections(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    *,
    is_candidate: Bool[AnyArray, " n"],
    suppression: Suppression,
    nms_iou: float,
    sigma: float,
    min_score: float,
    max_detections: int,
) -> Detections:
    """The detections of an image.

    Args:
      boxes: `[n 4]`, xyxy in pixels, inside the image.
      scores: `[n]`.
      labels: `[n]`, 0..k-1.
      is_candidate: `[n]`, False for rows that are not detected.
      suppression: `class`: within each class the best of boxes that overlap stays; `agnostic`:
        of all classes together; `soft_linear`, `soft_gaussian`, `matrix`: what overlaps a better
        box loses score; `weighted`: `class`, and the boxes that stay are weighted means.
      nms_iou: overlap that counts, in [0, 1]; not used by `soft_gaussian` and `matrix`.
      sigma: > 0, how soft `soft_gaussian` and `matrix` are; not used by the others.
      min_score: the detector's score threshold. Of the methods that lower scores, what they
        lower is kept while it is above 0.001, or above this where it is less.
      max_detections: d, >= 1.

    Returns:
      `Detections` `[d]`, best first; rows that are not valid hold zeros.

    >>> import jax.numpy as jnp
    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]])
    >>> scores, labels = jnp.array([0.5, 0.9]), jnp.array([3, 7])
    >>> found = select_detections(
    ...     boxes, scores, labels, is_candidate=scores > 0.0, suppression="agnostic",
    ...     nms_iou=0.5, sigma=0.5, min_score=0.05, max_detections=2,
    ... )
    >>> found.labels.tolist(), found.valid.tolist()
    ([7, 0], [True, False])

    Source: the functions of `harmonic_jax.ops` that are called.
    """
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    found: Kept | Rescored
    lowest = min(min_score, MIN_SCORE)
    by_overlap: dict[str, Any] = {
        "iou_threshold": nms_iou,
        "max_outputs": max_detections,
        "valid": is_candidate,
    }
    by_sigma: dict[str, Any] = {
        "sigma": sigma,
        "max_outputs": max_detections,
        "min_score": lowest,
        "valid": is_candidate,
    }
    match suppression:
        case "class":
            found = batched_nms(boxes, scores, labels, **by_overlap)
        case "agnostic":
            found = nms(boxes, scores, **by_overlap)
        case "soft_linear":
            found = soft_nms_linear(boxes, scores, labels, min_score=lowest, **by_overlap)
        case "soft_gaussian":
            found = soft_nms_gaussian(boxes, scores, labels, **by_sigma)
        case "matrix":
            found = matrix_nms(boxes, scores, labels, **by_sigma)
        case "weighted":
            found = weighted_nms(boxes, scores, labels, **by_overlap)
        case _:
            raise ValueError(f"suppression is {suppression!r}; it must be one of {Suppression}")
    if isinstance(found, Kept):
        boxes = jnp.where(found.valid[:, None], boxes[found.indices], 0.0)
        scores = jnp.where(found.valid, scores[found.indices], 0.0)
    else:
        boxes, scores = found.boxes, found.scores
    labels = jnp.where(found.valid, labels[found.indices], 0)
    return Detections(boxes, scores, labels, found.valid)
