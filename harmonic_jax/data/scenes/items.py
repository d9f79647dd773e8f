"""The shipped Fashion-MNIST items, cut out of their black background, and pasted as sprites."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from harmonic_jax.data.scenes.options import SceneOptions

ITEMS_FILE = Path(__file__).with_name("items.npz")

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip

Window = tuple[slice, slice]
_BORDER = 2  # transparent pixels around a cut-out, where its soft edge goes
_FOREGROUND = 12  # darker pixels outside of an item are the residue of its resampling
_SMOOTHING = 0.7  # of the mask, in item pixels: without it magnified outlines are staircases
_MIN_PART = 6  # smaller loose parts are residue too


@dataclasses.dataclass(frozen=True)
class ItemPool:
    """Items of one split, sorted by class, with the same number of each class.

    Attributes:
      cutouts: uint8 [n, 32, 32, 2], grey level stretched to 255 and opacity.
      boxes: float32 [n, 4], xyxy extent of the opaque pixels.
      labels: int32 [n], index in CLASS_NAMES.
    """

    cutouts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def draw(self, rng: np.random.Generator) -> int:
        """Index of a random item; every class is as likely."""
        return int(rng.integers(len(self.labels)))


def item_mask(image: np.ndarray) -> np.ndarray:
    """Which pixels belong to an item on black: everything inside its outline, however dark.

    The threshold loses dark cloth, so small gaps of the outline are closed and what it encloses
    is filled. Takes uint8 [28, 28], returns bool [28, 28].
    """
    padded = cv2.copyMakeBorder(image, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.morphologyEx(
        (padded >= _FOREGROUND).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)
    )
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros_like(closed)
    for outline in outlines:
        part = cv2.drawContours(np.zeros_like(closed), [outline], -1, 1, cv2.FILLED)
        if part.sum() >= _MIN_PART:
            mask |= part
    return mask[2:-2, 2:-2].astype(bool)


def cut_out(image: np.ndarray) -> np.ndarray:
    """Grey level and opacity of an item, uint8 [32, 32, 2].

    The grey levels reach past the mask, so that interpolation at its edge mixes cloth with cloth
    and not with the black that was there.
    """
    mask = item_mask(image)
    grey = np.where(mask, image, 0).astype(np.float32) * (255.0 / max(image.max(), 1))
    reach = cv2.dilate(grey, np.ones((5, 5), np.uint8))
    grey = np.where(mask, grey, reach).round().astype(np.uint8)
    frame = ((_BORDER, _BORDER), (_BORDER, _BORDER))
    opacity = np.pad(np.where(mask, 255, 0).astype(np.uint8), frame)
    opacity = cv2.GaussianBlur(opacity, (5, 5), _SMOOTHING)
    return np.stack([np.pad(grey, frame), opacity], axis=-1)


def read_items(split: Literal["train", "validation"]) -> tuple[np.ndarray, np.ndarray]:
    """The shipped items as they are: uint8 [n, 28, 28] and labels uint8 [n]."""
    with np.load(ITEMS_FILE, allow_pickle=False) as file:
        return file[f"{split}_images"], file[f"{split}_labels"]


@functools.cache
def load_items(split: Literal["train", "validation"]) -> ItemPool:
    """The items of one split, cut out; the two splits share no item."""
    images, labels = read_items(split)
    cutouts = np.stack([cut_out(image) for image in images])
    boxes = np.array([mask_box(cutout[..., 1] >= 128) for cutout in cutouts], np.float32)
    return ItemPool(cutouts=cutouts, boxes=boxes, labels=labels.astype(np.int32))


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Tight xyxy box of a bool mask [h, w], x2 and y2 exclusive; zeros for an empty mask."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, x + width, y + height


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
    grey levels in some channel, else the one that differs most: float32 [2, 3].
    """
    light = rng.uniform(90.0, 255.0, (8, 3)).astype(np.float32)
    dark = light * rng.uniform(0.0, 0.25, (8, 1)).astype(np.float32)
    if below is None:
        return np.stack([dark[0], light[0]])
    weight = np.float32((sprite.grey * sprite.opacity).sum() / max(sprite.opacity.sum(), 1.0))
    contrast = np.abs(dark + (light - dark) * weight - below).max(axis=1)
    enough = contrast >= min_contrast
    chosen = int(np.argmax(enough if enough.any() else contrast))
    return np.stack([dark[chosen], light[chosen]])


def paste(image: np.ndarray, sprite: Sprite, centre: np.ndarray, colours: np.ndarray) -> None:
    """Blends a sprite into a uint8 image in place; `colours` is what `tint` returned."""
    window, cut = sprite.window(centre, image.shape[0])
    grey, opacity = sprite.grey[cut][..., None], sprite.opacity[cut][..., None]
    cloth = colours[0] + (colours[1] - colours[0]) * grey
    below = image[window].astype(np.float32)
    image[window] = (below + (cloth - below) * opacity + np.float32(0.5)).astype(np.uint8)
