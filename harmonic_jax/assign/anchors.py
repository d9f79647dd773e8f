"""Anchors of a feature pyramid, computed with numpy so that a compiled step holds constants."""

import numpy as np

Shape = tuple[int, int]


def level_shapes(image_shape: Shape, levels: tuple[int, int]) -> tuple[Shape, ...]:
    """Height and width of every level of a feature pyramid.

    Level l is the image divided by 2**l, rounded up: convolutions of stride 2 and padding 1
    round up at every level, which comes to the same.

    Args:
      image_shape: height and width of the padded image, pixels.
      levels: first and last level.

    Returns:
      (h_l, w_l) of each level, finest first.

    Raises:
      ValueError: an image or a range of levels that has no pyramid.

    >>> level_shapes((800, 1344), (3, 7))
    ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
    """
    if min(image_shape) < 1:
        raise ValueError(f"image_shape is {image_shape}; both sides must be >= 1")
    first, last = levels
    if not 0 <= first <= last:
        raise ValueError(f"levels is {levels}; it must be (first, last) with 0 <= first <= last")
    height, width = image_shape
    return tuple((-(-height // 2**l), -(-width // 2**l)) for l in range(first, last + 1))


def make_anchors(
    image_shape: Shape,
    *,
    levels: tuple[int, int],
    size_factor: float,
    scales: tuple[float, ...],
    ratios: tuple[float, ...],
    rounding: bool = False,
) -> tuple[np.ndarray, ...]:
    """Anchors of every level, centered on the top-left corners of the cells.

    The anchor of ratio r (height over width) and scale s at level l has the area
    (size_factor * 2**l * s)**2; the cell in row i and column j puts its center at
    (j * stride, i * stride).

    Args:
      image_shape: height and width of the padded image, pixels.
      levels: first and last level.
      size_factor: side of the base anchor in strides.
      scales: factors of the side.
      ratios: heights over widths.
      rounding: torchvision's anchors: sides cut to whole pixels, then corners rounded, and
        strides of `image // feature map` (where the image is no multiple of 2**l they shrink) in
        place of 2**l.

    Returns:
      For each level `[h_l * w_l * len(ratios) * len(scales), 4]` float32, xyxy in pixels;
      row-major cells, then ratios, then scales.

    Raises:
      ValueError: an image or a range of levels that has no pyramid.

    >>> base, = make_anchors((8, 8), levels=(3, 3), size_factor=4.0, scales=(1.0,), ratios=(1.0,))
    >>> base.tolist()
    [[-16.0, -16.0, 16.0, 16.0]]

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.
    """
    first, _ = levels
    anchors = []
    for l, shape in enumerate(level_shapes(image_shape, levels), start=first):
        sides = size_factor * 2**l * np.asarray(scales, np.float64)
        if rounding:
            sides = np.trunc(sides)
        cell = _cell_anchors(sides, np.asarray(ratios, np.float64))
        strides: Shape = (2**l, 2**l)
        if rounding:
            cell = np.round(cell)
            strides = (image_shape[0] // shape[0], image_shape[1] // shape[1])
        anchors.append(_place(cell, shape, strides).astype(np.float32))
    return tuple(anchors)


def _cell_anchors(sides: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """[len(ratios) * len(sides), 4] around the origin."""
    root = np.sqrt(ratios)[:, None]
    half_widths = (sides[None, :] / root / 2).ravel()
    half_heights = (sides[None, :] * root / 2).ravel()
    return np.stack((-half_widths, -half_heights, half_widths, half_heights), axis=1)


def _place(cell: np.ndarray, shape: Shape, strides: Shape) -> np.ndarray:
    """Copies of the cell's anchors on every point of the grid, [h * w * len(cell), 4]."""
    y, x = np.meshgrid(
        np.arange(shape[0]) * strides[0], np.arange(shape[1]) * strides[1], indexing="ij"
    )
    shifts = np.stack((x, y, x, y), axis=-1).reshape(-1, 1, 4)
    return (shifts + cell[None]).reshape(-1, 4)
