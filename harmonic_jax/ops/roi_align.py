"""RoIAlign on one feature map or on a feature pyramid, with static shapes.

A bin is the mean of bilinear samples, and so a weighted sum of a few cells ("taps") whose weights
are products of a vertical and a horizontal one. Forward, the taps are gathered one at a time and
added up in one fused pass: no patches are stored. Backward, all taps of a few RoIs are
scattered at once; differentiating the forward pass would write one gradient of the features a tap.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax.ops._types import AnyArray, Array, Float, Int, Real
from harmonic_jax.ops.boxes import as_boxes, box_area

_SCATTERED = 12544  # Taps scattered at a time: 16 RoIs of 7 x 7 bins with 4 x 4 taps each.


def roi_align(
    features: Float[AnyArray, "h w c"],
    boxes: Real[AnyArray, "r 4"],
    *,
    output_size: int,
    spatial_scale: float,
    aligned: bool,
    sampling_ratio: int = 2,
) -> Float[Array, "r s s c"]:
    """Average features in the s x s bins of each box, without rounding its coordinates.

    A bin is the mean of sampling_ratio x sampling_ratio bilinear samples at the centers of its
    equal parts. A sample more than one cell outside of the map is 0; one that is less far outside
    takes the nearest border's value.

    Args:
      features: `[h w c]`, one image; use `jax.vmap` for several.
      boxes: `[r 4]`, xyxy in pixels. They may reach out of the image and be empty. A box with a
        coordinate that is not finite yields zeros.
      output_size: s, >= 1.
      spatial_scale: cells a pixel, 1 / stride.
      aligned: True: cell (i, j) has its center at (i + .5, j + .5) / spatial_scale, which is
        right. False: at (i, j) / spatial_scale, and a box has at least one cell on each side, as
        in the first implementations and in torchvision's detectors.
      sampling_ratio: samples of a bin along each axis, >= 1. A number that adapts to each box
        (torchvision's 0) has no static shape.

    Returns:
      `[r s s c]` of the features' type, accumulated in float32. Gradients flow to the features,
      and none to the boxes. Forward-mode differentiation is not supported.

    Raises:
      ValueError: output_size or sampling_ratio below 1.

    >>> ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 1))  # Value: x.
    >>> box = jnp.array([[4.0, 4.0, 12.0, 12.0]])
    >>> roi_align(ramp, box, output_size=2, spatial_scale=0.5, aligned=True)[0, 0, :, 0].tolist()
    [2.5, 4.5]

    Source: He et al., Mask R-CNN, 2017, section 3.
    """
    return _align(
        (features,),
        boxes,
        jnp.zeros(boxes.shape[0], jnp.int32),
        scales=(spatial_scale,),
        output_size=output_size,
        aligned=aligned,
        sampling_ratio=sampling_ratio,
    )


def pyramid_roi_align(
    levels: Sequence[Float[AnyArray, "_ _ c"]],
    boxes: Real[AnyArray, "r 4"],
    *,
    output_size: int,
    first_level: int,
    aligned: bool,
    sampling_ratio: int = 2,
    canonical_level: int = 4,
    canonical_size: float = 224.0,
) -> Float[Array, "r s s c"]:
    """`roi_align`, each box on the level of a feature pyramid that `assign_levels` gives it.

    Args:
      levels: `[h_l w_l c]` for each level of one image, finest first; level l has stride 2**l.
      boxes, output_size, aligned, sampling_ratio: as for `roi_align`.
      first_level: l of `levels[0]`; 2 for a stride of 4.
      canonical_level, canonical_size: as for `assign_levels`.

    Returns:
      `[r s s c]`, with the gradients of `roi_align`. With `aligned=False` it is what
      `torchvision.ops.MultiScaleRoIAlign` computes.

    Raises:
      ValueError: output_size or sampling_ratio below 1, or no level.

    >>> levels = [jnp.full((16, 16, 1), 2.0), jnp.full((8, 8, 1), 3.0)]
    >>> boxes = jnp.array([[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 60.0, 60.0]])
    >>> pyramid_roi_align(
    ...     levels, boxes, output_size=1, first_level=2, aligned=True, canonical_size=120.0
    ... ).ravel().tolist()
    [2.0, 3.0]

    Source: Lin et al., Feature Pyramid Networks, 2017, equation 1.
    """
    if not levels:
        raise ValueError("levels is empty; a pyramid has at least one level")
    last_level = first_level + len(levels) - 1
    level = assign_levels(
        boxes,
        levels=(first_level, last_level),
        canonical_level=canonical_level,
        canonical_size=canonical_size,
    )
    return _align(
        tuple(levels),
        boxes,
        level - first_level,
        scales=tuple(2.0**-l for l in range(first_level, last_level + 1)),
        output_size=output_size,
        aligned=aligned,
        sampling_ratio=sampling_ratio,
    )


def assign_levels(
    boxes: Real[AnyArray, "r 4"],
    *,
    levels: tuple[int, int],
    canonical_level: int = 4,
    canonical_size: float = 224.0,
) -> Int[Array, " r"]:
    """The level of a feature pyramid on which a box is pooled.

    l = floor(l_0 + log2(sqrt(area) / s_0) + 1e-6), moved into the range of levels.

    Args:
      boxes: `[r 4]`, xyxy in pixels.
      levels: first and last level.
      canonical_level: l_0, the level of a box of the canonical size.
      canonical_size: s_0, the side of that box in pixels.

    Returns:
      `[r]` int32. Empty boxes, and those without an area, are on the first level.

    >>> boxes = jnp.array([[0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 223.0, 224.0], [5.0] * 4])
    >>> assign_levels(boxes, levels=(2, 5)).tolist()
    [4, 3, 2]

    Source: Lin et al., Feature Pyramid Networks, 2017, equation 1.
    """
    side = jnp.sqrt(box_area(jnp.asarray(boxes, jnp.float32)))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)
    level = jnp.where(jnp.isnan(level), levels[0], jnp.clip(level, *levels))
    return level.astype(jnp.int32)


class _Taps(NamedTuple):
    """The cells that each of s bins of an axis averages, and their weights; t taps a bin."""

    cell: Array  # [r s t] int32, number of a column; of a row, the number of its first cell
    weight: Array  # [r s t] float32


def _align(
    levels: tuple[AnyArray, ...],
    boxes: AnyArray,
    level: Array,
    *,
    scales: tuple[float, ...],
    output_size: int,
    aligned: bool,
    sampling_ratio: int,
) -> Array:
    for name, value in (("output_size", output_size), ("sampling_ratio", sampling_ratio)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be >= 1")
    for level_map in levels:
        if level_map.ndim != 3 or not jnp.issubdtype(level_map.dtype, jnp.floating):
            raise ValueError(
                f"features are {level_map.dtype} of shape {level_map.shape}; they must be floating "
                "point numbers [h, w, c] of one image; jax.vmap takes batches"
            )
    heights, widths = (np.array([f.shape[axis] for f in levels], np.int32) for axis in (0, 1))
    starts = np.cumsum(np.concatenate(([0], heights * widths)))[:-1].astype(np.int32)

    boxes = jax.lax.stop_gradient(as_boxes("boxes", boxes))
    is_finite = jnp.isfinite(boxes).all(axis=-1)
    boxes = jnp.where(is_finite[:, None], boxes, 0.0)
    boxes = boxes * jnp.asarray(scales, jnp.float32)[level][:, None]
    axis_taps = partial(
        _axis_taps, output_size=output_size, aligned=aligned, sampling_ratio=sampling_ratio
    )
    x = axis_taps(boxes[:, 0], boxes[:, 2], jnp.asarray(widths)[level])
    y = axis_taps(boxes[:, 1], boxes[:, 3], jnp.asarray(heights)[level])
    width, start = (jnp.asarray(of)[level][:, None, None] for of in (widths, starts))
    y = _Taps(start + y.cell * width, jnp.where(is_finite[:, None, None], y.weight, 0.0))
    rows = jnp.concatenate([jnp.reshape(f, (-1, f.shape[2])) for f in levels])  # [sum h w, c]
    return _pool(rows, y, x)


def _axis_taps(
    low: Array, high: Array, size: Array, *, output_size: int, aligned: bool, sampling_ratio: int
) -> _Taps:
    """Taps along one axis: box ends and map size in cells, all [r]."""
    if aligned:
        low, high = low - 0.5, high - 0.5
    length = high - low if aligned else jnp.maximum(high - low, 1.0)
    low, bin_size = low[:, None, None], (length / output_size)[:, None, None]
    limit = size.astype(jnp.float32)[:, None, None]
    bins = jnp.arange(output_size, dtype=jnp.float32)[None, :, None]
    parts = jnp.arange(sampling_ratio, dtype=jnp.float32)[None, None, :]
    # In torchvision's order: a sample one cell outside must be rounded to the same side.
    at = low + bins * bin_size + (parts + 0.5) * bin_size / sampling_ratio  # [r s ratio]
    is_inside = (at >= -1.0) & (at <= limit)  # Not where it overflowed to NaN.
    at = jnp.clip(jnp.where(is_inside, at, 0.0), 0.0, limit - 1.0)
    below = jnp.floor(at)
    index = jnp.stack((below, jnp.minimum(below + 1.0, limit - 1.0)), axis=-1)
    weight = jnp.stack((1.0 - (at - below), at - below), axis=-1) / sampling_ratio
    weight = jnp.where(is_inside[..., None], weight, 0.0)
    shape = (low.shape[0], output_size, 2 * sampling_ratio)
    return _Taps(index.astype(jnp.int32).reshape(shape), weight.reshape(shape))


@jax.custom_vjp
def _pool(rows: Array, y: _Taps, x: _Taps) -> Array:
    """Weighted sums of rows `[n c]` at y.cell + x.cell: `[r s s c]`."""
    r, s, t = x.cell.shape
    pooled = jnp.zeros((r, s, s, rows.shape[1]), jnp.float32)
    for i in range(t):
        for j in range(t):
            index = y.cell[:, :, None, i] + x.cell[:, None, :, j]  # [r s s]
            weight = y.weight[:, :, None, i] * x.weight[:, None, :, j]
            cells = rows.at[index].get(mode="promise_in_bounds").astype(jnp.float32)
            pooled += weight[..., None] * cells
    return pooled.astype(rows.dtype)


def _pool_forward(rows: Array, y: _Taps, x: _Taps) -> tuple[Array, tuple[Array, _Taps, _Taps]]:
    return _pool(rows, y, x), (rows[:, :0], y, x)  # Of the rows, backward needs number and type.


def _pool_backward(
    residuals: tuple[Array, _Taps, _Taps], gradient: AnyArray
) -> tuple[Array, None, None]:
    like, y, x = residuals
    r, s, t = x.cell.shape
    group = max(1, min(r, _SCATTERED // (s * t) ** 2))  # More at a time would leave the cache.

    def grouped(array: Array) -> Array:  # Padding has weight 0.
        padded = jnp.pad(array, ((0, -r % group), *((0, 0),) * (array.ndim - 1)))
        return padded.reshape(-1, group, *array.shape[1:])

    def scatter(total: Array, part: tuple[_Taps, _Taps, Array]) -> tuple[Array, None]:
        y, x, gradient = part
        index = y.cell[:, :, :, None, None] + x.cell[:, None, None, :, :]  # [g s t s t]
        weight = y.weight[:, :, :, None, None] * x.weight[:, None, None, :, :]
        updates = weight[..., None] * gradient[:, :, None, :, None, :].astype(jnp.float32)
        return total.at[index].add(updates, mode="promise_in_bounds"), None

    zeros = jnp.zeros((like.shape[0], gradient.shape[-1]), jnp.float32)
    parts = jax.tree.map(grouped, (y, x, gradient))
    return jax.lax.scan(scatter, zeros, parts)[0].astype(like.dtype), None, None


_pool.defvjp(_pool_forward, _pool_backward)
