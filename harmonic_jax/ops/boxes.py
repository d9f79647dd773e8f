"""Areas and overlaps of axis-aligned boxes (xyxy, x2 = x1 + width).

As everywhere in this package, numbers of any type, integers too, are computed in float32.
"""

import jax.numpy as jnp
import numpy as np

from harmonic_jax.ops._types import AnyArray, Array, Float, Real

_LARGEST = 2.0**126  # of areas


def as_boxes(name: str, boxes: Real[AnyArray, "*b 4"]) -> Float[Array, "*b 4"]:
    """Boxes, or deltas, in float32; JAX would read a column that is not there as the last one.

    Raises:
      ValueError: the last axis does not hold four numbers.
    """
    boxes = jnp.asarray(boxes, jnp.float32)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{name} has shape {boxes.shape}; its last axis must hold four numbers")
    return boxes


def box_area(boxes: Real[AnyArray, "*b 4"]) -> Float[Array, "*b"]:
    """Area of each box: max(x2 - x1, 0) * max(y2 - y1, 0).

    Args:
      boxes: `[*b 4]`, xyxy. An inverted box has area 0.

    Returns:
      `[*b]` float32, in squared units of the boxes; 2**126, about 8.5e37, where it is more.

    >>> box_area(jnp.array([[0.0, 0.0, 4.0, 2.0], [3.0, 3.0, 1.0, 9.0]])).tolist()
    [8.0, 0.0]
    """
    boxes = as_boxes("boxes", boxes)
    return _size_product(
        jnp.maximum(boxes[..., 2] - boxes[..., 0], 0.0),
        jnp.maximum(boxes[..., 3] - boxes[..., 1], 0.0),
    )


def pairwise_iou(a: Real[AnyArray, "n 4"], b: Real[AnyArray, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of every box of `a` with every box of `b`.

    IoU = I / (A_a + A_b - I), and 0 where both boxes are empty or a coordinate is NaN. Every
    operation is rounded on its own, so the value does not depend on what it is compiled into.

    Args:
      a: `[n 4]`, xyxy.
      b: `[m 4]`, xyxy, in the same unit.

    Returns:
      `[n m]` float32 in [0, 1]; of areas above 2**126, which count as that, it is no more than a
      number in this range. Its gradient is finite for finite boxes, and 0 for pairs of empty ones.

    >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
    >>> pairwise_iou(a, jnp.array([[0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 6.0]])).tolist()
    [[0.5, 0.0]]
    """
    a, b = as_boxes("a", a), as_boxes("b", b)
    return iou_of_coordinates(
        tuple(a[:, None, axis] for axis in range(4)), tuple(b[None, :, axis] for axis in range(4))
    )


Coordinates = tuple[Array, ...]
"""x1, y1, x2, y2 as arrays of their own: the layout in which wide loops over boxes are fast."""


def iou_of_coordinates(a: Coordinates, b: Coordinates) -> Array:
    """`pairwise_iou` for coordinates that broadcast against each other.

    Args:
      a: x1, y1, x2, y2, each of one shape.
      b: likewise, with a shape of the same rank that broadcasts with the shape of `a`.

    Returns:
      The IoU in float32, of the broadcast shape.

    >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.0]])
    >>> iou_of_coordinates(tuple(boxes.T), tuple(boxes[::-1].T)).tolist()
    [0.5, 0.5]
    """
    a, b = (tuple(jnp.asarray(c, jnp.float32) for c in box) for box in (a, b))
    area_a = _size_product(jnp.maximum(a[2] - a[0], 0.0), jnp.maximum(a[3] - a[1], 0.0))
    area_b = _size_product(jnp.maximum(b[2] - b[0], 0.0), jnp.maximum(b[3] - b[1], 0.0))
    width = jnp.maximum(jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0]), 0.0)
    height = jnp.maximum(jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1]), 0.0)
    intersection = _size_product(width, height)
    union = area_a + area_b - intersection
    is_some = union > 0.0  # False for NaN
    return jnp.where(is_some, intersection, 0.0) / jnp.where(is_some, union, 1.0)


def _size_product(width: Array, height: Array) -> Array:
    """width * height for sizes >= 0, where the product is rounded before it is used.

    A compiler may turn a * b + c into one fused operation, in one place and not in another, and
    then two computations of the same IoU differ in the last bit: ties are lost, and so is the
    equality with other libraries. The bounds stand in the way of that. The upper one leaves room
    for the sum of two.
    """
    return jnp.clip(width * height, 0.0, _LARGEST)


def clip_boxes(
    boxes: Real[AnyArray, "*b n 4"], image_size: Real[AnyArray, "*b 2"]
) -> Float[Array, "*b n 4"]:
    """Move every coordinate into the image: x to [0, w], y to [0, h].

    Args:
      boxes: `[*b n 4]`, xyxy in pixels.
      image_size: `[*b 2]`, height and width in pixels.

    Returns:
      `[*b n 4]` float32; a box outside of the image becomes an empty one on its border.

    >>> clip_boxes(jnp.array([[-3.0, 2.0, 30.0, 9.0]]), jnp.array([8.0, 20.0])).tolist()
    [[0.0, 2.0, 20.0, 8.0]]
    """
    size = jnp.asarray(image_size, jnp.float32)
    limit = size[..., None, np.array([1, 0, 1, 0])]  # [*b 1 4]: w h w h
    return jnp.clip(as_boxes("boxes", boxes), 0.0, limit)
