"""From raw predictions of a dense detector to final boxes, with static shapes."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from harmonic_jax.ops import SuppressionMethod
from harmonic_jax.ops.box_coder import Weights, decode_boxes
from harmonic_jax.ops.boxes import AnyArray, clip_boxes
from harmonic_jax.postprocess.selection import select_detections
from harmonic_jax.structures import Detections, Predictions


def postprocess_dense(
    predictions: Predictions,
    anchors: Sequence[Real[AnyArray, "_ 4"]],
    image_size: Real[AnyArray, "*b 2"],
    *,
    score_threshold: float,
    topk_per_level: int,
    nms_iou: float,
    max_detections: int,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    suppression: SuppressionMethod = "class",
    nms_sigma: float = 0.5,
) -> Detections:
    """The detections of one image, or of each image of a batch.

    On each level, of the (anchor, class) pairs with a score sigmoid(logit) > score_threshold the
    `topk_per_level` best are decoded and clipped to the image; class-wise non-maximum
    suppression over all levels keeps at most `max_detections`.

    Args:
      predictions: logits `[*b n_l k]` and deltas `[*b n_l 4]` of each level; `*b` is nothing
        (one image) or one batch dimension.
      anchors: `[n_l 4]` for each level, xyxy in pixels.
      image_size: `[*b 2]`, height and width in pixels.
      score_threshold: in [0, 1].
      topk_per_level: >= 1.
      nms_iou: of boxes of one class that overlap by more, the best stays; in [0, 1].
      max_detections: d, >= 1.
      weights: those of `decode_boxes`.
      suppression, nms_sigma: another way than class-wise, see `select_detections`.

    Returns:
      `Detections` `[*b d]`, best first; rows that are not valid hold zeros. An anchor with a NaN
      logit or with a box that is not finite is never detected.

    Raises:
      ValueError: more than one batch dimension.

    >>> import jax.numpy as jnp
    >>> predictions = Predictions((jnp.array([[4.0, -4.0]]),), (jnp.zeros((1, 4)),))
    >>> detections = postprocess_dense(
    ...     predictions, [jnp.array([[2.0, 2.0, 6.0, 9.0]])], jnp.array([8.0, 8.0]),
    ...     score_threshold=0.05, topk_per_level=10, nms_iou=0.5, max_detections=2,
    ... )
    >>> detections.boxes[0].tolist(), detections.valid.tolist()
    ([2.0, 2.0, 6.0, 8.0], [True, False])

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.
    """
    levels = tuple(jnp.asarray(level, jnp.float32) for level in anchors)
    one_image = partial(
        _postprocess_image,
        anchors=levels,
        score_threshold=score_threshold,
        topk=topk_per_level,
        nms_iou=nms_iou,
        max_detections=max_detections,
        weights=weights,
        suppression=suppression,
        nms_sigma=nms_sigma,
    )
    if image_size.ndim == 1:
        return one_image(predictions, image_size)
    if image_size.ndim == 2:
        return jax.vmap(one_image)(predictions, image_size)
    raise ValueError(f"image_size has shape {image_size.shape}; it must be [2] or [b 2]")


def _postprocess_image(
    predictions: Predictions,
    image_size: AnyArray,
    *,
    anchors: tuple[Array, ...],
    score_threshold: float,
    topk: int,
    nms_iou: float,
    max_detections: int,
    weights: Weights,
    suppression: SuppressionMethod,
    nms_sigma: float,
) -> Detections:
    levels = []
    for logits, deltas, level in zip(
        predictions.cls_logits, predictions.deltas, anchors, strict=True
    ):
        scores, rows, labels = _best_pairs(logits, threshold=score_threshold, topk=topk)
        levels.append((decode_boxes(deltas[rows], level[rows], weights=weights), scores, labels))
    boxes, scores, labels = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    is_candidate = (scores > score_threshold) & jnp.isfinite(boxes).all(axis=-1)
    return select_detections(
        clip_boxes(boxes, image_size),
        scores,
        labels,
        is_candidate=is_candidate,
        suppression=suppression,
        nms_iou=nms_iou,
        sigma=nms_sigma,
        min_score=score_threshold,
        max_detections=max_detections,
    )


def _best_pairs(
    logits: Float[Array, "n k"], *, threshold: float, topk: int
) -> tuple[Float[Array, " t"], Int[Array, " t"], Int[Array, " t"]]:
    """Scores, anchors and classes of the t best pairs of a level, best first.

    They lie among the t anchors with the best classes, because each of those has a pair at least
    as good as any of an anchor left out. So the one large array is only read, once, for its
    maxima. Selection goes by the logit, which orders pairs whose scores round to the same
    float, and what cannot be chosen becomes -inf, which spares the selection most of its work.
    """
    num_anchors, num_classes = logits.shape
    floor = _logit_below(threshold)
    # A plain maximum is several times faster than one that skips NaN. What it makes of NaN
    # depends on the machine (NaN, which compares as False, or another class): see below.
    best = jnp.max(logits, axis=-1).astype(jnp.float32)  # [n]
    best, rows = jax.lax.top_k(jnp.where(best > floor, best, -jnp.inf), min(topk, num_anchors))
    pairs = logits[rows].astype(jnp.float32)  # [rows k]
    is_possible = ~jnp.isnan(pairs).any(axis=-1, keepdims=True) & (pairs > floor)
    if topk <= num_anchors:
        # Each of the t rows has a pair as good as the worst of their best ones. (The minimum and
        # not best[-1], with which XLA would no longer recognise the top-k, and sort.)
        is_possible &= pairs >= jnp.min(best)
    pairs = jnp.where(is_possible, pairs, -jnp.inf)
    pairs, flat = jax.lax.top_k(pairs.reshape(-1), min(topk, pairs.size))
    scores = jax.nn.sigmoid(pairs)
    return scores, rows[flat // num_classes], (flat % num_classes).astype(jnp.int32)


def _logit_below(score: float) -> float:
    """A logit a little below that of a score: what lies under it is surely not above the score."""
    if score <= 0.0:
        return -math.inf
    return math.log(score) - math.log1p(-min(score, 1.0 - 1e-7)) - 1e-3
