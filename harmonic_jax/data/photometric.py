"""Random colour changes of uint8 images: table look-ups around one trip to HSV."""

import cv2
import numpy as np

PROBABILITY = 0.5
BRIGHTNESS = 32.0  # levels of 255
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18.0  # degrees

_LEVELS = np.arange(256, dtype=np.float64)


def photometric_distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation, hue and channel order, as SSD does.

    Each change happens with probability 1/2: brightness is added, uniform in +-32 levels;
    contrast and saturation are factors, uniform in [0.5, 1.5]; hue turns, uniform in +-18
    degrees; the channels are permuted. Contrast comes before the trip to HSV or after it, with
    equal probability. Every intermediate image is clipped to [0, 255], as 8-bit images are.

    Args:
      image: uint8 RGB [h, w, 3].
      rng: the source of all randomness; the number of draws does not depend on the image.

    Returns:
      uint8 RGB [h, w, 3], a new array.

    Source: Liu et al. 2016, "SSD", and its data layer; the permutation with probability 1/2 is
    that of later implementations.
    """
    brightness = _draw(rng, -BRIGHTNESS, BRIGHTNESS, off=0.0)
    contrast = _draw(rng, *CONTRAST, off=1.0)
    saturation = _draw(rng, *SATURATION, off=1.0)
    hue = _draw(rng, -HUE, HUE, off=0.0)
    contrast_last = rng.random() < 0.5
    channels = rng.permutation(3) if rng.random() < PROBABILITY else np.arange(3)

    before = _clip(_LEVELS + brightness)
    after = _clip(_LEVELS * contrast)
    if not contrast_last or (saturation == 1.0 and hue == 0.0):
        before, after = after[before], _clip(_LEVELS)
    image = cv2.LUT(image, before)
    if saturation != 1.0 or hue != 0.0:
        image = adjust_hsv(image, saturation=saturation, hue=hue)
        image = cv2.LUT(image, after)
    return permute_channels(image, channels)


def permute_channels(image: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """The same as image[..., channels], contiguous, at a fraction of the time."""
    out = np.empty_like(image)
    pairs = [int(index) for place, source in enumerate(channels) for index in (source, place)]
    cv2.mixChannels([image], [out], pairs)
    return out


def adjust_hsv(image: np.ndarray, *, saturation: float, hue: float) -> np.ndarray:
    """Multiplies the saturation and turns the hue by `hue` degrees; uint8 RGB in and out."""
    tables = np.empty((1, 256, 3), np.uint8)
    tables[0, :, 0] = np.rint(_LEVELS + hue * 256 / 360).astype(np.int64) % 256
    tables[0, :, 1] = _clip(_LEVELS * saturation)
    tables[0, :, 2] = _clip(_LEVELS)
    # _FULL spreads the circle over 256 values instead of 180.
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    return cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB_FULL)


def _draw(rng: np.random.Generator, low: float, high: float, *, off: float) -> float:
    value = rng.uniform(low, high)
    return value if rng.random() < PROBABILITY else off


def _clip(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
