"""Max-IoU assignment of anchors to objects."""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from harmonic_jax.ops.boxes import AnyArray, Coordinates, iou_of_coordinates

_BLOCK = 8  # Objects compared with all anchors in one go of the loop.


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
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> Matches:
    """Assign to each anchor the object that overlaps it most.

    POSITIVE where the best IoU >= positive_iou, NEGATIVE where it is < negative_iou, IGNORE
    between. With `low_quality`, the anchors that reach an object's highest IoU over all anchors
    (each of them where several do) are POSITIVE too, and keep the object that is best for them.

    Args:
      anchors: `[n 4]`, xyxy: the anchors of all levels, because highest is meant over all.
      boxes: `[g 4]`, xyxy, in the same unit.
      valid: `[g]`, False for padding. Rows of padding may hold anything, NaN included.
      positive_iou: in [negative_iou, 1].
      negative_iou: in [0, positive_iou].
      low_quality: whether each object claims its best anchors whatever their IoU.

    Returns:
      `Matches`. Without a valid object every anchor is NEGATIVE. An object that overlaps no
      anchor claims none.

    >>> import jax.numpy as jnp
    >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 5.0], [50.0, 0.0, 60.0, 9.0]])
    >>> boxes, valid = jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.array([True])
    >>> match_anchors(
    ...     anchors, boxes, valid, positive_iou=0.7, negative_iou=0.4, low_quality=True
    ... ).state.tolist()
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
    is_positive = (best_iou >= positive_iou) & (used > 0)
    if low_quality:
        is_positive |= _reaches_highest(coordinates, boxes, highest, num_blocks)
    is_ignored = (best_iou >= negative_iou) & (used > 0)
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
