"""From the softmax head and the boxes of SSD or RefineDet to detections, with static shapes."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Real

from harmonic_jax.ops import SuppressionMethod
from harmonic_jax.ops.boxes import AnyArray, clip_boxes
from harmonic_jax.postprocess.selection import select_detections
from harmonic_jax.structures import Detections


def postprocess_multibox(
    cls_logits: Real[AnyArray, "*b n c"],
    boxes: Real[AnyArray, "*b n 4"],
    image_size: Real[AnyArray, "*b 2"],
    *,
    score_threshold: float,
    topk_per_class: int,
    nms_iou: float,
    max_detections: int,
    is_candidate: Bool[AnyArray, "*b n"] | None = None,
    suppression: SuppressionMethod = "class",
    nms_sigma: float = 0.5,
) -> Detections:
    """The detections of one image, or of each image of a batch.

    Of each class the `topk_per_class` boxes with the highest scores softmax(logits) above
    score_threshold, clipped to the image, pass non-maximum suppression; the best
    `max_detections` of all classes stay.

    Args:
      cls_logits: `[*b n k+1]`, background last; `*b` is nothing (one image) or one batch
        dimension.
      boxes: `[*b n 4]`, decoded, xyxy in pixels.
      image_size: `[*b 2]`, height and width in pixels.
      score_threshold: in [0, 1].
      topk_per_class: >= 1.
      nms_iou: of boxes of one class that overlap by more, the best stays; in [0, 1].
      max_detections: d, >= 1.
      is_candidate: `[*b n]`, False for boxes that are left out (None: none is).
      suppression, nms_sigma: another way than class-wise, see `select_detections`.

    Returns:
      `Detections` `[*b d]`, best first; rows that are not valid hold zeros. A box that is not
      finite or has a NaN logit is never detected.

    Raises:
      ValueError: more than one batch dimension.

    >>> import jax.numpy as jnp
    >>> detections = postprocess_multibox(
    ...     jnp.array([[0.0, 4.0, 0.0]]), jnp.array([[2.0, 2.0, 6.0, 9.0]]), jnp.array([8.0, 8.0]),
    ...     score_threshold=0.1, topk_per_class=10, nms_iou=0.5, max_detections=2,
    ... )
    >>> detections.boxes[0].tolist(), detections.labels[0].tolist(), detections.valid.tolist()
    ([2.0, 2.0, 6.0, 8.0], 1, [True, False])

    Source: Liu et al., SSD, 2016, section 3.
    """
    if is_candidate is None:
        is_candidate = jnp.ones(boxes.shape[:-1], jnp.bool_)
    one_image = partial(
        _postprocess_image,
        score_threshold=score_threshold,
        topk=topk_per_class,
        nms_iou=nms_iou,
        max_detections=max_detections,
        suppression=suppression,
        nms_sigma=nms_sigma,
    )
    if image_size.ndim == 1:
        return one_image(cls_logits, boxes, image_size, is_candidate)
    if image_size.ndim == 2:
        return jax.vmap(one_image)(cls_logits, boxes, image_size, is_candidate)
    raise ValueError(f"image_size has shape {image_size.shape}; it must be [2] or [b 2]")


def _postprocess_image(
    cls_logits: AnyArray,
    boxes: AnyArray,
    image_size: AnyArray,
    is_candidate: AnyArray,
    *,
    score_threshold: float,
    topk: int,
    nms_iou: float,
    max_detections: int,
    suppression: SuppressionMethod,
    nms_sigma: float,
) -> Detections:
    num_boxes, num_classes = cls_logits.shape[0], cls_logits.shape[1] - 1
    is_candidate &= jnp.isfinite(boxes).all(axis=-1)
    boxes, cls_logits = (
        jnp.where(is_candidate[:, None], jnp.asarray(array, jnp.float32), 0.0)
        for array in (boxes, cls_logits)
    )
    probs = jax.nn.softmax(cls_logits, axis=-1)[:, :-1]
    # NaN compares as False.
    is_scored = is_candidate[:, None] & (probs > score_threshold)
    # A class at a time: [k t], best first. Scores of -1 spare the selection work.
    scores, rows = jax.lax.top_k(jnp.where(is_scored, probs, -1.0).T, min(topk, num_boxes))
    labels = jnp.broadcast_to(jnp.arange(num_classes, dtype=jnp.int32)[:, None], rows.shape)
    scores, rows, labels = scores.reshape(-1), rows.reshape(-1), labels.reshape(-1)
    return select_detections(
        clip_boxes(boxes[rows], image_size),
        scores,
        labels,
        is_candidate=scores > score_threshold,
        suppression=suppression,
        nms_iou=nms_iou,
        sigma=nms_sigma,
        min_score=score_threshold,
        max_detections=max_detections,
    )
