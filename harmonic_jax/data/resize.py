"""The size at which an image reaches the network, resizing to it, and the colour around it."""

import math
from collections.abc import Callable

import cv2
import numpy as np

from harmonic_jax.data.settings import DataConfig

# ImageNet's mean colour: the network subtracts it, so padding enters the first layer as 0
# (|x| < 0.01 after division by the standard deviation), like the zeros of its own borders.
FILL_COLOUR = (124, 116, 104)


def network_size(
    height: int, width: int, config: DataConfig, *, bucket: tuple[int, int], short_side: int
) -> tuple[int, int]:
    """(height, width) that an image is resized to, before it is padded to its bucket."""
    if config.resize == "warp":
        return short_side, short_side
    return fit_size(
        height,
        width,
        short_side=short_side,
        max_side=config.max_side,
        bounds=bucket,
        whole=math.floor if config.resizing == "torchvision" else round,
    )


def fit_size(
    height: int,
    width: int,
    *,
    short_side: int,
    max_side: int,
    bounds: tuple[int, int],
    whole: Callable[[float], int] = round,
) -> tuple[int, int]:
    """The (height, width) of an image after resizing, aspect ratio kept; at least 1 each.

    The short side becomes `short_side`, unless the long side would exceed `max_side` or a side
    its bound: then the largest size within both. The bounds matter only where a crop changed
    the orientation for which the batch's shape was chosen.

    Args:
      short_side, max_side: pixels, short_side <= max_side.
      bounds: largest (height, width).
      whole: makes pixels whole: `round`, or `math.floor` as torchvision does.

    >>> fit_size(480, 640, short_side=800, max_side=1333, bounds=(800, 1344))
    (800, 1067)
    >>> fit_size(480, 1600, short_side=800, max_side=1333, bounds=(800, 1344))
    (400, 1333)
    """
    scale = min(
        short_side / min(height, width),
        max_side / max(height, width),
        bounds[0] / height,
        bounds[1] / width,
    )
    return max(1, whole(height * scale)), max(1, whole(width * scale))


def resize_image(
    image: np.ndarray,
    size: tuple[int, int],
    *,
    averages_areas: bool = True,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resizes uint8 [h, w, 3] to `size` = (height, width); into `out` of that size, if given.

    Bilinear, as the published detectors do, down to half the size: every source pixel still
    counts. Below that bilinear sampling would skip pixels (aliasing), so areas are averaged,
    unless `averages_areas` is False, as in torchvision.
    """
    height, width = image.shape[:2]
    if size == (height, width):
        if out is None:
            return image
        out[:] = image
        return out
    method = resize_method((height, width), size, averages_areas=averages_areas)
    return cv2.resize(image, (size[1], size[0]), dst=out, interpolation=method)


def resize_method(
    source: tuple[int, int], size: tuple[int, int], *, averages_areas: bool = True
) -> int:
    """OpenCV's name for how `resize_image` goes from one (height, width) to another."""
    is_small = 2 * size[0] < source[0] or 2 * size[1] < source[1]
    # Area averaging is defined for shrinking; enlarging a side it would repeat pixels.
    is_shrunk = size[0] <= source[0] and size[1] <= source[1]
    return cv2.INTER_AREA if averages_areas and is_small and is_shrunk else cv2.INTER_LINEAR


def fill_around(canvas: np.ndarray, size: tuple[int, int]) -> None:
    """Writes the mean colour to what is right of and below `size` = (height, width)."""
    height, width = size
    # Row by row: broadcasting single colours is several times slower.
    row = np.empty(canvas.shape[1:], np.uint8)
    row[:] = FILL_COLOUR
    canvas[:height, width:] = row[width:]
    canvas[height:] = row
