"""Run lengths -> how much of each cell of a grid over the object's box the mask covers.

The number of mask pixels before a place, counted column after column as run lengths are, is
piecewise linear within a column. Its values at the cells' borders give exact averages over
cells of any size and place, so no mask is ever drawn.
"""

import numpy as np

from harmonic_jax.masks import RleTable


def mask_grids(masks: RleTable, boxes: np.ndarray, *, size: int) -> np.ndarray:
    """The coverage of a size x size grid over each object's box.

    Args:
      masks: n masks of one image.
      boxes: float [n, 4], xyxy in pixels of that image, inside of it, of positive size.
      size: cells along a side.

    Returns:
      uint8 [n, size, size]: 0 where no pixel of the cell is the object's, 255 where all are.

    Example:
      >>> from harmonic_jax.masks import encode_masks
      >>> corner = encode_masks(np.array([[[1, 0, 0, 0], [0, 0, 0, 0]]]))
      >>> mask_grids(corner, np.array([[0.0, 0.0, 4.0, 2.0]]), size=2).tolist()
      [[[128, 0], [0, 0]]]
    """
    grids = np.zeros((len(masks), size, size), np.uint8)
    runs, bounds = masks.runs()
    for row, box in enumerate(boxes.astype(np.float64).tolist()):
        own = runs[bounds[row] : bounds[row + 1]]
        if len(own) > 1:  # else no pixel is set
            grids[row] = _coverage(own, int(masks.sizes[row, 0]), box, size)
    return grids


def _coverage(runs: np.ndarray, height: int, box: list[float], size: int) -> np.ndarray:
    x1, y1, x2, y2 = box
    ends = np.cumsum(runs)
    pixels = runs.copy()
    pixels[::2] = 0  # runs of background
    first = int(x1)
    columns = np.arange(first, int(np.ceil(x2)))
    borders = (columns * height)[:, None] + np.linspace(y1, y2, size + 1)
    before = np.interp(borders, np.append(0, ends), np.append(0, np.cumsum(pixels)))
    in_columns = np.diff(before, axis=1)  # [columns, size]
    # The same along the other axis: pixels left of each border, linear within a column.
    total = np.concatenate([np.zeros((1, size)), np.cumsum(in_columns, axis=0)])
    place = np.linspace(x1, x2, size + 1) - first
    column = np.minimum(place.astype(np.int64), len(columns) - 1)
    left = total[column] + (place - column)[:, None] * in_columns[column]
    cell = (x2 - x1) * (y2 - y1) / size**2
    coverage = np.diff(left, axis=0).T * (255.0 / cell)
    return np.clip(np.rint(coverage), 0, 255).astype(np.uint8)
