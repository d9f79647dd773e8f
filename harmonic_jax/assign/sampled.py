"""The samples that a two-stage detector is trained on: anchors for the RPN, RoIs for its head."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from harmonic_jax.assign.matcher import MatchState, match_anchors
from harmonic_jax.ops.boxes import AnyArray
from harmonic_jax.ops.sampling import AnyKey, sample_balanced
from harmonic_jax.structures import GroundTruth


class AnchorSamples(NamedTuple):
    """Anchors that the losses of an RPN see: positives first, then negatives, then padding."""

    rows: Int[Array, "*b s"]  # into the anchors of all levels, one level after the other
    anchors: Float[Array, "*b s 4"]
    targets: Float[Array, "*b s 4"]  # the matched box; the anchor itself where not positive
    is_positive: Bool[Array, "*b s"]
    valid: Bool[Array, "*b s"]


class RoISamples(NamedTuple):
    """RoIs that the head is trained on: positives first, then negatives, then padding."""

    boxes: Float[Array, "*b s 4"]
    labels: Int[Array, "*b s"]  # 0..k-1 where positive, k elsewhere (background)
    targets: Float[Array, "*b s 4"]  # the matched box; the RoI itself where not positive
    objects: Int[Array, "*b s"]  # the matched row of the ground truth; 0 where not positive
    is_positive: Bool[Array, "*b s"]
    valid: Bool[Array, "*b s"]


def sample_anchors(
    key: AnyKey,
    anchors: Sequence[Real[AnyArray, "_ 4"]],
    ground_truth: GroundTruth,
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
    num_samples: int,
    positive_fraction: float,
) -> AnchorSamples:
    """Match the anchors of all levels to the objects of one image and draw a balanced sample.

    Args:
      key: a random key.
      anchors: `[n_l 4]` for each level, xyxy in pixels.
      ground_truth: the objects of one image, padded; labels do not matter.
      positive_iou: see `match_anchors`.
      negative_iou: see `match_anchors`.
      low_quality: see `match_anchors`.
      num_samples: s, see `sample_balanced`.
      positive_fraction: see `sample_balanced`.

    Returns:
      `AnchorSamples` of `[s]`. Without objects all are negative.

    >>> import jax, jax.numpy as jnp
    >>> anchors = [jnp.array([[0.0, 0.0, 8.0, 8.0], [40.0, 40.0, 48.0, 48.0]])]
    >>> objects = GroundTruth(
    ...     jnp.array([[0.0, 0.0, 8.0, 7.0]]), jnp.array([2]), jnp.array([True])
    ... )
    >>> samples = sample_anchors(
    ...     jax.random.key(0), anchors, objects, positive_iou=0.7, negative_iou=0.3,
    ...     low_quality=True, num_samples=4, positive_fraction=0.5,
    ... )
    >>> samples.rows.tolist(), samples.is_positive.tolist(), samples.valid.tolist()
    ([0, 1, 0, 0], [True, False, False, False], [True, True, False, False])

    Source: Ren et al., Faster R-CNN, 2015, section 3.1.
    """
    all_anchors = jnp.concatenate([jnp.asarray(level, jnp.float32) for level in anchors])
    matches = match_anchors(
        all_anchors,
        ground_truth.boxes,
        ground_truth.valid,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        low_quality=low_quality,
    )
    sample = sample_balanced(
        key,
        matches.state == MatchState.POSITIVE,
        matches.state == MatchState.NEGATIVE,
        num_samples=num_samples,
        positive_fraction=positive_fraction,
    )
    drawn = all_anchors[sample.indices]
    matched = jnp.asarray(ground_truth.boxes, jnp.float32)[matches.index[sample.indices]]
    targets = jnp.where(sample.is_positive[:, None], matched, drawn)
    return AnchorSamples(sample.indices, drawn, targets, sample.is_positive, sample.valid)


def sample_rois(
    key: AnyKey,
    boxes: Real[AnyArray, "p 4"],
    valid: Bool[AnyArray, " p"],
    ground_truth: GroundTruth,
    *,
    num_classes: int,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
    num_samples: int,
    positive_fraction: float,
) -> RoISamples:
    """Match the proposals of one image to its objects and draw a balanced sample.

    The objects' own boxes are proposals too: early in training they are the only good ones.

    Args:
      key: a random key.
      boxes: `[p 4]`, proposals, xyxy in pixels.
      valid: `[p]`, False for padding.
      ground_truth: the objects of the image, padded.
      num_classes: k, the number of object classes.
      positive_iou: see `match_anchors`.
      negative_iou: see `match_anchors`.
      low_quality: see `match_anchors`.
      num_samples: s, see `sample_balanced`.
      positive_fraction: see `sample_balanced`.

    Returns:
      `RoISamples` of `[s]`; rows that are not valid hold the box 0 0 0 0 and background.

    >>> import jax, jax.numpy as jnp
    >>> objects = GroundTruth(
    ...     jnp.array([[0.0, 0.0, 8.0, 7.0]]), jnp.array([2]), jnp.array([True])
    ... )
    >>> rois = sample_rois(
    ...     jax.random.key(0), jnp.array([[40.0, 40.0, 48.0, 48.0]]), jnp.array([True]), objects,
    ...     num_classes=3, positive_iou=0.5, negative_iou=0.5, low_quality=False,
    ...     num_samples=3, positive_fraction=0.5,
    ... )
    >>> rois.boxes[:2].tolist()
    [[0.0, 0.0, 8.0, 7.0], [40.0, 40.0, 48.0, 48.0]]
    >>> rois.labels.tolist(), rois.valid.tolist()
    ([2, 3, 3], [True, True, False])

    Source: Girshick, Fast R-CNN, 2015, section 2.3.
    """
    proposals, truth = (
        jnp.where(is_some[:, None], jnp.asarray(array, jnp.float32), 0.0)
        for array, is_some in ((boxes, valid), (ground_truth.boxes, ground_truth.valid))
    )
    candidates = jnp.concatenate((proposals, truth))
    exists = jnp.concatenate((jnp.asarray(valid), ground_truth.valid))
    matches = match_anchors(
        candidates,
        truth,
        ground_truth.valid,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        low_quality=low_quality,
    )
    sample = sample_balanced(
        key,
        (matches.state == MatchState.POSITIVE) & exists,
        (matches.state == MatchState.NEGATIVE) & exists,
        num_samples=num_samples,
        positive_fraction=positive_fraction,
    )
    drawn = jnp.where(sample.valid[:, None], candidates[sample.indices], 0.0)
    objects = jnp.where(sample.is_positive, matches.index[sample.indices], 0)
    labels = jnp.asarray(ground_truth.labels, jnp.int32)[objects]
    return RoISamples(
        boxes=drawn,
        labels=jnp.where(sample.is_positive, labels, num_classes),
        targets=jnp.where(sample.is_positive[:, None], truth[objects], drawn),
        objects=objects,
        is_positive=sample.is_positive,
        valid=sample.valid,
    )
