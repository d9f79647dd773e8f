"""Default boxes of SSD and RefineDet, computed with numpy: constants of a compiled step."""

from collections.abc import Sequence

import numpy as np

from harmonic_jax.ops.box_coder import Weights

Shape = tuple[int, int]

BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
"""The variances 0.1 0.1 0.2 0.2 of the Caffe original, as weights of `ops.box_coder`."""


def ssd_shapes(image_shape: Shape, extra_layers: Sequence[str]) -> tuple[Shape, ...]:
    """Height and width of every level of SSD: conv4_3, fc7, and one for each extra layer.

    Strides 8 and 16 round up; `3x3/2` halves, rounding up; `3x3` takes two cells of each side,
    `4x4` one.

    Args:
      image_shape: height and width of the padded image, pixels.
      extra_layers: names as in `config.SSDConfig.extra_layers`.

    Returns:
      (h_l, w_l) of each level, finest first.

    Raises:
      ValueError: nothing is left of a level.

    >>> ssd_shapes((300, 300), ("3x3/2", "3x3/2", "3x3", "3x3"))
    ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
    """
    sides = [[-(-side // 8) for side in image_shape], [-(-side // 16) for side in image_shape]]
    for layer in extra_layers:
        if layer == "3x3/2":
            sides.append([-(-side // 2) for side in sides[-1]])
        else:
            sides.append([side - {"3x3": 2, "4x4": 1}[layer] for side in sides[-1]])
        if min(sides[-1]) < 1:
            raise ValueError(
                f"extra_layers is {tuple(extra_layers)}; for images of {image_shape[0]} x "
                f"{image_shape[1]} it must end before level {len(sides) - 1}, where no cell is left"
            )
    return tuple((height, width) for height, width in sides)


def make_default_boxes(
    image_shape: Shape,
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
