"""Losses of boxes: regression (SmoothL1) and overlap (IoU, GIoU, DIoU, CIoU, EIoU).

Boxes are xyxy, x2 = x1 + width. A box that is empty or inverted (x2 <= x1 or y2 <= y1) has area
0 and overlaps nothing; every value and gradient stays finite on it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_number, as_pairs

# Areas and squared lengths up to this count as 0: a ratio of them has no meaning, and its
# derivative, which divides by their square, would overflow float32.
_TINY = 1e-12

# Pairs that reach further are scaled down to this: products of two areas must fit float32.
_LARGEST = 1e9


def smooth_l1_loss(
    pred: ArrayLike, target: ArrayLike, *, beta: float = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """SmoothL1 loss, summed over the coordinates of each sample.

    `sum_j d_j**2 / (2 beta) if |d_j| < beta else |d_j| - beta / 2`, `d = pred - target`

    Args:
      pred: [*b, c] predicted box deltas (c = 4), or any other coordinates.
      target: [*b, c] their targets; differentiable too.
      beta: where the parabola ends, >= 0; 0 is the L1 loss.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, >= 0, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> [float(loss) for loss in smooth_l1_loss(jnp.array([[0.5, 2.0]]), jnp.zeros((1, 2)))]
      [1.625]

    Source: Girshick, "Fast R-CNN", ICCV 2015.
    """
    pred, target, finish = as_pairs(where, pred, target)
    beta = as_number("beta", beta, 0.0)
    difference = pred - target
    distance = difference * jnp.sign(difference)  # as abs, but with slope 0 at 0
    if beta >= jnp.finfo(distance.dtype).tiny:
        # One expression for both pieces: inside, `inner` is the distance; outside, beta. The
        # square of a large distance, which could overflow, is never formed.
        inner = jnp.minimum(distance, beta)
        distance = inner / beta * (distance - inner / 2)
    return finish(jnp.sum(distance, axis=-1))


def aligned_iou(pred: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """IoU of each predicted box with its own target.

    `_area(pred & target) / _area(pred | target)`, and 0 where the union is empty.

    Args:
      pred: [*b, 4] boxes, xyxy, in any unit (pixels; areas and squared lengths up to
        1e-12 count as 0).
      target: [*b, 4] boxes, xyxy; differentiable too.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] IoU in [0, 1], float32 (float64 for float64 inputs). Its gradient is 0 where the boxes
      do not touch.

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> pred = jnp.array([[0.0, 0.0, 2.0, 2.0], [3.0, 0.0, 1.0, 2.0]])  # the second: inverted
      >>> target = jnp.array([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 3.0, 2.0]])
      >>> [float(iou) for iou in aligned_iou(pred, target)]
      [0.5, 0.0]

    Source: Jaccard (1912).
    """
    pred, target, finish = _as_boxes(where, pred, target)
    return finish(_overlap(pred, target)[0], of_nan=0.0)


def iou_loss(pred: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """`1 - IoU` of each predicted box with its own target.

    The linear form; the first IoU loss (UnitBox, 2016) was `-log IoU`, infinite without overlap.
    Boxes that do not overlap have value 1 and gradient 0.

    Args, Raises: as `aligned_iou`.

    Returns:
      [*b] loss in [0, 1], float32 (float64 for float64 inputs).

    Example:
      >>> pred, target = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0]])
      >>> [float(loss) for loss in iou_loss(pred, target)]
      [0.5]

    Source: Yu et al., "UnitBox", ACM MM 2016; linear as in Rezatofighi et al., CVPR 2019.
    """
    pred, target, finish = _as_boxes(where, pred, target)
    return finish(1 - _overlap(pred, target)[0])


def giou_loss(pred: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Generalized IoU loss: boxes that do not overlap attract each other too.

    `1 - IoU + (hull - union) / hull`; `hull` is the area of the smallest box around all corners.

    Args, Raises: as `aligned_iou`.

    Returns:
      [*b] loss in [0, 2], float32 (float64 for float64 inputs).

    Example:
      >>> pred, target = jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[3.0, 0.0, 4.0, 1.0]])
      >>> [float(loss) for loss in giou_loss(pred, target)]  # 1 - 0 + (4 - 2) / 4
      [1.5]

    Source: Rezatofighi et al., "Generalized intersection over union", CVPR 2019.
    """
    pred, target, finish = _as_boxes(where, pred, target)
    iou, union = _overlap(pred, target)
    hull = _area(_hull_size(pred, target))
    return finish(1 - iou + _ratio(hull - union, hull))


def diou_loss(pred: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Distance IoU loss: the centres of the boxes attract each other.

    `1 - IoU + |centre - centre|**2 / diagonal**2`; the diagonal is that of the smallest box
    around all corners.

    Args, Raises: as `aligned_iou`.

    Returns:
      [*b] loss in [0, 2], float32 (float64 for float64 inputs).

    Example:
      >>> pred, target = jnp.array([[0.0, 0.0, 1.0, 3.0]]), jnp.array([[3.0, 0.0, 4.0, 3.0]])
      >>> [round(float(loss), 4) for loss in diou_loss(pred, target)]  # 1 - 0 + 9 / 25
      [1.36]

    Source: Zheng et al., "Distance-IoU loss", AAAI 2020.
    """
    pred, target, finish = _as_boxes(where, pred, target)
    return finish(1 - _overlap(pred, target)[0] + _centre_distance(pred, target))


def ciou_loss(pred: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Complete IoU loss: the DIoU loss and a term for the aspect ratio.

    `diou_loss + a * v`, `v = 4 / pi**2 * (atan(w_t / h_t) - atan(w_p / h_p))**2` and
    `a = v / (1 - IoU + v)`. As in its source, `a` is a constant for the gradient. A box without
    width and height has no aspect ratio: v is 0 there.

    Args, Raises: as `aligned_iou`.

    Returns:
      [*b] loss >= 0, float32 (float64 for float64 inputs).

    Example:
      >>> pred, target = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0]])
      >>> [round(float(loss), 4) for loss in ciou_loss(pred, target)]
      [0.5345]

    Source: Zheng et al., "Distance-IoU loss", AAAI 2020.
    """
    pred, target, finish = _as_boxes(where, pred, target)
    iou, _ = _overlap(pred, target)
    v = _aspect_difference(pred, target)
    a = stop_gradient(v / jnp.maximum(1 - iou + v, _TINY))
    return finish(1 - iou + _centre_distance(pred, target) + a * v)


def eiou_loss(pred: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Efficient IoU loss: the distances of centres, of widths and of heights.

    `1 - IoU + |centre - centre|**2 / diagonal**2 + (w - w_t)**2 / W**2 + (h - h_t)**2 / H**2`; W, H
    and the diagonal are those of the smallest box around all corners.

    Args, Raises: as `aligned_iou`.

    Returns:
      [*b] loss in [0, 4], float32 (float64 for float64 inputs).

    Example:
      >>> pred, target = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0]])
      >>> [float(loss) for loss in eiou_loss(pred, target)]  # 0.5 + 0.25 / 8 + 0 + 1 / 4
      [0.78125]

    Source: Zhang et al., "Focal and efficient IOU loss", Neurocomputing 2022, arXiv:2101.08158;
      without its focal weight IoU**0.5, whose gradient is infinite where boxes only just touch.
    """
    pred, target, finish = _as_boxes(where, pred, target)
    difference = _sides(pred) - _sides(target)
    shape = _ratio(difference**2, _hull_size(pred, target) ** 2)
    loss = 1 - _overlap(pred, target)[0] + _centre_distance(pred, target)
    return finish(loss + jnp.sum(shape, axis=-1))


def _as_boxes(
    where: ArrayLike | None, pred: ArrayLike, target: ArrayLike
) -> tuple[jax.Array, jax.Array, Callable[..., jax.Array]]:
    """`as_pairs`, in a unit in which nothing overflows: all that follows are ratios."""
    pred, target, finish = as_pairs(where, pred, target)
    if pred.shape[-1] != 4:
        raise ValueError(f"pred has shape {pred.shape}; its last axis must hold x1, y1, x2, y2")
    reach = jnp.max(jnp.maximum(jnp.abs(pred), jnp.abs(target)), axis=-1, keepdims=True)
    unit = stop_gradient(jnp.maximum(reach / _LARGEST, 1.0))
    return pred / unit, target / unit, finish


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient; 0, with gradient 0, where the denominator is as good as 0."""
    is_safe = denominator > _TINY
    return jnp.where(is_safe, numerator, 0.0) / jnp.where(is_safe, denominator, 1.0)


def _sides(boxes: jax.Array) -> jax.Array:
    return jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)  # *b 2: width, height


def _area(lengths: jax.Array) -> jax.Array:
    return lengths[..., 0] * lengths[..., 1]


def _overlap(pred: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """IoU and the area of the union."""
    low = jnp.maximum(pred[..., :2], target[..., :2])
    high = jnp.minimum(pred[..., 2:], target[..., 2:])
    intersection = _area(jnp.maximum(high - low, 0.0))
    union = _area(_sides(pred)) + _area(_sides(target)) - intersection
    return _ratio(intersection, union), union


def _hull_size(pred: jax.Array, target: jax.Array) -> jax.Array:
    """Width and height of the smallest box around all corners.

    For boxes the right way round this is the box from the smaller (x1, y1) to the larger
    (x2, y2). Taking every corner keeps an inverted box inside it too, so that the terms divided
    by the hull stay bounded.
    """
    low = jnp.minimum(
        jnp.minimum(pred[..., :2], pred[..., 2:]), jnp.minimum(target[..., :2], target[..., 2:])
    )
    high = jnp.maximum(
        jnp.maximum(pred[..., :2], pred[..., 2:]), jnp.maximum(target[..., :2], target[..., 2:])
    )
    return high - low


def _centre_distance(pred: jax.Array, target: jax.Array) -> jax.Array:
    """Squared distance of the centres over the squared diagonal of the hull, in [0, 1]."""
    offset = (pred[..., :2] + pred[..., 2:] - target[..., :2] - target[..., 2:]) / 2
    diagonal = jnp.sum(_hull_size(pred, target) ** 2, axis=-1)
    return _ratio(jnp.sum(offset**2, axis=-1), diagonal)


def _aspect_difference(pred: jax.Array, target: jax.Array) -> jax.Array:
    """CIoU's v, in [0, 1]."""
    pred_sides, target_sides = _sides(pred), _sides(target)
    has_aspect = (jnp.sum(pred_sides**2, axis=-1) > _TINY) & (
        jnp.sum(target_sides**2, axis=-1) > _TINY
    )
    # arctan2 takes a height of 0, but not both sides: those boxes become squares first.
    angles = [
        jnp.arctan2(
            jnp.where(has_aspect, both[..., 0], 1.0), jnp.where(has_aspect, both[..., 1], 1.0)
        )
        for both in (target_sides, pred_sides)
    ]
    return 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
