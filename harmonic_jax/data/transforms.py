"""The chain of random changes to a training image, in the order of SSD."""

from typing import NamedTuple

import numpy as np

from harmonic_jax.data.geometry import expand, horizontal_flip, random_crop, vertical_flip
from harmonic_jax.data.photometric import photometric_distort
from harmonic_jax.data.settings import AugmentConfig


class Augmented(NamedTuple):
    """A changed image.

    Attributes:
      image: uint8 [h, w, 3].
      boxes: float32 [n, 4], of the objects that are left, clipped to the image.
      kept: int64 [n], their rows among all boxes.
      frames: float32 [n, 4], their boxes as they were, moved and flipped with the image: what a
        crop cuts off is still in them.
      is_mirrored, is_upside_down: whether left and right, top and bottom changed places.
    """

    image: np.ndarray
    boxes: np.ndarray
    kept: np.ndarray
    frames: np.ndarray
    is_mirrored: bool
    is_upside_down: bool


def augment(
    image: np.ndarray,
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    config: AugmentConfig,
    max_pixels: int,
) -> Augmented:
    """Colours, zoom out, crop, horizontal and vertical flip; each only where the config asks.

    Args:
      image: uint8 RGB [h, w, 3].
      boxes: float32 [n, 4], xyxy in its pixels.
      rng: the source of all randomness.
      config: what to do, and how often.
      max_pixels: bound of the zoomed-out canvas.

    Source: Liu et al. 2016, "SSD", sections 2.2 and 3.6.
    """
    if config.photometric:
        image = photometric_distort(image, rng)
    if config.expand > 1.0:
        image, boxes = expand(image, boxes, rng, max_ratio=config.expand, max_pixels=max_pixels)
    kept, frames = np.arange(len(boxes)), boxes
    if config.crop:
        image, boxes, kept, (x, y) = random_crop(image, boxes, rng)
        frames = frames[kept] - np.array([x, y, x, y], np.float32)
    number, both = len(boxes), np.concatenate([boxes, frames])
    if is_mirrored := rng.random() < config.flip:
        image, both = horizontal_flip(image, both)
    if is_upside_down := rng.random() < config.vertical_flip:
        image, both = vertical_flip(image, both)
    return Augmented(image, both[:number], kept, both[number:], is_mirrored, is_upside_down)
