"""From a mask head's grid of probabilities to pixels of the image."""

import numpy as np

from harmonic_jax.masks.rle import RleTable


def paste_masks(
    probabilities: np.ndarray,
    boxes: np.ndarray,
    height: int,
    width: int,
    *,
    threshold: float = 0.5,
) -> RleTable:
    """Draws masks into an image of the original size.

    As torchvision does it: the grid gets a border of zeros one cell wide, and the box grows by as
    much about its centre; its corners are cut to whole pixels, both ends included, so that a mask
    may reach a pixel beyond its box; the grid is stretched over it by bilinear interpolation, cell
    centres at half-integers. Only pixels of the box are computed.

    Args:
      probabilities: float [d, s, s], in [0, 1], on a grid over the box.
      boxes: float [d, 4], xyxy in pixels of the original image, finite.
      threshold: a pixel belongs to the object where its probability is above.

    Example:
      >>> table = paste_masks(np.ones((1, 28, 28)), np.array([[2.0, 3.0, 9.0, 12.0]]), 20, 30)
      >>> table.sizes.tolist(), table.boxes().tolist()
      ([[20, 30]], [[1, 2, 10, 13]])

    Source: He et al. 2017, "Mask R-CNN", section 3.1 (inference); torchvision's
    paste_masks_in_image, whose pixels these are.
    """
    cells = probabilities.shape[-1]
    grids = np.pad(probabilities.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    corners = _grown(boxes.astype(np.float32), (cells + 2) / cells)
    runs = [
        _draw_runs(grid, box, height, width, threshold)
        for grid, box in zip(grids, corners.tolist(), strict=True)
    ]
    bounds = np.cumsum([0, *map(len, runs)])
    joined = np.concatenate(runs) if runs else np.zeros(0, np.int64)
    return RleTable.from_runs(joined, bounds, (height, width))


def _grown(boxes: np.ndarray, scale: float) -> np.ndarray:
    """Boxes grown about their centres and cut to whole pixels, int64 [d, 4]."""
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32(scale)
    grown = np.concatenate([centre - half, centre + half], axis=1)
    return np.clip(grown, -(2**30), 2**30).astype(np.int64)  # beyond it nothing is visible


def _draw_runs(
    grid: np.ndarray, box: list[int], height: int, width: int, threshold: float
) -> np.ndarray:
    """Run lengths of one mask in an image, column after column, zeros first."""
    x1, y1, x2, y2 = box
    lines = _stretch(grid, y1, y2, height)
    top, bottom = max(y1, 0), max(y1, 0) + len(lines)
    columns = _stretch(np.ascontiguousarray(lines.T), x1, x2, width)
    left, right = max(x1, 0), max(x1, 0) + len(columns)
    # Whole columns of the image, so that a run may go on from one to the next.
    strip = np.zeros((right - left, height), bool)
    np.greater(columns, threshold, out=strip[:, top:bottom])
    flat = strip.ravel()
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        change = np.concatenate([[0], change])
    edges = change + left * height
    # An odd number of changes: the last run of ones reaches the end of the strip.
    if len(edges) % 2 and right < width:
        edges = np.append(edges, right * height)
    return np.diff(np.concatenate([[0], edges, [height * width]]))


def _stretch(rows: np.ndarray, low: int, high: int, limit: int) -> np.ndarray:
    """Rows interpolated at the pixels low..high, both included, that lie in 0..limit - 1."""
    length = max(high - low + 1, 1)
    pixels = np.arange(max(low, 0), max(min(high + 1, limit), max(low, 0)))
    place = (pixels - low + 0.5) * (len(rows) / length) - 0.5
    place = np.clip(place, 0, len(rows) - 1)
    first = np.minimum(place.astype(np.int64), len(rows) - 2)
    stretched = np.diff(rows, axis=0)[first]
    stretched *= (place - first).astype(np.float32)[:, None]
    stretched += rows[first]
    return stretched
