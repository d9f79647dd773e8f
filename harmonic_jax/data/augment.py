"""Random changes to one training image, in the order of SSD; image and boxes change together.

Boxes are float32 [n, 4] xyxy in pixels of the image they come with. Every function returns new
arrays or the ones it was given; none writes into its arguments.

Source: Liu et al. 2016, "SSD", sections 2.2 and 3.6, and its data layer.
"""

from typing import NamedTuple

import cv2
import numpy as np

from harmonic_jax.data.resize import fill_around
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.masks import RleTable

EXPAND_PROBABILITY = 0.5
CROP_MIN_IOUS = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # None: the whole image
CROP_SCALE = (0.3, 1.0)
CROP_MAX_ASPECT = 2.0
CROP_TRIALS = 50
CROP_ROUNDS = 20

COLOUR_PROBABILITY = 0.5
BRIGHTNESS = 32.0  # levels of 255
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18.0  # degrees
ERASE_AREA = (0.02, 0.4)  # of the image
ERASE_MAX_ASPECT = 1 / 0.3
_LEVELS = np.arange(256, dtype=np.float64)

Window = tuple[int, int, int, int]  # xyxy in whole pixels


class Sample(NamedTuple):
    """A training image and its objects.

    Attributes:
      image: uint8 [h, w, 3].
      boxes: float32 [n, 4], clipped to the image.
      labels: int32 [n].
      frames: float32 [n, 4], the objects' boxes before a crop: what it cuts off is still in them.
      masks: n masks, each in pixels of an image of its own; None: not asked for.
      cuts: float32 [n, 4], the parts of those images that `frames` show.
      flipped_axes: axes along which `masks` have yet to be flipped: 0 top and bottom, 1 left and
        right.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    frames: np.ndarray
    masks: RleTable | None
    cuts: np.ndarray
    flipped_axes: tuple[int, ...] = ()

    def take(self, rows: np.ndarray) -> "Sample":
        """The image with some of its objects, int [k]."""
        masks = None if self.masks is None else self.masks.take(rows)
        arrays = (self.boxes[rows], self.labels[rows], self.frames[rows], masks, self.cuts[rows])
        return Sample(self.image, *arrays, self.flipped_axes)


def augment(sample: Sample, rng: np.random.Generator, config: DataConfig) -> Sample:
    """Colours, zoom out, crop, horizontal and vertical flip, erasing; each where the config asks.

    `config.max_pixels` bounds the zoomed-out canvas.
    """
    changes, image, boxes, flipped_axes = config.augment, sample.image, sample.boxes, []
    if changes.photometric:
        image = photometric_distort(image, rng)
    if changes.expand > 1.0:
        image, boxes = expand(
            image, boxes, rng, max_ratio=changes.expand, max_pixels=config.max_pixels
        )
    frames = boxes
    if changes.crop:
        image, boxes, kept, (x, y) = random_crop(image, boxes, rng)
        frames, sample = frames[kept] - np.array([x, y, x, y], np.float32), sample.take(kept)
    both = np.concatenate([boxes, frames])
    for axis, probability in (1, changes.flip), (0, changes.vertical_flip):
        if rng.random() < probability:
            image, both = flip(image, both, axis=axis)
            flipped_axes.append(axis)
    if changes.erase and rng.random() < changes.erase:
        image = erase(image, rng)
    boxes, frames = np.split(both, 2)
    return Sample(image, boxes, sample.labels, frames, sample.masks, sample.cuts, (*flipped_axes,))


def flip(image: np.ndarray, boxes: np.ndarray, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors left and right (axis 1): x1, x2 become w - x2, w - x1; or top and bottom (axis 0)."""
    low, high = 1 - axis, 3 - axis
    flipped = boxes.copy()
    flipped[:, [low, high]] = image.shape[axis] - boxes[:, [high, low]]
    return cv2.flip(image, axis), flipped


def expand(
    image: np.ndarray,
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    max_ratio: float,
    max_pixels: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Zooms out: with probability 1/2, places the image on a larger canvas of the mean colour.

    The canvas is `ratio` times as high and as wide, ratio uniform in [1, max_ratio]; the
    position is uniform. `max_ratio` is lowered where the canvas could exceed `max_pixels`.

    Source: SSD, section 3.6 (data augmentation for small objects).
    """
    height, width = image.shape[:2]
    bound = max(1.0, min(max_ratio, (max_pixels / (height * width)) ** 0.5))
    ratio = rng.uniform(1.0, bound)
    high, wide = int(height * ratio), int(width * ratio)
    top, left = rng.integers(high - height + 1), rng.integers(wide - width + 1)
    if rng.random() >= EXPAND_PROBABILITY:
        return image, boxes
    canvas = np.empty((high, wide, 3), np.uint8)
    fill_around(canvas, (0, 0))
    canvas[top : top + height, left : left + width] = image
    return canvas, boxes + np.array([left, top, left, top], np.float32)


def random_crop(
    image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """Crops a random window that overlaps some object enough.

    One of seven options is drawn: the whole image, or a window whose largest IoU with an object
    is at least 0, 0.1, 0.3, 0.5, 0.7 or 0.9. The sides of a window are 0.3 to 1 of the image's,
    its aspect ratio in [0.5, 2]. After 50 windows that do not qualify another option is
    drawn. Objects with their centre in the window stay, clipped to it; a window without any is
    not taken. An image without objects is left whole.

    Returns:
      The window uint8 [h', w', 3]; the boxes of the objects that stay, float32 [m, 4]; their
      rows in `boxes`, int64 [m]; the window's top left corner in the image, x and y.

    Source: SSD, section 2.2 (data augmentation).
    """
    for _ in range(CROP_ROUNDS if len(boxes) else 0):
        min_iou = CROP_MIN_IOUS[rng.integers(len(CROP_MIN_IOUS))]
        if min_iou is None:
            break
        for _ in range(CROP_TRIALS):
            window = _draw_window(image.shape[0], image.shape[1], rng)
            if window is None or _iou(window, boxes).max() < min_iou:
                continue
            kept = np.flatnonzero(has_centre_in(window, boxes))
            if len(kept):
                x1, y1, x2, y2 = window
                return image[y1:y2, x1:x2], _clipped(boxes[kept], window), kept, (x1, y1)
    return image, boxes, np.arange(len(boxes)), (0, 0)


def _draw_window(height: int, width: int, rng: np.random.Generator) -> Window | None:
    """A window inside the image; None where its aspect ratio is out of bounds."""
    high = max(1, int(height * rng.uniform(*CROP_SCALE)))
    wide = max(1, int(width * rng.uniform(*CROP_SCALE)))
    y1, x1 = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    if not 1 / CROP_MAX_ASPECT <= high / wide <= CROP_MAX_ASPECT:
        return None
    return x1, y1, x1 + wide, y1 + high


def _iou(window: Window, boxes: np.ndarray) -> np.ndarray:
    shared = _clipped(boxes, window)
    inter = (shared[:, 2:] - shared[:, :2]).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    x1, y1, x2, y2 = window
    return inter / np.maximum((x2 - x1) * (y2 - y1) + areas - inter, 1e-9)


def has_centre_in(window: Window, boxes: np.ndarray) -> np.ndarray:
    """Which boxes have their centre inside the window, bool [n]."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > window[:2]) & (centres < window[2:])).all(axis=1)


def _clipped(boxes: np.ndarray, window: Window) -> np.ndarray:
    """Boxes cut to the window, in its coordinates."""
    x1, y1, x2, y2 = window
    corner = np.array([x1, y1, x1, y1], np.float32)
    return np.clip(boxes - corner, 0, np.array([x2 - x1, y2 - y1] * 2, np.float32))


def erase(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fills a random rectangle with random pixels; no object is dropped, no box or mask changed.

    Its area is uniform in [0.02, 0.4] of the image's, its aspect ratio in [0.3, 1 / 0.3], its
    place uniform; it is drawn anew until it fits, at most 50 times.

    Source: Zhong et al. 2020, "Random Erasing", algorithm 1 (RE-R); in detection, image-aware.
    """
    height, width = image.shape[:2]
    for _ in range(CROP_TRIALS):
        area = rng.uniform(*ERASE_AREA) * height * width
        aspect = rng.uniform(1 / ERASE_MAX_ASPECT, ERASE_MAX_ASPECT)
        high, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if high <= height and wide <= width:
            y, x = rng.integers(height - high + 1), rng.integers(width - wide + 1)
            image = image.copy()
            image[y : y + high, x : x + wide] = rng.integers(0, 256, (high, wide, 3), np.uint8)
            break
    return image


def photometric_distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation, hue and channel order, as SSD does.

    Each change happens with probability 1/2: brightness is added, uniform in +-32 levels;
    contrast and saturation are factors, uniform in [0.5, 1.5]; hue turns, uniform in +-18
    degrees; the channels are permuted. Contrast comes before the trip to HSV or after it, with
    equal probability. Every intermediate image is clipped to [0, 255], as 8-bit images are. RGB in
    and out; the number of draws does not depend on the image.

    Source: SSD's data layer; the permutation with probability 1/2 is that of later
    implementations.
    """
    brightness = _draw(rng, -BRIGHTNESS, BRIGHTNESS, off=0.0)
    contrast = _draw(rng, *CONTRAST, off=1.0)
    saturation = _draw(rng, *SATURATION, off=1.0)
    hue = _draw(rng, -HUE, HUE, off=0.0)
    contrast_last = rng.random() < 0.5
    channels = rng.permutation(3) if rng.random() < COLOUR_PROBABILITY else np.arange(3)

    changes_hsv = saturation != 1.0 or hue != 0.0
    before, after = _clip(_LEVELS + brightness), _clip(_LEVELS * contrast)
    if not contrast_last or not changes_hsv:
        before, after = after[before], _clip(_LEVELS)
    image = cv2.LUT(image, before)
    if changes_hsv:
        image = cv2.LUT(adjust_hsv(image, saturation=saturation, hue=hue), after)
    return _permute_channels(image, channels)


def adjust_hsv(image: np.ndarray, *, saturation: float, hue: float) -> np.ndarray:
    """Multiplies the saturation and turns the hue by `hue` degrees; uint8 RGB in and out."""
    tables = np.empty((1, 256, 3), np.uint8)
    tables[0, :, 0] = np.rint(_LEVELS + hue * 256 / 360).astype(np.int64) % 256
    tables[0, :, 1] = _clip(_LEVELS * saturation)
    tables[0, :, 2] = _clip(_LEVELS)
    # _FULL spreads the circle over 256 values instead of 180.
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    return cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB_FULL)


def _permute_channels(image: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """The same as image[..., channels], contiguous, at a fraction of the time."""
    out = np.empty_like(image)
    pairs = [int(index) for place, source in enumerate(channels) for index in (source, place)]
    cv2.mixChannels([image], [out], pairs)
    return out


def _draw(rng: np.random.Generator, low: float, high: float, *, off: float) -> float:
    value = rng.uniform(low, high)
    return value if rng.random() < COLOUR_PROBABILITY else off


def _clip(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
