"""From scored boxes to detections: the last step of every detector, with static shapes."""

import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Real

from harmonic_jax.checks import check_fields
from harmonic_jax.ops import Suppression, clip_boxes, suppress
from harmonic_jax.ops.boxes import AnyArray
from harmonic_jax.structures import Detections

NmsName = Literal["class", "agnostic", "soft_linear", "soft_gaussian", "matrix", "weighted"]
MIN_SCORE = 0.001  # Of methods that lower scores: what they lower is kept while it is above this.


@dataclasses.dataclass(frozen=True)
class PostprocessConfig:
    """From raw predictions to final boxes."""

    score_threshold: Annotated[float, "[0, 1]"] = 0.05
    topk: Annotated[int | None, "[1, 1000000]"] = 1000
    """Candidates that enter the suppression: the best of each pyramid level (RetinaNet) or of each
    class (SSD, RefineDet), or of all (Faster R-CNN, Mask R-CNN). None: all of them."""
    min_size: Annotated[float, "[0, 16384]"] = 0.0
    """Boxes with a shorter side, in pixels, are dropped."""
    nms_iou: Annotated[float, "[0, 1]"] = 0.5
    max_detections: Annotated[int, "[1, 10000]"] = 100
    nms: NmsName = "class"
    """`class`: of boxes of a class that overlap, the best stays; `agnostic`: of any classes;
    `soft_linear`, `soft_gaussian`, `matrix`: others lose score; `weighted`: they are averaged."""
    nms_sigma: Annotated[float, "[0.001, 1000]"] = 0.5
    """How soft `soft_gaussian` and `matrix` are."""

    def __post_init__(self) -> None:
        check_fields(self, "postprocess")

    @property
    def has_nms(self) -> bool:
        """Whether boxes suppress others: at an IoU of 1 none overlaps another by more."""
        return self.nms_iou < 1 or self.nms not in ("class", "agnostic")


def select_detections(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    image_size: Real[AnyArray, "2"],
    config: PostprocessConfig,
) -> Detections:
    """The detections of an image: its candidates clipped, thresholded and suppressed.

    A candidate takes part where its score is above `config.score_threshold`, its box is finite and,
    clipped to the image, has sides of at least `config.min_size`.

    Args:
      boxes: `[n 4]`, decoded, xyxy in pixels.
      scores: `[n]`; NaN never takes part.
      labels: `[n]`, 0..k-1.
      image_size: `[2]`, height and width in pixels.
      config: thresholds, and the way of suppression. Of the methods that lower scores, what they
        lower is kept while it is above 0.001, or above the score threshold where that is less.

    Returns:
      `Detections` `[config.max_detections]`, best first; rows that are not valid hold zeros.

    >>> import jax.numpy as jnp
    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]])
    >>> scores, labels, size = jnp.array([0.5, 0.9]), jnp.array([3, 7]), jnp.array([8.0, 8.0])
    >>> config = PostprocessConfig(nms="agnostic", max_detections=2)
    >>> found = select_detections(boxes, scores, labels, size, config)
    >>> found.labels.tolist(), found.valid.tolist()
    ([7, 0], [True, False])

    Source: see `harmonic_jax.ops.Suppression`.
    """
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    is_finite = jnp.isfinite(boxes).all(axis=-1)
    boxes = clip_boxes(boxes, image_size)
    is_large = (boxes[:, 2:] - boxes[:, :2] >= config.min_size).all(axis=-1)
    is_candidate = (scores > config.score_threshold) & is_finite & is_large
    settings = Suppression(
        config.nms,
        config.nms_iou,
        config.nms_sigma,
        min(config.score_threshold, MIN_SCORE),
        max_outputs=config.max_detections,
    )
    found = suppress(boxes, scores, labels, settings, valid=is_candidate)
    return Detections(found.boxes, found.scores, found.labels, found.valid)


def best_pairs(
    logits: Float[Array, "n k"], threshold: float, topk: int | None
) -> tuple[Float[Array, " t"], Int[Array, " t"], Int[Array, " t"]]:
    """Scores, anchors and classes of the t best pairs of a level, best first.

    They lie among the t anchors with the best classes, because each of those has a pair at least
    as good as any of an anchor left out. So the one large array is only read, once, for its
    maxima. Selection goes by the logit, which orders pairs whose scores round to the same
    float, and what cannot be chosen becomes -inf, which spares the selection most of its work.
    """
    num_anchors, num_classes = logits.shape
    topk = logits.size if topk is None else topk
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


def mark_non_finite(found: Detections, outputs: Any) -> Detections:
    """NaN for all scores of an image for which the network's output is not finite.

    No detections are then not taken for an image without objects.

    Args:
      found: `[b d]`.
      outputs: arrays `[b ..]`, what the network said of each image.
    """
    is_finite = jnp.ones(found.scores.shape[0], jnp.bool_)
    for leaf in jax.tree.leaves(outputs):
        is_finite &= jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1)
    return dataclasses.replace(found, scores=jnp.where(is_finite[:, None], found.scores, jnp.nan))


def finite_or_nan(outputs: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """What the network says, where a sigmoid behind it would make a number of infinity."""
    return jnp.where(jnp.isfinite(outputs), outputs, jnp.nan)


def non_finite_images(found: Detections) -> np.ndarray:
    """The rows of a batch, on the host, that `mark_non_finite` marked."""
    return np.flatnonzero(np.isnan(np.asarray(found.scores)).any(axis=-1))
