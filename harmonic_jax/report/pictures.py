"""Pictures of cases: the part of the image around the boxes, small; the page draws the boxes."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from harmonic_jax.report.boxes import LabelledBoxes, detection_grid, save_png
from harmonic_jax.report.cases import Case, CaseGroup

LONG_SIDE = 400  # pixels of a picture at most
_LEAST_SIDE, _AIR, _SHAPE = 96.0, 0.45, 4 / 3


@dataclasses.dataclass(frozen=True)
class Images:
    """Where pictures come from; whatever is missing, the page does without.

    Attributes:
      pixels: uint8 RGB [h, w, 3] of an image id, or None where it cannot be had.
      names: of image ids, a file for instance.
      sizes: height and width of image ids, for boxes without pixels.
    """

    pixels: Callable[[int], np.ndarray | None] | None = None
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    sizes: Mapping[int, tuple[int, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A case cut out of its image.

    Attributes:
      window: x1, y1, x2, y2 in pixels of the image.
      pixels: uint8 RGB of the window, made smaller where it is large; None: not at hand.
    """

    case: Case
    window: tuple[int, int, int, int]
    pixels: np.ndarray | None


def take_pictures(groups: Iterable[CaseGroup], images: Images) -> list[list[Picture]]:
    """Cuts out every case; each image is decoded once, one at a time.

    Raises:
      ValueError: `images.pixels` gives something that is no uint8 RGB image.
    """
    cases = [group.cases for group in groups]
    places = [(g, i) for g, group in enumerate(cases) for i in range(len(group))]
    places.sort(key=lambda place: cases[place[0]][place[1]].image_id)
    pictures: dict[tuple[int, int], Picture] = {}
    last_id, pixels = None, None
    for g, i in places:
        case = cases[g][i]
        if case.image_id != last_id:
            last_id, pixels = case.image_id, _pixels(images, case.image_id)
        pictures[g, i] = _cut_out(case, pixels, images.sizes.get(case.image_id))
    return [[pictures[g, i] for i in range(len(group))] for g, group in enumerate(cases)]


def _pixels(images: Images, image_id: int) -> np.ndarray | None:
    pixels = None if images.pixels is None else images.pixels(image_id)
    if pixels is not None and (
        pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size
    ):
        raise ValueError(
            f"image {image_id} is {pixels.dtype} {pixels.shape}; pixels must be uint8 [h, w, 3]"
        )
    return pixels


def _cut_out(case: Case, pixels: np.ndarray | None, size: tuple[int, int] | None) -> Picture:
    if pixels is not None:
        size = (pixels.shape[0], pixels.shape[1])
    window = window_around(np.stack([outline.box for outline in case.outlines]), size)
    if pixels is None:
        return Picture(case, window, None)
    x1, y1, x2, y2 = window
    part = np.ascontiguousarray(pixels[y1:y2, x1:x2])
    scale = LONG_SIDE / max(part.shape[:2])
    if scale < 1.0:
        to = (max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1))
        part = cv2.resize(part, to, interpolation=cv2.INTER_AREA)
    return Picture(case, window, part)


def window_around(boxes: np.ndarray, size: tuple[int, int] | None) -> tuple[int, int, int, int]:
    """The part of an image that shows boxes with some surroundings, 4 : 3 where the image allows.

    Args:
      boxes: [n, 4], xyxy; what lies outside the image is cut off.
      size: height and width of the image, or None: without end.

    Returns:
      x1, y1, x2, y2, whole pixels inside the image, at least one wide and high.

    Example:
      >>> window_around(np.array([[100.0, 100.0, 200.0, 160.0]]), (1000, 1000))
      (55, 58, 245, 201)
      >>> window_around(np.array([[100.0, 100.0, 200.0, 160.0]]), (150, 220))
      (30, 7, 220, 150)
    """
    corners = boxes.reshape(-1, 2, 2)
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    limit = np.array([np.inf, np.inf] if size is None else [size[1], size[0]])
    least = -np.inf if size is None else 0.0
    low, high = np.clip(low, least, limit), np.clip(high, least, limit)
    width, height = np.maximum((high - low) * (1 + 2 * _AIR), [_LEAST_SIDE, _LEAST_SIDE / _SHAPE])
    side = np.minimum(np.ceil([max(width, height * _SHAPE), max(height, width / _SHAPE)]), limit)
    start = np.clip(np.round((low + high - side) / 2), least, limit - side)
    x1, y1, x2, y2 = (int(v) for v in (*start, *(start + side)))
    return x1, y1, x2, y2


def save_contact_sheet(
    path: Path, pictures: Iterable[Picture], class_names: tuple[str, ...]
) -> None:
    """Writes the pictures that have pixels as one PNG, boxes drawn in."""
    pixels, truths, predictions = [], [], []
    for picture in pictures:
        if picture.pixels is not None:
            pixels.append(picture.pixels)
            truths.append(_boxes(picture, is_truth=True))
            predictions.append(_boxes(picture, is_truth=False))
    save_png(path, detection_grid(pixels, truths, predictions, class_names, cell=420))


def _boxes(picture: Picture, *, is_truth: bool) -> LabelledBoxes:
    """True or detected boxes, in the pixels of the picture."""
    assert picture.pixels is not None
    outlines = [o for o in picture.case.outlines if (o.kind == "truth") == is_truth]
    x1, y1, x2, _ = picture.window
    scale = picture.pixels.shape[1] / (x2 - x1)
    boxes = (np.array([o.box for o in outlines]).reshape(-1, 4) - [x1, y1, x1, y1]) * scale
    scores = None if is_truth else np.array([o.score for o in outlines], float)
    return LabelledBoxes(boxes, np.array([o.label for o in outlines], int), scores)
