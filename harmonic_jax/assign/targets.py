"""What each anchor of a dense detector should say, given the objects of an image."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Real

from harmonic_jax.assign.matcher import MatchState, match_anchors
from harmonic_jax.ops.boxes import AnyArray
from harmonic_jax.structures import GroundTruth, Targets


def dense_targets(
    anchors: Sequence[Real[AnyArray, "_ 4"]],
    ground_truth: GroundTruth,
    *,
    num_classes: int,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> tuple[Targets, ...]:
    """Targets of every pyramid level for one image.

    A positive anchor has the label and the box of its object. Any other has the label
    `num_classes` (background) and its own box; `is_counted` is False where the anchor is
    neither: between the two thresholds.

    Args:
      anchors: `[n_l 4]` for each level, xyxy in pixels.
      ground_truth: the objects of one image: boxes `[g 4]`, labels `[g]` in 0..k-1, valid `[g]`.
      num_classes: k, the number of object classes.
      positive_iou: see `match_anchors`.
      negative_iou: see `match_anchors`.
      low_quality: see `match_anchors`.

    Returns:
      `Targets` for each level: labels `[n_l]` int32, boxes `[n_l 4]` float32, is_positive and
      is_counted `[n_l]`. The total number of positives is the sum of is_positive over levels.

    >>> import jax.numpy as jnp
    >>> anchors = (jnp.array([[0.0, 0.0, 8.0, 8.0], [40.0, 40.0, 48.0, 48.0]]),)
    >>> objects = GroundTruth(
    ...     jnp.array([[0.0, 0.0, 8.0, 7.0]]), jnp.array([2]), jnp.array([True])
    ... )
    >>> targets, = dense_targets(
    ...     anchors, objects, num_classes=3, positive_iou=0.5, negative_iou=0.4, low_quality=True
    ... )
    >>> targets.labels.tolist(), targets.boxes[0].tolist()
    ([2, 3], [0.0, 0.0, 8.0, 7.0])

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.
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
    is_positive = matches.state == MatchState.POSITIVE
    labels = jnp.asarray(ground_truth.labels, jnp.int32)[matches.index]
    labels = jnp.where(is_positive, labels, num_classes)
    boxes = jnp.asarray(ground_truth.boxes, jnp.float32)[matches.index]
    boxes = jnp.where(is_positive[:, None], boxes, all_anchors)
    is_counted = matches.state != MatchState.IGNORE

    ends = np.cumsum([level.shape[0] for level in anchors])
    levels = []
    for start, end in zip((0, *ends[:-1]), ends, strict=True):
        level = slice(int(start), int(end))
        levels.append(Targets(labels[level], boxes[level], is_positive[level], is_counted[level]))
    return tuple(levels)
