"""Regression losses: balanced L1, EIoU, alpha-IoU and SIoU (GIoU, DIoU, CIoU: `losses`)."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_number, as_pairs, check_choice
from harmonic_jax.losses._boxes import (
    TINY,
    area,
    as_boxes,
    aspect_difference,
    centre_distance,
    hull_size,
    overlap,
    ratio,
    sides,
)

Penalty = Literal["none", "giou", "diou", "ciou"]


def balanced_l1_loss(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    alpha: float = 0.5,
    gamma: float = 1.5,
    beta: float = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Balanced L1 loss, summed over the coordinates of each sample.

    For each coordinate, with `x = |pred - target| / beta` and `b = exp(gamma / alpha) - 1`:
    `beta * (alpha / b * (b x + 1) log(b x + 1) - alpha x)` if x < 1, else
    `beta * (gamma x + gamma / b - alpha)`

    Its slope, alpha log(b x + 1) and then gamma, rises steeper than that of SmoothL1: accurate
    coordinates have a larger share of the gradient.

    Args:
      pred: [*b, c] predicted box deltas (c = 4), or any other coordinates.
      target: [*b, c] their targets; differentiable too.
      alpha: how much accurate coordinates gain, > 0; the smaller, the more.
      gamma: the slope from beta on, > 0, at most 20 alpha.
      beta: where the slope becomes constant, > 0.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, >= 0, float32 (float64 for float64 inputs).

    Raises:
      TypeError: an array is not floating point, `where` not bool, or an option not a number.
      ValueError: the shapes do not fit, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import balanced_l1_loss
      >>> loss = balanced_l1_loss(jnp.array([[1.0], [3.0]]), jnp.zeros((2, 1)))
      >>> [round(float(value), 4) for value in loss]  # 1.5 / (e**3 - 1) + 1, and 3 more
      [1.0786, 4.0786]

    Source: Pang et al., "Libra R-CNN", CVPR 2019, arXiv:1904.02701, for beta = 1. For other beta
      this is the same curve in units of beta; the reference implementation divides by beta inside
      the logarithm only, and its slope jumps at beta.
    """
    pred, target, finish = as_pairs(where, pred, target)
    alpha, gamma = as_number("alpha", alpha, 1e-6), as_number("gamma", gamma, 1e-6)
    beta = as_number("beta", beta, 1e-6)
    gamma = as_number("gamma (at most 20 alpha)", gamma, 0.0, 20 * alpha)
    b = math.expm1(gamma / alpha)
    difference = pred - target
    x = difference * jnp.sign(difference) / beta  # as abs, but with slope 0 at 0
    inner = jnp.minimum(x, 1.0)
    curve = alpha / b * (b * inner + 1) * jnp.log1p(b * inner) - alpha * inner
    # At 1 the curve is gamma + gamma / b - alpha; from there on a line. The minimum's slope is
    # shared at its kink, as this line's is.
    line = gamma * (x - inner)
    return finish(beta * jnp.sum(curve + line, axis=-1))


def eiou_loss(pred: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Efficient IoU loss: the distances of centres, of widths and of heights.

    `1 - IoU + |centre - centre|**2 / diagonal**2 + (w - w_t)**2 / W**2 + (h - h_t)**2 / H**2`; W, H
    and the diagonal are those of the smallest box around all corners.

    Args:
      pred: [*b, 4] boxes, xyxy, in any unit (pixels; squared lengths up to 1e-12 count as 0).
      target: [*b, 4] boxes, xyxy; differentiable too.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss in [0, 4], float32 (float64 for float64 inputs).

    Raises:
      TypeError: an array is not floating point, or `where` not bool.
      ValueError: the shapes differ or do not end in 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import eiou_loss
      >>> pred, target = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0]])
      >>> [float(loss) for loss in eiou_loss(pred, target)]  # 0.5 + 0.25 / 8 + 0 + 1 / 4
      [0.78125]

    Source: Zhang et al., "Focal and efficient IOU loss", Neurocomputing 2022, arXiv:2101.08158;
      without its focal weight IoU**0.5, whose gradient is infinite where boxes only just touch.
    """
    pred, target, finish = as_boxes(where, pred, target)
    difference = sides(pred) - sides(target)
    shape = ratio(difference**2, hull_size(pred, target) ** 2)
    loss = 1 - overlap(pred, target)[0] + centre_distance(pred, target)
    return finish(loss + jnp.sum(shape, axis=-1))


def alpha_iou_loss(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    alpha: float = 3.0,
    penalty: Penalty = "none",
    where: ArrayLike | None = None,
) -> jax.Array:
    """The IoU losses with every term to the power of alpha.

    - "none": `1 - IoU**alpha`
    - "giou": `+ ((hull - union) / hull)**alpha`
    - "diou": `+ (|centre - centre|**2 / diagonal**2)**alpha`
    - "ciou": the one of "diou", `+ (a v)**alpha`, a and v as in `ciou_loss`, a constant

    The slope alpha * IoU**(alpha - 1) is steep for good boxes and close to 0 for bad ones.

    Args:
      pred: [*b, 4] boxes, xyxy, in any unit, as in `eiou_loss`.
      target: [*b, 4] boxes, xyxy; differentiable too.
      alpha: the power, >= 1; below, the slope would be infinite at IoU 0.
      penalty: which terms, see above.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss >= 0, float32 (float64 for float64 inputs).

    Raises:
      TypeError: an array is not floating point, `where` not bool, or `alpha` not a number.
      ValueError: the shapes differ or do not end in 4, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import alpha_iou_loss
      >>> pred, target = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0]])
      >>> [float(loss) for loss in alpha_iou_loss(pred, target)]  # 1 - 0.5**3
      [0.875]

    Source: He et al., "Alpha-IoU", NeurIPS 2021, arXiv:2110.13675.
    """
    pred, target, finish = as_boxes(where, pred, target)
    alpha = as_number("alpha", alpha, 1.0)
    check_choice("penalty", penalty, get_args(Penalty))
    iou, union = overlap(pred, target)
    loss = 1 - iou**alpha
    if penalty == "giou":
        hull = area(hull_size(pred, target))
        loss += jnp.maximum(ratio(hull - union, hull), 0.0) ** alpha
    elif penalty in ("diou", "ciou"):
        loss += centre_distance(pred, target) ** alpha
    if penalty == "ciou":
        v = aspect_difference(pred, target)
        a = stop_gradient(v / jnp.maximum(1 - iou + v, TINY))
        loss += (a * v) ** alpha
    return finish(loss)


def siou_loss(
    pred: ArrayLike, target: ArrayLike, *, theta: float = 4.0, where: ArrayLike | None = None
) -> jax.Array:
    """SCYLLA IoU loss: the way to the target first along one axis, then along the other.

    `1 - IoU + (distance + shape) / 2`, with d the vector between the centres:

    - angle = sin(2 arcsin(|d_y| / |d|)), 0 along an axis and 1 on the diagonal;
    - distance = `sum_xy(1 - exp(-(2 - angle) (d_x / W)**2))`, W and H the sides of the smallest
      box around all corners;
    - shape = `sum_wh(1 - exp(-|w - w_t| / max(w, w_t)))**theta`

    Args:
      pred: [*b, 4] boxes, xyxy, in any unit, as in `eiou_loss`.
      target: [*b, 4] boxes, xyxy; differentiable too.
      theta: exponent of the shape, >= 1; 2 to 6 in the source.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss in [0, 3], float32 (float64 for float64 inputs).

    Raises:
      TypeError: an array is not floating point, `where` not bool, or `theta` not a number.
      ValueError: the shapes differ or do not end in 4, or `theta` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from harmonic_jax.losses.quality import siou_loss
      >>> pred, target = jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[1.0, 0.0, 2.0, 1.0]])
      >>> [round(float(loss), 4) for loss in siou_loss(pred, target)]  # 1 + (1 - exp(-2 / 4)) / 2
      [1.1967]

    Source: Gevorgyan, "SIoU loss", 2022, arXiv:2205.12740, which prints the angle as
      1 - 2 sin(arcsin(x) - pi / 4)**2. Some implementations have the sign of the exponent of
      distance wrong, which rewards distant centres.
    """
    pred, target, finish = as_boxes(where, pred, target)
    theta = as_number("theta", theta, 1.0)
    d = jnp.abs(pred[..., :2] + pred[..., 2:] - target[..., :2] - target[..., 2:]) / 2
    # sin(2 a) = 2 sin(a) cos(a)
    angle = ratio(2 * d[..., 0] * d[..., 1], jnp.sum(d**2, axis=-1))
    rho = ratio(d**2, hull_size(pred, target) ** 2)
    distance = -jnp.sum(jnp.expm1(-(2 - angle)[..., None] * rho), axis=-1)
    w, w_t = sides(pred), sides(target)
    omega = ratio(jnp.abs(w - w_t), jnp.maximum(w, w_t))
    shape = jnp.sum((-jnp.expm1(-omega)) ** theta, axis=-1)
    return finish(1 - overlap(pred, target)[0] + (distance + shape) / 2)
