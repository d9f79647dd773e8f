"""Boxes as deltas: what a detector regresses relative to an anchor."""

import math

import jax.numpy as jnp

from harmonic_jax.ops._types import AnyArray, Array, Float, Real
from harmonic_jax.ops.boxes import as_boxes

Weights = tuple[float, float, float, float]

MAX_LOG_SCALE = math.log(1000.0 / 16)
"""Upper bound of dw and dh: no box is decoded to more than 62.5 times its anchor's side."""

_MAX_SHIFT = 1e6  # Centers move by at most this many anchor sides, so that float32 can hold them.
_TINY = 1e-6  # Sides below this count as this when a logarithm or a quotient needs one.


def encode_boxes(
    boxes: Real[AnyArray, "*b n 4"],
    anchors: Real[AnyArray, "*b n 4"],
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*b n 4"]:
    """The deltas that `decode_boxes` turns back into `boxes`.

    dx = w_x (cx - cx_a) / w_a, dy likewise, dw = w_w log(w / w_a), dh likewise.

    Args:
      boxes: `[*b n 4]`, xyxy in pixels.
      anchors: `[*b n 4]`, xyxy in pixels, one for each box.
      weights: what multiplies dx, dy, dw, dh; > 0.

    Returns:
      `[*b n 4]`: dx, dy, dw, dh. Sides below 1e-6 are taken as 1e-6, so deltas and gradients
      of empty and inverted boxes are finite, up to coordinates of 1e30.

    >>> anchors = jnp.array([[0.0, 0.0, 10.0, 10.0]])
    >>> encode_boxes(jnp.array([[5.0, 0.0, 15.0, 10.0]]), anchors).tolist()
    [[0.5, 0.0, 0.0, 0.0]]

    Source: Girshick et al., Rich feature hierarchies (R-CNN), 2014, appendix C.
    """
    center_x, center_y, width, height = _center_and_size(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _center_and_size(anchors)
    anchor_width = jnp.maximum(anchor_width, _TINY)
    anchor_height = jnp.maximum(anchor_height, _TINY)
    return jnp.stack(
        (
            weights[0] * (center_x - anchor_x) / anchor_width,
            weights[1] * (center_y - anchor_y) / anchor_height,
            weights[2] * jnp.log(jnp.maximum(width, _TINY) / anchor_width),
            weights[3] * jnp.log(jnp.maximum(height, _TINY) / anchor_height),
        ),
        axis=-1,
    )


def decode_boxes(
    deltas: Real[AnyArray, "*b n 4"],
    anchors: Real[AnyArray, "*b n 4"],
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    clamp: float = MAX_LOG_SCALE,
) -> Float[Array, "*b n 4"]:
    """The boxes that deltas describe.

    cx = cx_a + dx / w_x * w_a, w = w_a exp(min(dw / w_w, clamp)), likewise cy and h.

    Args:
      deltas: `[*b n 4]`: dx, dy, dw, dh, computed in float32 whatever their type.
      anchors: `[*b n 4]`, xyxy in pixels, one for each delta.
      weights: those of `encode_boxes`.
      clamp: upper bound of dw / w_w and dh / w_h; no gradient flows to what it cuts.

    Returns:
      `[*b n 4]` float32, xyxy in pixels, not clipped to the image. Value and gradient are finite
      for finite deltas: a center moves by at most 1e6 anchor sides.

    >>> anchors = jnp.array([[0.0, 0.0, 10.0, 10.0]])
    >>> decode_boxes(jnp.array([[0.5, 0.0, 0.0, 0.0]]), anchors).tolist()
    [[5.0, 0.0, 15.0, 10.0]]

    Source: Girshick et al., Rich feature hierarchies (R-CNN), 2014, appendix C.
    """
    deltas = as_boxes("deltas", deltas)
    anchor_x, anchor_y, anchor_width, anchor_height = _center_and_size(anchors)
    shift_x = jnp.clip(deltas[..., 0] / weights[0], -_MAX_SHIFT, _MAX_SHIFT)
    shift_y = jnp.clip(deltas[..., 1] / weights[1], -_MAX_SHIFT, _MAX_SHIFT)
    center_x = shift_x * anchor_width + anchor_x
    center_y = shift_y * anchor_height + anchor_y
    half_width = 0.5 * anchor_width * jnp.exp(jnp.minimum(deltas[..., 2] / weights[2], clamp))
    half_height = 0.5 * anchor_height * jnp.exp(jnp.minimum(deltas[..., 3] / weights[3], clamp))
    return jnp.stack(
        (
            center_x - half_width,
            center_y - half_height,
            center_x + half_width,
            center_y + half_height,
        ),
        axis=-1,
    )


def _center_and_size(boxes: AnyArray) -> tuple[Array, Array, Array, Array]:
    boxes = as_boxes("boxes", boxes)
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height
