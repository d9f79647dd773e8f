"""Losses of boxes by others that stand for them: scaled boxes, and Gaussians."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_number, as_pairs
from harmonic_jax.losses.localization import iou_loss


def inner_iou_loss(
    pred: ArrayLike, target: ArrayLike, *, ratio: float, where: ArrayLike | None = None
) -> jax.Array:
    """IoU loss of auxiliary boxes: `1 - IoU` of both, scaled by `ratio` about their own centres.

    Ratio 1 is `iou_loss`. Above it boxes further apart have a slope; below it near ones a steeper.

    Args:
      pred, target, where: as in `aligned_iou`.
      ratio: of widths and heights, in [0.1, 10]; 0.5 to 1.5 in the source.

    Returns, Raises: as `iou_loss`.

    Example:
      >>> pred, target = jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([[1.0, 0.0, 5.0, 4.0]])
      >>> [round(float(loss), 4) for loss in inner_iou_loss(pred, target, ratio=0.5)]  # 1 - 2 / 6
      [0.6667]

    Source: Zhang et al., "Inner-IoU", 2023, arXiv:2311.02877.
    """
    pred, target, finish = as_pairs(where, pred, target)
    grow = (as_number("ratio", ratio, 0.1, 10.0) - 1) / 2
    inner = (boxes + grow * (boxes - jnp.roll(boxes, 2, axis=-1)) for boxes in (pred, target))
    return finish(iou_loss(*inner))


def nwd_loss(
    pred: ArrayLike, target: ArrayLike, *, constant: float, where: ArrayLike | None = None
) -> jax.Array:
    """1 - the normalised Wasserstein distance (NWD) of boxes as Gaussians.

    `1 - exp(-W / constant)`, `W = |(cx, cy, w/2, h/2) of pred - those of target|`, which is
    `|pred - target| / sqrt(2)` of the corners. The gradient at W = 0 is 0.

    Args:
      pred, target, where: as in `aligned_iou`; pixels.
      constant: pixels, in [0.001, 1e6]: about the objects' size; 12.8 for the source's AI-TOD.

    Returns, Raises: as `iou_loss`.

    Example:
      >>> pred, target = jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([[3.0, 4.0, 7.0, 8.0]])
      >>> [round(float(loss), 4) for loss in nwd_loss(pred, target, constant=12.8)]  # W = 5
      [0.3234]

    Source: Wang et al., "A normalized Gaussian Wasserstein distance", 2021, arXiv:2110.13389.
    """
    pred, target, finish = as_pairs(where, pred, target)
    if pred.shape[-1] != 4:
        raise ValueError(f"pred has shape {pred.shape}; its last axis must hold x1, y1, x2, y2")
    constant = as_number("constant", constant, 1e-3, 1e6)
    square = jnp.sum((pred - target) ** 2, axis=-1) / 2  # an infinite one gives 1, slope 0
    distance = jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))  # no slope at 0
    return finish(-jnp.expm1(-distance / constant))
