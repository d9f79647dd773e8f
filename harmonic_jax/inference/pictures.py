"""Detections drawn on their image."""

from collections.abc import Sequence

import numpy as np

from harmonic_jax.inference.detections import ImageDetections
from harmonic_jax.report.boxes import Color, LabelledBoxes, draw_objects

# Okabe and Ito's palette, which every kind of colour vision tells apart, without what is too dark
# for the labels' ink.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0),
)  # fmt: skip
LONG_SIDE = (640, 1600)


def picture_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of an image's picture: on a very small one labels would hide everything,
    on a very large one they could not be read.

    >>> picture_size(480, 640), picture_size(30, 40), picture_size(3000, 4000)
    ((480, 640), (480, 640), (1200, 1600))
    """
    low, high = LONG_SIDE
    scale = min(max(low / max(height, width), 1.0), high / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def draw_detections(
    image: np.ndarray, found: ImageDetections, class_names: Sequence[str]
) -> np.ndarray:
    """Boxes, masks, class names and scores on an image, a colour a class.

    Args:
      image: uint8 RGB [h, w, 3].
      found: what was found in it.
      class_names: of the detector.

    Returns:
      uint8 RGB, the image with its long side between 640 and 1600 pixels.
    """
    objects = LabelledBoxes(found.boxes, found.labels, found.scores, found.masks)
    size = picture_size(*image.shape[:2])
    return draw_objects(image, objects, class_names, size=size, colors=PALETTE)
