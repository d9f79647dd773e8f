"""Deformable attention (Zhu et al. 2021): a query reads a few points of the maps."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from harmonic_jax.ops._types import AnyArray, Array, Float


def deformable_attention(
    levels: Sequence[Float[AnyArray, "_ _ m c"]],
    points: Float[AnyArray, "q m l p 2"],
    weights: Float[AnyArray, "q m l p"],
) -> Float[Array, "q m c"]:
    """The weighted sum of values at points between the cells of an image's maps.

    `out[q, m] = sum_l sum_p weights[q, m, l, p] * bilinear(levels[l][:, :, m], points[q, m, l, p])`

    Cell (row, column) of a map of h x w lies at `((column + .5) / w, (row + .5) / h)`; a map is 0
    outside of its cells. The gradient flows to all three arguments.

    Args:
      levels: `[h_l, w_l, m, c]` values of each map, for m heads.
      points: `[q, m, l, p, 2]`, x and y as parts of the maps' width and height.
      weights: `[q, m, l, p]`.

    Returns:
      `[q, m, c]` float32.

    >>> level = jnp.array([[1.0, 3.0]]).reshape(1, 2, 1, 1)  # one row, two columns
    >>> point = jnp.array([0.5, 0.5]).reshape(1, 1, 1, 1, 2)  # halfway between the cells
    >>> deformable_attention([level], point, jnp.ones((1, 1, 1, 1))).tolist()
    [[[2.0]]]

    Source: Zhu et al., "Deformable DETR", ICLR 2021, arXiv:2010.04159, equation 3.
    """
    points, weights = jnp.asarray(points, jnp.float32), jnp.asarray(weights, jnp.float32)
    num_queries, num_heads = points.shape[:2]
    sizes = np.array([level.shape[:2] for level in levels])  # h, w
    first = np.cumsum([0, *sizes.prod(axis=1)[:-1]])  # cell of each level, of all in a row
    width, height, first = (a[None, None, :, None] for a in (sizes[:, 1], sizes[:, 0], first))

    cell = points * np.stack((width, height), axis=-1) - 0.5
    low = jnp.floor(cell)
    part = cell - low
    column, row = (low[..., axis].astype(jnp.int32) for axis in (0, 1))
    cells, shares = [], []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x, y = column + right, row + down
        share = (part if right else 1 - part)[..., 0] * (part if down else 1 - part)[..., 1]
        is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        cells.append(jnp.where(is_inside, first + y * width + x, 0))
        shares.append(jnp.where(is_inside, share * weights, 0.0))

    def by_head(corners: list[Array]) -> Array:
        """[m, q, l * p * 4]"""
        joined = jnp.stack(corners, axis=-1).reshape(num_queries, num_heads, -1)
        return joined.swapaxes(0, 1)

    index, share = by_head(cells), by_head(shares)
    values = jnp.concatenate([level.reshape(-1, *level.shape[2:]) for level in levels])
    values = values.astype(jnp.float32).swapaxes(0, 1)  # [m, cells, c]
    read = jnp.take_along_axis(values, index.reshape(num_heads, -1, 1), axis=1, mode="clip")
    read = read.reshape(*index.shape, -1)
    return (share[:, :, None] @ read)[:, :, 0].swapaxes(0, 1)  # in the layout that was read
