"""From raw predictions of a region proposal network to proposals, with static shapes."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from harmonic_jax.ops.box_coder import Weights, decode_boxes
from harmonic_jax.ops.boxes import AnyArray, clip_boxes
from harmonic_jax.ops.nms import batched_nms
from harmonic_jax.structures import Predictions


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first, padded to a fixed number."""

    boxes: Float[Array, "*b p 4"]  # xyxy in pixels
    scores: Float[Array, "*b p"]  # objectness, in [0, 1]
    valid: Bool[Array, "*b p"]


def select_proposals(
    predictions: Predictions,
    anchors: Sequence[Real[AnyArray, "_ 4"]],
    image_size: Real[AnyArray, "*b 2"],
    *,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_iou: float,
    min_size: float = 1e-3,
    score_threshold: float = 0.0,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Proposals:
    """The proposals of one image, or of each image of a batch.

    On each level the `pre_nms_topk` best anchors are decoded and clipped to the image. Of those
    that are large enough and have a score sigmoid(logit) >= score_threshold, non-maximum
    suppression within each level and over all levels keeps the `post_nms_topk` best.

    Args:
      predictions: objectness logits `[*b n_l 1]` and deltas `[*b n_l 4]` of each level; `*b` is
        nothing (one image) or one batch dimension.
      anchors: `[n_l 4]` for each level, xyxy in pixels.
      image_size: `[*b 2]`, height and width in pixels.
      pre_nms_topk: of one level, >= 1.
      post_nms_topk: p, of all levels together, >= 1.
      nms_iou: of boxes of one level that overlap by more, the best stays; in [0, 1].
      min_size: least width and height of a clipped box, pixels.
      score_threshold: in [0, 1].
      weights: those of `decode_boxes`.

    Returns:
      `Proposals` `[*b p]`; rows that are not valid hold zeros. An anchor with NaN in its logit or
      deltas is never proposed. Proposals are constants: no gradient flows
      to logits and deltas.

    Raises:
      ValueError: more than one batch dimension.

    >>> import jax.numpy as jnp
    >>> anchors = [jnp.array([[2.0, 2.0, 6.0, 9.0], [2.0, 2.0, 6.0, 7.5], [0.0, 0.0, 2.0, 2.0]])]
    >>> logits = jnp.array([[3.0], [2.0], [1.0]])
    >>> proposals = select_proposals(
    ...     Predictions((logits,), (jnp.zeros((3, 4)),)), anchors, jnp.array([8.0, 8.0]),
    ...     pre_nms_topk=3, post_nms_topk=3, nms_iou=0.7,
    ... )
    >>> proposals.boxes[proposals.valid].tolist()
    [[2.0, 2.0, 6.0, 8.0], [0.0, 0.0, 2.0, 2.0]]

    Source: Ren et al., Faster R-CNN, 2015, section 3.3; Lin et al., Feature Pyramid Networks, 2017.
    """
    one_image = partial(
        _select_in_image,
        anchors=tuple(jnp.asarray(level, jnp.float32) for level in anchors),
        pre_nms_topk=pre_nms_topk,
        post_nms_topk=post_nms_topk,
        nms_iou=nms_iou,
        min_size=min_size,
        score_threshold=score_threshold,
        weights=weights,
    )
    predictions = jax.lax.stop_gradient(predictions)
    if image_size.ndim == 1:
        return one_image(predictions, image_size)
    if image_size.ndim == 2:
        return jax.vmap(one_image)(predictions, image_size)
    raise ValueError(f"image_size has shape {image_size.shape}; it must be [2] or [b 2]")


def _select_in_image(
    predictions: Predictions,
    image_size: AnyArray,
    *,
    anchors: tuple[Array, ...],
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_iou: float,
    min_size: float,
    score_threshold: float,
    weights: Weights,
) -> Proposals:
    level_boxes, level_scores = [], []
    for logits, deltas, level in zip(
        predictions.cls_logits, predictions.deltas, anchors, strict=True
    ):
        best, rows = _best(logits[:, 0].astype(jnp.float32), pre_nms_topk)
        level_boxes.append(decode_boxes(deltas[rows], level[rows], weights=weights))
        level_scores.append(jax.nn.sigmoid(best))
    counts = [scores.shape[0] for scores in level_scores]
    boxes, scores = jnp.concatenate(level_boxes), jnp.concatenate(level_scores)
    boxes = clip_boxes(boxes, image_size)
    # False where a coordinate is NaN, which is all that decoding and clipping leave of bad deltas.
    is_large = (boxes[:, 2:] - boxes[:, :2] >= min_size).all(axis=-1)
    kept = batched_nms(
        boxes,
        scores,
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        iou_threshold=nms_iou,
        max_outputs=post_nms_topk,
        valid=is_large & (scores >= score_threshold),
    )
    return Proposals(
        jnp.where(kept.valid[:, None], boxes[kept.indices], 0.0),
        jnp.where(kept.valid, scores[kept.indices], 0.0),
        kept.valid,
    )


def _best(logits: Float[Array, " n"], topk: int) -> tuple[Array, Array]:
    """The best logits and their anchors, best first; NaN is worse than any number."""
    is_number = ~jnp.isnan(logits)
    logits = jnp.where(logits == 0.0, 0.0, logits)  # To top_k, -0 is less than 0.
    best, rows = jax.lax.top_k(jnp.where(is_number, logits, -jnp.inf), min(topk, logits.shape[0]))
    return jnp.where(is_number[rows], best, jnp.nan), rows
