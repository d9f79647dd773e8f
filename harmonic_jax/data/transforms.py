"""The chain of random changes to a training image, in the order of SSD."""

import numpy as np

from harmonic_jax.config import AugmentConfig
from harmonic_jax.data.geometry import expand, horizontal_flip, random_crop, vertical_flip
from harmonic_jax.data.photometric import photometric_distort


def augment(
    image: np.ndarray,
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    config: AugmentConfig,
    max_pixels: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours, zoom out, crop, horizontal and vertical flip; each only where the config asks.

    Args:
      image: uint8 RGB [h, w, 3].
      boxes: float32 [n, 4], xyxy in its pixels.
      rng: the source of all randomness.
      config: what to do, and how often.
      max_pixels: bound of the zoomed-out canvas.

    Returns:
      The changed image; the boxes of the objects that are left, float32 [m, 4]; their rows in
      `boxes`, int64 [m].

    Source: Liu et al. 2016, "SSD", sections 2.2 and 3.6.
    """
    kept = np.arange(len(boxes))
    if config.photometric:
        image = photometric_distort(image, rng)
    if config.expand > 1.0:
        image, boxes = expand(image, boxes, rng, max_ratio=config.expand, max_pixels=max_pixels)
    if config.crop:
        image, boxes, kept = random_crop(image, boxes, rng)
    if rng.random() < config.flip:
        image, boxes = horizontal_flip(image, boxes)
    if rng.random() < config.vertical_flip:
        image, boxes = vertical_flip(image, boxes)
    return image, boxes, kept
