"""Which object each anchor is trained on, and what it should say."""

import dataclasses
import enum
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from harmonic_jax.checks import check_fields, require
from harmonic_jax.ops.boxes import AnyArray, Coordinates, iou_of_coordinates, pairwise_iou
from harmonic_jax.ops.sampling import AnyKey, sample_balanced
from harmonic_jax.structures import GroundTruth, Targets

_BLOCK = 8  # Objects compared with all anchors in one go of the loop.


@dataclasses.dataclass(frozen=True)
class MatchConfig:
    """Max-IoU assignment."""

    positive_iou: Annotated[float, "[0, 1]"] = 0.5
    negative_iou: Annotated[float, "[0, 1]"] = 0.4
    """Anchors with a best IoU in [negative_iou, positive_iou) are ignored."""
    low_quality: bool = True
    """Each object also claims the anchors that overlap it most, whatever their IoU."""

    def __post_init__(self) -> None:
        check_fields(self, "match")
        require(
            self.negative_iou <= self.positive_iou,
            "match.positive_iou",
            self.positive_iou,
            f"at least match.negative_iou = {self.negative_iou}",
        )


class MatchState(enum.IntEnum):
    """What an anchor is trained as."""

    IGNORE = -1
    NEGATIVE = 0
    POSITIVE = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matches:
    """The result of matching n anchors."""

    index: Int[Array, "*b n"]  # int32: the object with the highest IoU, the first of equals
    state: Int[Array, "*b n"]  # int8: values of MatchState


def match_anchors(
    anchors: Real[AnyArray, "n 4"],
    boxes: Real[AnyArray, "g 4"],
    valid: Bool[AnyArray, " g"],
    match: MatchConfig,
) -> Matches:
    """Assign to each anchor the object that overlaps it most.

    POSITIVE where the best IoU >= match.positive_iou, NEGATIVE where it is < match.negative_iou,
    IGNORE between. With `match.low_quality`, the anchors that reach an object's highest IoU over
    all anchors (each of them where several do) are POSITIVE too, and keep the object that is best
    for them.

    Args:
      anchors: `[n 4]`, xyxy: the anchors of all levels, because highest is meant over all.
      boxes: `[g 4]`, xyxy, in the same unit.
      valid: `[g]`, False for padding. Rows of padding may hold anything, NaN included.
      match: the thresholds, and whether each object claims its best anchors whatever their IoU.

    Returns:
      `Matches`. Without a valid object every anchor is NEGATIVE. An object that overlaps no
      anchor claims none.

    >>> import jax.numpy as jnp
    >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 5.0], [50.0, 0.0, 60.0, 9.0]])
    >>> boxes, valid = jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.array([True])
    >>> match_anchors(anchors, boxes, valid, MatchConfig(positive_iou=0.7)).state.tolist()
    [1, -1, 0]

    Source: Ren et al., Faster R-CNN, 2015, section 3.1.2.
    """
    boxes = jnp.where(valid[:, None], jnp.asarray(boxes, jnp.float32), 0.0)
    padding = -boxes.shape[0] % _BLOCK
    valid = jnp.pad(valid, (0, padding))
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))  # An empty box has IoU 0 with everything.
    number = jnp.arange(1, valid.shape[0] + 1, dtype=jnp.int32)
    used = jnp.max(jnp.where(valid, number, 0), initial=0)
    num_blocks = (used + _BLOCK - 1) // _BLOCK

    coordinates = tuple(jnp.asarray(anchors, jnp.float32).T)
    best_iou, index, highest = _best(coordinates, boxes, num_blocks)
    is_positive = (best_iou >= match.positive_iou) & (used > 0)
    if match.low_quality:
        is_positive |= _reaches_highest(coordinates, boxes, highest, num_blocks)
    is_ignored = (best_iou >= match.negative_iou) & (used > 0)
    state = jnp.where(is_ignored, MatchState.IGNORE, MatchState.NEGATIVE)
    state = jnp.where(is_positive, MatchState.POSITIVE, state)
    return Matches(index, state.astype(jnp.int8))


def _best(anchors: Coordinates, boxes: Array, num_blocks: Array) -> tuple[Array, Array, Array]:
    """The best IoU and object of each anchor [n], and the highest IoU of each object [g].

    The matrix of all pairs never exists, and the loop ends with the last valid object.
    """

    def compare_block(block: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        best_iou, index, highest = carry
        tops = []
        for g in range(_BLOCK):
            iou = _iou_with_object(anchors, boxes, block * _BLOCK + g)
            is_better = iou > best_iou  # Strictly: the first of equals stays.
            best_iou = jnp.where(is_better, iou, best_iou)
            index = jnp.where(is_better, block * _BLOCK + g, index)
            tops.append(jnp.max(iou))
        highest = jax.lax.dynamic_update_slice(highest, jnp.stack(tops), (block * _BLOCK,))
        return best_iou, index, highest

    zeros = jnp.zeros(anchors[0].shape, jnp.float32)
    start = (zeros, zeros.astype(jnp.int32), jnp.zeros(boxes.shape[0], jnp.float32))
    return jax.lax.fori_loop(0, num_blocks, compare_block, start)


def _reaches_highest(
    anchors: Coordinates, boxes: Array, highest: Array, num_blocks: Array
) -> Array:
    """Whether an anchor has the highest IoU of some object that overlaps any anchor, [n].

    The IoUs are computed a second time instead of kept: they are bit-equal to the first ones
    (see `iou_of_coordinates`), and keeping them would take anchors x objects of memory.
    """
    highest = jnp.where(highest > 0.0, highest, 2.0)  # No IoU reaches 2.

    def compare_block(block: Array, reaches: Array) -> Array:
        for g in range(_BLOCK):
            iou = _iou_with_object(anchors, boxes, block * _BLOCK + g)
            reaches |= iou == highest[block * _BLOCK + g]
        return reaches

    return jax.lax.fori_loop(0, num_blocks, compare_block, jnp.zeros(anchors[0].shape, jnp.bool_))


def _iou_with_object(anchors: Coordinates, boxes: Array, g: Array) -> Array:
    box = jax.lax.dynamic_slice_in_dim(boxes, g, 1)
    return iou_of_coordinates(anchors, tuple(box[:, axis] for axis in range(4)))


def dense_targets(
    anchors: Sequence[Real[AnyArray, "_ 4"]],
    ground_truth: GroundTruth,
    *,
    num_classes: int,
    match: MatchConfig,
) -> tuple[Targets, ...]:
    """Targets of every pyramid level for one image.

    A positive anchor has the label and the box of its object. Any other has the label
    `num_classes` (background) and its own box; `is_counted` is False where the anchor is
    neither: between the two thresholds.

    Args:
      anchors: `[n_l 4]` for each level, xyxy in pixels.
      ground_truth: the objects of one image: boxes `[g 4]`, labels `[g]` in 0..k-1, valid `[g]`.
      num_classes: k, the number of object classes.
      match: see `match_anchors`.

    Returns:
      `Targets` for each level: labels `[n_l]` int32, boxes `[n_l 4]` float32, is_positive and
      is_counted `[n_l]`. The total number of positives is the sum of is_positive over levels.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.
    """
    all_anchors = jnp.concatenate([jnp.asarray(level, jnp.float32) for level in anchors])
    matches = match_anchors(all_anchors, ground_truth.boxes, ground_truth.valid, match)
    targets = _targets(all_anchors, matches, ground_truth, num_classes)
    ends = np.cumsum([0, *(level.shape[0] for level in anchors)]).tolist()
    return tuple(
        jax.tree.map(lambda rows, start=start, end=end: rows[start:end], targets)
        for start, end in pairwise(ends)
    )


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
    by_overlap = MatchConfig(positive_iou, positive_iou, low_quality=False)
    matches = match_anchors(anchors, boxes, valid, by_overlap)
    boxes = jnp.where(valid[:, None], jnp.asarray(boxes, jnp.float32), 0.0)
    owner = _claim(jnp.asarray(anchors, jnp.float32), boxes)
    is_owned = owner >= 0
    index = jnp.where(is_owned, owner, matches.index)
    is_positive = is_owned | (matches.state == MatchState.POSITIVE)
    state = jnp.where(is_positive, MatchState.POSITIVE, MatchState.NEGATIVE)
    return Matches(index, state.astype(jnp.int8))


def _claim(anchors: Array, boxes: Array) -> Array:
    """The object of each anchor in the one-to-one part, [n]; -1 where there is none.

    Bounds only sink while anchors are given away, so the object with the highest bound is looked
    at again: if its bound holds, it has the best pair of all; if not, the bound is corrected.
    No round compares more than one object, and pairs are never held.
    """

    def one_round(state: tuple[Array, Array]) -> tuple[Array, Array]:
        # [n] the object that an anchor was given to, -1: free; and [g] at least the highest IoU of
        # an object with a free anchor, 0: done.
        owner, bound = state
        g = jnp.argmax(bound).astype(jnp.int32)
        box = jax.lax.dynamic_slice_in_dim(boxes, g, 1)
        iou = pairwise_iou(anchors, box)[:, 0]
        iou = jnp.where((owner < 0) & (iou > 0), iou, 0.0)
        bound = bound.at[g].set(jnp.max(iou))
        is_best = (jnp.argmax(bound).astype(jnp.int32) == g) & (bound[g] > 0)
        best = jnp.argmax(iou)
        owner = owner.at[best].set(jnp.where(is_best, g, owner[best]))
        return owner, bound.at[g].set(jnp.where(is_best, 0.0, bound[g]))

    free = jnp.full(anchors.shape[:1], -1, jnp.int32)
    iou = pairwise_iou(boxes, anchors)
    start = free, jnp.max(jnp.where(iou > 0, iou, 0.0), axis=1)
    return jax.lax.while_loop(lambda state: jnp.any(state[1] > 0), one_round, start)[0]


def multibox_targets(
    anchors: Real[AnyArray, "n 4"],
    ground_truth: GroundTruth,
    *,
    num_classes: int,
    positive_iou: float,
) -> Targets:
    """Targets of all default boxes of one image, as `match_default_boxes` assigns them.

    Args:
      anchors: `[n 4]`, xyxy in pixels.
      ground_truth, num_classes: as for `dense_targets`.
      positive_iou: see `match_default_boxes`.

    Returns:
      `Targets` as of `dense_targets`, in one piece; every box is counted.

    Source: Liu et al., SSD, 2016, section 2.2.
    """
    anchors = jnp.asarray(anchors, jnp.float32)
    matches = match_default_boxes(
        anchors, ground_truth.boxes, ground_truth.valid, positive_iou=positive_iou
    )
    return _targets(anchors, matches, ground_truth, num_classes)


def _targets(
    anchors: Array, matches: Matches, ground_truth: GroundTruth, num_classes: int
) -> Targets:
    is_positive = matches.state == MatchState.POSITIVE
    labels = jnp.asarray(ground_truth.labels, jnp.int32)[matches.index]
    boxes = jnp.asarray(ground_truth.boxes, jnp.float32)[matches.index]
    return Targets(
        labels=jnp.where(is_positive, labels, num_classes),
        boxes=jnp.where(is_positive[:, None], boxes, anchors),
        is_positive=is_positive,
        is_counted=matches.state != MatchState.IGNORE,
    )


class Samples(NamedTuple):
    """Anchors or RoIs that losses see: positives first, then negatives, then padding."""

    rows: Int[Array, "*b s"]  # into the boxes they were drawn from; 0 where not valid
    boxes: Float[Array, "*b s 4"]  # 0 0 0 0 where not valid
    labels: Int[Array, "*b s"]  # 0..k-1 where positive, k elsewhere (background)
    targets: Float[Array, "*b s 4"]  # the matched box; the own one where not positive
    objects: Int[Array, "*b s"]  # the matched row of the ground truth; 0 where not positive
    is_positive: Bool[Array, "*b s"]
    valid: Bool[Array, "*b s"]


def draw_samples(
    key: AnyKey,
    boxes: Real[AnyArray, "n 4"],
    exists: Bool[AnyArray, " n"],
    ground_truth: GroundTruth,
    *,
    match: MatchConfig,
    num_samples: int,
    positive_fraction: float,
    num_classes: int,
) -> Samples:
    """Match boxes of one image to its objects and draw a balanced sample.

    Args:
      key: a random key.
      boxes: `[n 4]`, xyxy in pixels.
      exists: `[n]`, False for padding, which may hold anything.
      ground_truth: the objects of the image, padded.
      match: see `match_anchors`.
      num_samples, positive_fraction: s, and the most positives of it; see `sample_balanced`.
      num_classes: k, the number of object classes.

    Returns:
      `Samples` of `[s]`. Without objects all are negative.

    Source: Ren et al., Faster R-CNN, 2015, section 3.1; Girshick, Fast R-CNN, 2015, section 2.3.
    """
    boxes, truth = (
        jnp.where(is_row[:, None], jnp.asarray(rows, jnp.float32), 0.0)
        for rows, is_row in ((boxes, exists), (ground_truth.boxes, ground_truth.valid))
    )
    matches = match_anchors(boxes, truth, ground_truth.valid, match)
    sample = sample_balanced(
        key,
        (matches.state == MatchState.POSITIVE) & exists,
        (matches.state == MatchState.NEGATIVE) & exists,
        num_samples=num_samples,
        positive_fraction=positive_fraction,
    )
    drawn = jnp.where(sample.valid[:, None], boxes[sample.indices], 0.0)
    objects = jnp.where(sample.is_positive, matches.index[sample.indices], 0)
    labels = jnp.asarray(ground_truth.labels, jnp.int32)[objects]
    return Samples(
        rows=sample.indices,
        boxes=drawn,
        labels=jnp.where(sample.is_positive, labels, num_classes),
        targets=jnp.where(sample.is_positive[:, None], truth[objects], drawn),
        objects=objects,
        is_positive=sample.is_positive,
        valid=sample.valid,
    )
