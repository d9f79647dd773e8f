"""Default boxes of SSD and RefineDet, computed with numpy: constants of a compiled step."""

from collections.abc import Sequence

import numpy as np

from harmonic_jax.ops.box_coder import Weights

Shape = tuple[int, int]

BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
"""The variances 0.1 0.1 0.2 0.2 of the Caffe original, as weights of `ops.box_coder`."""


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
