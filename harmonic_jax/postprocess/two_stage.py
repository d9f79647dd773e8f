"""From what the RoI head says about proposals to final boxes, with static shapes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from harmonic_jax.ops import SuppressionMethod
from harmonic_jax.ops.box_coder import Weights, decode_boxes
from harmonic_jax.ops.boxes import AnyArray, clip_boxes
from harmonic_jax.postprocess.proposals import Proposals
from harmonic_jax.postprocess.selection import select_detections
from harmonic_jax.structures import Detections


def postprocess_rois(
    cls_logits: Real[AnyArray, "*b p c"],
    deltas: Real[AnyArray, "*b p c 4"],
    proposals: Proposals,
    image_size: Real[AnyArray, "*b 2"],
    *,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    min_size: float,
    weights: Weights,
    suppression: SuppressionMethod = "class",
    nms_sigma: float = 0.5,
) -> Detections:
    """The detections of one image, or of each image of a batch.

    Each proposal is decoded once for every object class. Of the boxes, clipped to the image, with
    softmax(logits) > score_threshold and sides of at least min_size, class-wise non-maximum
    suppression keeps at most `max_detections`.

    Args:
      cls_logits: `[*b p c]`, c = k + 1 classes, background last; `*b` is nothing (one image) or
        one batch dimension.
      deltas: `[*b p c 4]`; those of background are not looked at.
      proposals: `[*b p]`, what the head was shown.
      image_size: `[*b 2]`, height and width in pixels.
      score_threshold: in [0, 1].
      nms_iou: of boxes of one class that overlap by more, the best stays; in [0, 1].
      max_detections: d, >= 1.
      min_size: pixels.
      weights: those of `decode_boxes`.
      suppression, nms_sigma: another way than class-wise, see `select_detections`.

    Returns:
      `Detections` `[*b d]`, best first; rows that are not valid hold zeros. A proposal with a NaN
      logit and boxes that are not finite are never detected.

    Raises:
      ValueError: more than one batch dimension.

    >>> import jax.numpy as jnp
    >>> proposals = Proposals(
    ...     jnp.array([[2.0, 2.0, 6.0, 9.0]]), jnp.array([0.7]), jnp.array([True])
    ... )
    >>> detections = postprocess_rois(
    ...     jnp.array([[4.0, -4.0, 0.0]]), jnp.zeros((1, 3, 4)), proposals, jnp.array([8.0, 8.0]),
    ...     score_threshold=0.05, nms_iou=0.5, max_detections=2, min_size=0.01,
    ...     weights=(10.0, 10.0, 5.0, 5.0),
    ... )
    >>> detections.boxes[0].tolist(), detections.labels.tolist(), detections.valid.tolist()
    ([2.0, 2.0, 6.0, 8.0], [0, 0], [True, False])

    Source: Girshick, Fast R-CNN, 2015, section 3.1.
    """
    one_image = partial(
        _postprocess_image,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        max_detections=max_detections,
        min_size=min_size,
        weights=weights,
        suppression=suppression,
        nms_sigma=nms_sigma,
    )
    if image_size.ndim == 1:
        return one_image(cls_logits, deltas, proposals, image_size)
    if image_size.ndim == 2:
        return jax.vmap(one_image)(cls_logits, deltas, proposals, image_size)
    raise ValueError(f"image_size has shape {image_size.shape}; it must be [2] or [b 2]")


def _postprocess_image(
    cls_logits: AnyArray,
    deltas: AnyArray,
    proposals: Proposals,
    image_size: AnyArray,
    *,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    min_size: float,
    weights: Weights,
    suppression: SuppressionMethod,
    nms_sigma: float,
) -> Detections:
    num_proposals, num_outputs = cls_logits.shape
    num_classes = num_outputs - 1
    scores = jax.nn.softmax(cls_logits.astype(jnp.float32), axis=-1)[:, :num_classes]
    shape = (num_proposals, num_classes, 4)
    boxes = decode_boxes(
        deltas[:, :num_classes], jnp.broadcast_to(proposals.boxes[:, None], shape), weights=weights
    )
    is_finite = jnp.isfinite(boxes).all(axis=-1)
    boxes = clip_boxes(boxes, jnp.broadcast_to(image_size[None], (num_proposals, 2)))
    is_large = (boxes[..., 2:] - boxes[..., :2] >= min_size).all(axis=-1)
    is_candidate = (scores > score_threshold) & is_finite & is_large & proposals.valid[:, None]

    return select_detections(
        boxes.reshape(-1, 4),
        scores.reshape(-1),
        np.tile(np.arange(num_classes, dtype=np.int32), num_proposals),
        is_candidate=is_candidate.reshape(-1),
        suppression=suppression,
        nms_iou=nms_iou,
        sigma=nms_sigma,
        min_score=score_threshold,
        max_detections=max_detections,
    )


def take_masks(logits: Float[Array, "*b d m m c"], detections: Detections) -> Detections:
    """Detections with the masks of their classes.

    Args:
      logits: `[*b d m m c]` for each detection and class.
      detections: `[*b d]`.

    Returns:
      The detections with `masks` `[*b d m m]`: probabilities, and 0 where not valid.

    >>> import jax.numpy as jnp
    >>> found = Detections(
    ...     jnp.zeros((2, 4)), jnp.ones(2), jnp.array([1, 0]), jnp.array([True, False])
    ... )
    >>> take_masks(jnp.zeros((2, 1, 1, 3)).at[0, 0, 0, 1].set(40.0), found).masks.ravel().tolist()
    [1.0, 0.0]

    Source: He et al., Mask R-CNN, 2017, section 3.
    """
    rows = detections.labels[..., None, None, None]
    own = jnp.take_along_axis(logits, rows, axis=-1)[..., 0].astype(jnp.float32)
    masks = jnp.where(detections.valid[..., None, None], jax.nn.sigmoid(own), 0.0)
    return Detections(
        detections.boxes, detections.scores, detections.labels, detections.valid, masks
    )
