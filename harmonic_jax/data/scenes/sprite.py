"""An item, scaled and turned, and how it gets onto an image."""

import dataclasses

import cv2
import numpy as np

from harmonic_jax.data.scenes.items import ItemPool
from harmonic_jax.data.scenes.options import SceneOptions

Window = tuple[slice, slice]


@dataclasses.dataclass(frozen=True)
class Sprite:
    """An item as it will appear, before it has a colour and a place.

    Attributes:
      grey: float32 [p, p], 0..1.
      opacity: float32 [p, p], 0..1; a pixel belongs to the object from 0.5 on.
      length: longer side of the item in pixels before it was turned.
      area: number of pixels that belong to it.
    """

    grey: np.ndarray
    opacity: np.ndarray
    length: float
    area: int

    def window(self, centre: np.ndarray, size: int) -> tuple[Window, Window]:
        """The part of an image [size, size] it covers at `centre` (x, y), and its own there."""
        side = self.grey.shape[0]
        x, y = (int(value) - side // 2 for value in centre)
        image = tuple(slice(min(max(v, 0), size), max(min(v + side, size), 0)) for v in (y, x))
        own = tuple(slice(s.start - v, s.stop - v) for s, v in zip(image, (y, x), strict=True))
        return (image[0], image[1]), (own[0], own[1])


def draw_sprite(
    pool: ItemPool, item: int, rng: np.random.Generator, options: SceneOptions
) -> Sprite:
    """Draws size, aspect, mirroring and rotation of an item."""
    length = rng.uniform(*options.object_size)
    stretch = np.exp(rng.uniform(-1.0, 1.0) * np.log(options.max_stretch))
    limit = 180.0 if rng.random() < options.any_rotation else options.max_rotation
    angle = np.deg2rad(rng.uniform(-limit, limit))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    x1, y1, x2, y2 = pool.boxes[item].tolist()
    width, height = (x2 - x1) * stretch, y2 - y1
    scale = length / max(width, height)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cos * mirror * stretch, -sin], [sin * mirror * stretch, cos]])
    side = int(np.ceil(scale * np.hypot(width, height))) + 4
    return warp(pool.cutouts[item], (x1 + x2, y1 + y2), linear, side, length)


def scrap_of(pool: ItemPool, item: int, rng: np.random.Generator) -> Sprite:
    """A bit of an item: a window of 4 to 7 item pixels, magnified and turned at random."""
    x1, y1, x2, y2 = pool.boxes[item].astype(int).tolist()
    cut = int(rng.integers(4, 8))
    x = int(rng.integers(x1, max(x2 - cut, x1) + 1))
    y = int(rng.integers(y1, max(y2 - cut, y1) + 1))
    bit = np.pad(pool.cutouts[item, y : y + cut, x : x + cut], ((1, 1), (1, 1), (0, 0)))
    scale, angle = rng.uniform(1.0, 1.8), rng.uniform(0.0, 2.0 * np.pi)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    middle = float(cut + 2)
    side = int(np.ceil(1.5 * scale * cut)) + 2
    return warp(bit, (middle, middle), np.array([[cos, -sin], [sin, cos]]), side, scale * cut)


def warp(
    cutout: np.ndarray,
    doubled_centre: tuple[float, float],
    linear: np.ndarray,
    side: int,
    length: float,
) -> Sprite:
    """Applies a linear map about a centre of the cut-out, onto a patch [side, side]."""
    centre = np.asarray(doubled_centre) / 2 - 0.5  # pixel centres are at integers in OpenCV
    shift = (side - 1) / 2 - linear @ centre
    patch = cv2.warpAffine(
        cutout, np.column_stack([linear, shift]), (side, side), flags=cv2.INTER_LINEAR
    ).astype(np.float32) * np.float32(1 / 255)
    # The cut-out's opacity falls off over about two item pixels, here it does over one or two of
    # the image: as steep at every size, and its contour at one half stays where it was.
    sharpness = np.float32(np.sqrt(abs(np.linalg.det(linear))))
    opacity = np.clip((patch[..., 1] - np.float32(0.5)) * sharpness + np.float32(0.5), 0.0, 1.0)
    return Sprite(patch[..., 0], opacity, length, int(np.count_nonzero(opacity >= 0.5)))


def tint(
    rng: np.random.Generator, sprite: Sprite, below: np.ndarray | None, min_contrast: float
) -> np.ndarray:
    """Draws the colours of black and of white cloth, so that colour tells nothing of the class.

    Of eight draws, takes the first whose mean differs from the colour `below` by `min_contrast`
    grey levels in some channel, else the one that differs most.

    Returns:
      float32 [2, 3].
    """
    light = rng.uniform(90.0, 255.0, (8, 3)).astype(np.float32)
    dark = light * rng.uniform(0.0, 0.25, (8, 1)).astype(np.float32)
    if below is None:
        return np.stack([dark[0], light[0]])
    weight = np.float32((sprite.grey * sprite.opacity).sum() / max(sprite.opacity.sum(), 1.0))
    contrast = np.abs(dark + (light - dark) * weight - below).max(axis=1)
    chosen = (
        int(np.argmax(contrast >= min_contrast))
        if contrast.max() >= min_contrast
        else int(np.argmax(contrast))
    )
    return np.stack([dark[chosen], light[chosen]])


def paste(image: np.ndarray, sprite: Sprite, centre: np.ndarray, colours: np.ndarray) -> None:
    """Blends a sprite into a uint8 image in place; `colours` is what `tint` returned."""
    window, cut = sprite.window(centre, image.shape[0])
    grey, opacity = sprite.grey[cut][..., None], sprite.opacity[cut][..., None]
    cloth = colours[0] + (colours[1] - colours[0]) * grey
    below = image[window].astype(np.float32)
    image[window] = (below + (cloth - below) * opacity + np.float32(0.5)).astype(np.uint8)
