"""From raw predictions of a dense detector to final boxes, with static shapes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from harmonic_jax.ops.box_coder import Weights, decode_boxes
from harmonic_jax.ops.boxes import clip_boxes
from harmonic_jax.ops.nms import batched_nms
from harmonic_jax.structures import Detections, Predictions


def postprocess_dense(
    predictions: Predictions,
    anchors: Sequence[Array],
    image_size: Float[Array, "*b 2"],
    *,
    score_threshold: float,
    topk_per_level: int,
    nms_iou: float,
    max_detections: int,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Detections:
    """The detections of one image, or of every image of a batch.

    On each level the `topk_per_level` best (anchor, class) pairs are taken, those whose score
    sigmoid(logit) is not above `score_threshold` dropped, the rest decoded and clipped to the
    image; then class-wise non-maximum suppression over all levels keeps at most
    `max_detections`.

    Args:
      predictions: logits `[*b n_l k]` and deltas `[*b n_l 4]` for each level, for one image or
        with one leading batch dimension.
      anchors: `[n_l 4]` for each level, xyxy in pixels.
      image_size: `[*b 2]`, height and width in pixels.
      score_threshold: in [0, 1].
      topk_per_level: >= 1.
      nms_iou: boxes of one class that overlap by more are duplicates; in [0, 1].
      max_detections: d.
      weights: those of `decode_boxes`.

    Returns:
      `Detections` of `[*b d]`, best first; rows that are not valid hold zeros. A NaN logit is
      no candidate, nor is a box that is not finite.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.
    """

    def one_image(predictions: Predictions, image_size: Array) -> Detections:
        levels = [
            _candidates(logits, deltas, jnp.asarray(level), topk_per_level, weights)
            for logits, deltas, level in zip(
                predictions.cls_logits, predictions.deltas, anchors, strict=True
            )
        ]
        boxes, logits, labels = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
        scores = jax.nn.sigmoid(logits)
        is_candidate = (scores > score_threshold) & jnp.isfinite(boxes).all(axis=-1)
        boxes = clip_boxes(boxes, image_size)
        kept = batched_nms(
            boxes,
            scores,
            labels,
            iou_threshold=nms_iou,
            max_outputs=max_detections,
            valid=is_candidate,
        )
        return Detections(
            jnp.where(kept.valid[:, None], boxes[kept.indices], 0.0),
            jnp.where(kept.valid, scores[kept.indices], 0.0),
            jnp.where(kept.valid, labels[kept.indices], 0),
            kept.valid,
        )

    if image_size.ndim == 1:
        return one_image(predictions, image_size)
    return jax.vmap(one_image)(predictions, image_size)


def _candidates(
    logits: Float[Array, "n k"],
    deltas: Float[Array, "n 4"],
    anchors: Float[Array, "n 4"],
    topk: int,
    weights: Weights,
) -> tuple[Float[Array, "t 4"], Float[Array, " t"], Int[Array, " t"]]:
    """The boxes, logits and labels of the best (anchor, class) pairs of a level, best first.

    The t best pairs lie among the t anchors with the best classes: any other anchor is preceded
    by t anchors with a pair at least as good. So the large array is read once, for its maxima.
    """
    num_anchors, num_classes = logits.shape
    logits = logits.astype(jnp.float32)
    best = jnp.max(jnp.where(jnp.isnan(logits), -jnp.inf, logits), axis=-1)  # [n]
    _, rows = jax.lax.top_k(best, min(topk, num_anchors))
    rows = jnp.sort(rows)  # Equal pairs stay in the order of their index.
    pairs = logits[rows].reshape(-1)  # [rows * k]
    pairs = jnp.where(jnp.isnan(pairs), -jnp.inf, pairs)
    values, flat = jax.lax.top_k(pairs, min(topk, pairs.shape[0]))
    rows = rows[flat // num_classes]
    boxes = decode_boxes(deltas[rows], anchors[rows], weights=weights)
    return boxes, values, (flat % num_classes).astype(jnp.int32)
