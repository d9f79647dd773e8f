"""From scored boxes to detections: the last step of every detector, by the chosen suppression."""

from jaxtyping import Bool, Integer, Real

from harmonic_jax.ops import Suppression, SuppressionMethod, suppress
from harmonic_jax.ops.boxes import AnyArray
from harmonic_jax.structures import Detections

MIN_SCORE = 0.001
"""Of methods that lower scores: what they lower is kept while it is above this."""


def select_detections(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    *,
    is_candidate: Bool[AnyArray, " n"],
    suppression: SuppressionMethod,
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
      suppression: see `harmonic_jax.ops.Suppression`.
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

    Source: see `harmonic_jax.ops.Suppression`.
    """
    settings = Suppression(
        suppression, nms_iou, sigma, min(min_score, MIN_SCORE), max_outputs=max_detections
    )
    found = suppress(boxes, scores, labels, settings, valid=is_candidate)
    return Detections(found.boxes, found.scores, found.labels, found.valid)
