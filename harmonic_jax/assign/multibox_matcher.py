"""SSD's assignment: max-IoU, and for every object a default box of its own."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Real

from harmonic_jax.assign.matcher import Matches, MatchState, match_anchors
from harmonic_jax.ops.boxes import AnyArray, pairwise_iou
from harmonic_jax.structures import GroundTruth, Targets


def match_default_boxes(
    anchors: Real[AnyArray, "n 4"],
    boxes: Real[AnyArray, "g 4"],
    valid: Bool[AnyArray, " g"],
    *,
    positive_iou: float,
) -> Matches:
    """Assign default boxes to objects: first one to each object, then by overlap.

    Of all pairs of an object and a default box that are both still free, the one with the
    highest IoU is joined, until no object is left or none overlaps a free default box. A default
    box that stays free belongs to the object that overlaps it most if their IoU >= positive_iou.

    Args:
      anchors: `[n 4]`, xyxy: the default boxes of all levels.
      boxes: `[g 4]`, xyxy, in the same unit.
      valid: `[g]`, False for padding. Rows of padding may hold anything, NaN included.
      positive_iou: in (0, 1].

    Returns:
      `Matches`, POSITIVE or NEGATIVE. Among equal IoUs the first object and the first default
      box are joined. torchvision lets several objects claim one default box, and the last has
      it; and gives one to an object that overlaps none.

    >>> import jax.numpy as jnp
    >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 3.0]])
    >>> boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0]])
    >>> match = match_default_boxes(anchors, boxes, jnp.array([True, True]), positive_iou=0.5)
    >>> match.index.tolist()  # the second object has the box that is left, though it fits badly
    [0, 1]

    Source: Liu et al., SSD, 2016, section 2.2; one to one as in its Caffe code.
    """
    matches = match_anchors(
        anchors,
        boxes,
        valid,
        positive_iou=positive_iou,
        negative_iou=positive_iou,
        low_quality=False,
    )
    boxes = jnp.where(valid[:, None], jnp.asarray(boxes, jnp.float32), 0.0)
    owner = _claim(jnp.asarray(anchors, jnp.float32), boxes)
    is_owned = owner >= 0
    index = jnp.where(is_owned, owner, matches.index)
    is_positive = is_owned | (matches.state == MatchState.POSITIVE)
    state = jnp.where(is_positive, MatchState.POSITIVE, MatchState.NEGATIVE)
    return Matches(index, state.astype(jnp.int8))


class _Claims(NamedTuple):
    """The state between two rounds."""

    owner: Array  # [n] the object that an anchor was given to, -1: free
    bound: Array  # [g] at least the highest IoU of an object with a free anchor; 0: done


def _claim(anchors: Array, boxes: Array) -> Array:
    """The object of each anchor in the one-to-one part, [n]; -1 where there is none.

    Bounds only sink while anchors are given away, so the object with the highest bound is looked
    at again: if its bound holds, it has the best pair of all; if not, the bound is corrected.
    No round compares more than one object, and pairs are never held.
    """

    def one_round(state: _Claims) -> _Claims:
        g = jnp.argmax(state.bound).astype(jnp.int32)
        box = jax.lax.dynamic_slice_in_dim(boxes, g, 1)
        iou = pairwise_iou(anchors, box)[:, 0]
        iou = jnp.where((state.owner < 0) & (iou > 0), iou, 0.0)
        bound = state.bound.at[g].set(jnp.max(iou))
        is_best = (jnp.argmax(bound).astype(jnp.int32) == g) & (bound[g] > 0)
        best = jnp.argmax(iou)
        owner = state.owner.at[best].set(jnp.where(is_best, g, state.owner[best]))
        return _Claims(owner, bound.at[g].set(jnp.where(is_best, 0.0, bound[g])))

    free = jnp.full(anchors.shape[:1], -1, jnp.int32)
    iou = pairwise_iou(boxes, anchors)
    start = _Claims(free, jnp.max(jnp.where(iou > 0, iou, 0.0), axis=1))
    return jax.lax.while_loop(lambda state: jnp.any(state.bound > 0), one_round, start).owner


def multibox_targets(
    anchors: Real[AnyArray, "n 4"],
    ground_truth: GroundTruth,
    *,
    num_classes: int,
    positive_iou: float,
) -> Targets:
    """Targets of all default boxes of one image.

    A positive has the label and the box of its object, any other the label `num_classes`
    (background) and its own box; every one is counted.

    Args:
      anchors: `[n 4]`, xyxy in pixels.
      ground_truth: the objects of one image: boxes `[g 4]`, labels `[g]` in 0..k-1, valid `[g]`.
      num_classes: k, the number of object classes.
      positive_iou: see `match_default_boxes`.

    Returns:
      `Targets`: labels `[n]` int32, boxes `[n 4]` float32, is_positive and is_counted `[n]`.

    >>> import jax.numpy as jnp
    >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [40.0, 40.0, 48.0, 48.0]])
    >>> objects = GroundTruth(
    ...     jnp.array([[0.0, 0.0, 8.0, 2.0]]), jnp.array([2]), jnp.array([True])
    ... )
    >>> multibox_targets(anchors, objects, num_classes=3, positive_iou=0.5).labels.tolist()
    [2, 3]

    Source: Liu et al., SSD, 2016, section 2.2.
    """
    anchors = jnp.asarray(anchors, jnp.float32)
    matches = match_default_boxes(
        anchors, ground_truth.boxes, ground_truth.valid, positive_iou=positive_iou
    )
    is_positive = matches.state == MatchState.POSITIVE
    labels = jnp.asarray(ground_truth.labels, jnp.int32)[matches.index]
    boxes = jnp.asarray(ground_truth.boxes, jnp.float32)[matches.index]
    return Targets(
        labels=jnp.where(is_positive, labels, num_classes),
        boxes=jnp.where(is_positive[:, None], boxes, anchors),
        is_positive=is_positive,
        is_counted=jnp.ones_like(is_positive),
    )
