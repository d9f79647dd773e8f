"""Geometry that the losses of boxes share: finite, with finite gradients, on any box."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_pairs

# Areas and squared lengths up to this count as 0: a ratio of them has no meaning, and its
# derivative, which divides by their square, would overflow float32.
TINY = 1e-12

# Pairs that reach further are scaled down to this: products of two areas must fit float32.
_LARGEST = 1e9


def as_boxes(
    where: ArrayLike | None, pred: ArrayLike, target: ArrayLike
) -> tuple[jax.Array, jax.Array, Callable[..., jax.Array]]:
    """`as_pairs`, in a unit in which nothing overflows: all that follows are ratios."""
    pred, target, finish = as_pairs(where, pred, target)
    if pred.shape[-1] != 4:
        raise ValueError(f"pred has shape {pred.shape}; its last axis must hold x1, y1, x2, y2")
    reach = jnp.max(jnp.maximum(jnp.abs(pred), jnp.abs(target)), axis=-1, keepdims=True)
    unit = stop_gradient(jnp.maximum(reach / _LARGEST, 1.0))
    return pred / unit, target / unit, finish


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient; 0, with gradient 0, where the denominator is as good as 0."""
    is_safe = denominator > TINY
    return jnp.where(is_safe, numerator, 0.0) / jnp.where(is_safe, denominator, 1.0)


def sides(boxes: jax.Array) -> jax.Array:
    return jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)  # *b 2: width, height


def area(lengths: jax.Array) -> jax.Array:
    return lengths[..., 0] * lengths[..., 1]


def overlap(pred: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """IoU and the area of the union."""
    low = jnp.maximum(pred[..., :2], target[..., :2])
    high = jnp.minimum(pred[..., 2:], target[..., 2:])
    intersection = area(jnp.maximum(high - low, 0.0))
    union = area(sides(pred)) + area(sides(target)) - intersection
    return ratio(intersection, union), union


def hull_size(pred: jax.Array, target: jax.Array) -> jax.Array:
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


def centre_distance(pred: jax.Array, target: jax.Array) -> jax.Array:
    """Squared distance of the centres over the squared diagonal of the hull, in [0, 1]."""
    offset = (pred[..., :2] + pred[..., 2:] - target[..., :2] - target[..., 2:]) / 2
    diagonal = jnp.sum(hull_size(pred, target) ** 2, axis=-1)
    return ratio(jnp.sum(offset**2, axis=-1), diagonal)


def aspect_difference(pred: jax.Array, target: jax.Array) -> jax.Array:
    """CIoU's v, in [0, 1]."""
    pred_sides, target_sides = sides(pred), sides(target)
    has_aspect = (jnp.sum(pred_sides**2, axis=-1) > TINY) & (
        jnp.sum(target_sides**2, axis=-1) > TINY
    )
    # arctan2 takes a height of 0, but not both sides: those boxes become squares first.
    angles = [
        jnp.arctan2(
            jnp.where(has_aspect, both[..., 0], 1.0), jnp.where(has_aspect, both[..., 1], 1.0)
        )
        for both in (target_sides, pred_sides)
    ]
    return 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
