"""Anchors of a feature pyramid, and the default boxes of SSD and RefineDet.

Computed with numpy: they depend on the shape of the images alone, and a compiled step holds them as
constants.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from harmonic_jax.checks import check_fields, require
from harmonic_jax.ops.box_coder import Weights

Shape = tuple[int, int]
Floats = tuple[float, ...]

BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
"""The variances 0.1 0.1 0.2 0.2 of SSD's Caffe original, as weights of `ops.box_coder`."""


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """Anchors of a pyramid: level l, stride 2**l, has base size `size_factor * 2**l`."""

    size_factor: Annotated[float, "[0.01, 1000]"] = 4.0
    scales: Annotated[Floats, "[0.001, 1000]"] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    ratios: Annotated[Floats, "[0.001, 1000]"] = (0.5, 1.0, 2.0)
    """Height over width."""
    rounding: Literal["none", "torchvision"] = "none"
    """`torchvision`: whole sides, corners rounded to whole pixels, and strides of image size //
    feature map size, as torchvision's weights were trained with."""

    def __post_init__(self) -> None:
        check_fields(self, "anchors")
        for field, values in (("scales", self.scales), ("ratios", self.ratios)):
            require(
                0 < len(set(values)) == len(values) <= 16,
                f"anchors.{field}",
                values,
                "1 to 16 different numbers",
            )

    @property
    def per_location(self) -> int:
        return len(self.scales) * len(self.ratios)


def level_shapes(image_shape: Sequence[int], levels: tuple[int, int]) -> tuple[Shape, ...]:
    """Height and width of every level of a feature pyramid.

    Level l is the image divided by 2**l, rounded up: convolutions of stride 2 and padding 1
    round up at every level, which comes to the same.

    Args:
      image_shape: height and width of the padded image, pixels.
      levels: first and last level.

    Returns:
      (h_l, w_l) of each level, finest first.

    >>> level_shapes((800, 1344), (3, 7))
    ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
    """
    height, width = image_shape
    first, last = levels
    return tuple((-(-height // 2**l), -(-width // 2**l)) for l in range(first, last + 1))


def make_anchors(
    image_shape: Sequence[int], levels: tuple[int, int], config: AnchorConfig
) -> tuple[np.ndarray, ...]:
    """Anchors of every level, centered on the top-left corners of the cells.

    The anchor of ratio r (height over width) and scale s at level l has the area
    (size_factor * 2**l * s)**2; the cell in row i and column j puts its center at
    (j * stride, i * stride).

    Args:
      image_shape: height and width of the padded image, pixels.
      levels: first and last level.
      config: `size_factor`, the side of the base anchor in strides; `scales`, factors of the side;
        `ratios`, heights over widths; `rounding="torchvision"`: sides cut to whole pixels, then
        corners rounded, and strides of `image // feature map` (where the image is no multiple of
        2**l they shrink) in place of 2**l.

    Returns:
      For each level `[h_l * w_l * len(ratios) * len(scales), 4]` float32, xyxy in pixels;
      row-major cells, then ratios, then scales.

    >>> base, = make_anchors((8, 8), (3, 3), AnchorConfig(scales=(1.0,), ratios=(1.0,)))
    >>> base.tolist()
    [[-16.0, -16.0, 16.0, 16.0]]

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.
    """
    first, _ = levels
    is_rounded = config.rounding == "torchvision"
    anchors = []
    for l, shape in enumerate(level_shapes(image_shape, levels), start=first):
        sides = config.size_factor * 2**l * np.asarray(config.scales, np.float64)
        if is_rounded:
            sides = np.trunc(sides)
        cell = _cell_anchors(sides, np.asarray(config.ratios, np.float64))
        strides: Shape = (2**l, 2**l)
        if is_rounded:
            cell = np.round(cell)
            is_some = bool((cell[:, :2] < cell[:, 2:]).all())
            legal = f"larger: on level {l} an anchor is rounded to nothing"
            require(is_some, "anchors.size_factor", config.size_factor, legal)
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


@dataclasses.dataclass(frozen=True)
class DefaultBoxConfig:
    """Default boxes of SSD; the defaults are SSD300's on VOC, 8732 boxes.

    A location of level l has a square of side sizes[l], one of side sqrt(sizes[l] sizes[l + 1])
    and, for each r in 2 .. max_ratios[l], two boxes of the area sizes[l]**2: r times as wide as
    high, and r times as high as wide.
    """

    sizes: Annotated[Floats, "[0.1, 100000]"] = (30.0, 60.0, 111.0, 162.0, 213.0, 264.0, 315.0)
    """Pixels; one more than there are levels."""
    max_ratios: Annotated[tuple[int, ...], "[1, 16]"] = (2, 3, 3, 3, 2, 2)
    """For each level, the ratio of the longest boxes; 1: squares only."""
    steps: Annotated[Floats, "[0, 10000]"] = (8.0, 16.0, 32.0, 64.0, 0.0, 0.0)
    """Pixels between the centres of a level; 0 spreads them evenly over the image."""
    clip_sides: bool = False
    """Cut sides longer than the image's to the image's (torchvision's choice)."""

    def __post_init__(self) -> None:
        check_fields(self, "default_boxes")
        levels = len(self.max_ratios)
        require(
            2 <= levels <= 16,
            "default_boxes.max_ratios",
            self.max_ratios,
            "2 to 16 whole numbers, one a level",
        )
        require(
            len(self.sizes) == levels + 1,
            "default_boxes.sizes",
            self.sizes,
            f"{levels + 1} sizes, one more than default_boxes.max_ratios has levels",
        )
        require(
            len(self.steps) == levels,
            "default_boxes.steps",
            self.steps,
            f"{levels} numbers, one a level of default_boxes.max_ratios",
        )

    @property
    def per_location(self) -> tuple[int, ...]:
        return tuple(2 * ratio for ratio in self.max_ratios)


def make_default_boxes(
    image_shape: Sequence[int],
    shapes: Sequence[Shape],
    *,
    sizes: Sequence[float],
    large_sizes: Sequence[float] | None,
    max_ratios: Sequence[int],
    steps: Sequence[float],
    clip_sides: bool = False,
) -> tuple[np.ndarray, ...]:
    """Default boxes of every level, centered on the middles of the cells.

    A cell of level l holds, in this order, the square of side s = sizes[l], that of side
    sqrt(s * large_sizes[l]), and for r = 2 .. max_ratios[l] the boxes
    (s sqrt(r), s / sqrt(r)) and (s / sqrt(r), s sqrt(r)) (width, height).

    Args:
      image_shape: height and width of the padded image, pixels.
      shapes: (h_l, w_l) of each level.
      sizes: side of each level's square, pixels.
      large_sizes: with which the side of the larger square is made; None: there is none.
      max_ratios: for each level, >= 1.
      steps: pixels between the centers of a level; 0: image side / cells.
      clip_sides: torchvision's choice: no side is longer than the image's.

    Returns:
      For each level `[h_l * w_l * boxes, 4]` float32, xyxy in pixels; row-major cells.

    >>> level, = make_default_boxes(
    ...     (8, 8), [(1, 1)], sizes=[4.0], large_sizes=[9.0], max_ratios=[1], steps=[8.0]
    ... )
    >>> level.tolist()
    [[2.0, 2.0, 6.0, 6.0], [1.0, 1.0, 7.0, 7.0]]

    Source: Liu et al., SSD, 2016, section 2.2; order and centers of its Caffe code.
    """
    levels = []
    for l, shape in enumerate(shapes):
        sides = _cell_sides(sizes[l], large_sizes[l] if large_sizes else None, max_ratios[l])
        if clip_sides:
            sides = np.minimum(sides, [image_shape[1], image_shape[0]])
        pitch = [steps[l] or image_shape[axis] / shape[axis] for axis in (0, 1)]
        y, x = np.meshgrid(
            (np.arange(shape[0]) + 0.5) * pitch[0],
            (np.arange(shape[1]) + 0.5) * pitch[1],
            indexing="ij",
        )
        centers = np.stack((x, y), axis=-1).reshape(-1, 1, 2)
        boxes = np.concatenate((centers - sides / 2, centers + sides / 2), axis=-1)
        levels.append(boxes.reshape(-1, 4).astype(np.float32))
    return tuple(levels)


def _cell_sides(size: float, large_size: float | None, max_ratio: int) -> np.ndarray:
    """[boxes, 2]: width and height."""
    sides = [(size, size)]
    if large_size is not None:
        sides.append(((size * large_size) ** 0.5,) * 2)
    for ratio in range(2, max_ratio + 1):
        long, short = size * ratio**0.5, size / ratio**0.5
        sides += [(long, short), (short, long)]
    return np.array(sides, np.float64)
