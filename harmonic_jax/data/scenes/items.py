"""The shipped Fashion-MNIST items, cut out of their black background."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

ITEMS_FILE = Path(__file__).with_name("items.npz")

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

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
    """Which pixels belong to the item: everything inside its outline, however dark.

    The threshold loses dark cloth, so small gaps of the outline are closed and what it encloses
    is filled.

    Args:
      image: uint8 [28, 28], an item on black.

    Returns:
      bool [28, 28].
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
