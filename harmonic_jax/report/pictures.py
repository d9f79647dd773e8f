"""Pictures of cases: the part of the image around the boxes, small, with the boxes over it."""

import base64
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from pathlib import Path

import cv2
import numpy as np

from harmonic_jax.report.boxes import LabelledBoxes, detection_grid, save_png
from harmonic_jax.report.cases import Case, CaseGroup, Outline

LONG_SIDE = 400  # pixels of a picture at most
MOST_BYTES = 5_500_000  # of all pictures of a page, as they stand in it
_QUALITY = 82
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
    groups = list(groups)
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.cases))]
    places.sort(key=lambda place: groups[place[0]].cases[place[1]].image_id)
    pictures: dict[tuple[int, int], Picture] = {}
    last_id, pixels = None, None
    for g, i in places:
        case = groups[g].cases[i]
        if case.image_id != last_id:
            last_id, pixels = case.image_id, _pixels(images, case.image_id)
        pictures[g, i] = _cut_out(case, pixels, images.sizes.get(case.image_id))
    return [[pictures[g, i] for i in range(len(group.cases))] for g, group in enumerate(groups)]


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
    if size is not None:
        limit = np.array([size[1], size[0]], float)
        low, high = np.clip(low, 0, limit), np.clip(high, 0, limit)
    width, height = np.maximum((high - low) * (1 + 2 * _AIR), [_LEAST_SIDE, _LEAST_SIDE / _SHAPE])
    side = np.ceil([max(width, height * _SHAPE), max(height, width / _SHAPE)])
    start = np.round((low + high - side) / 2)
    if size is not None:
        side = np.minimum(side, limit)
        start = np.clip(start, 0, limit - side)
    x1, y1, x2, y2 = (int(v) for v in (*start, *(start + side)))
    return x1, y1, x2, y2


class ByteBudget:
    """Encodes pictures until a page would grow too large."""

    def __init__(self, most: int) -> None:
        self._left = most
        self.num_dropped = 0

    def encode(self, pixels: np.ndarray) -> str | None:
        """A data URI of a JPEG; None once the budget is spent."""
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        text = base64.b64encode(data.tobytes()).decode()
        if len(text) > self._left:
            self.num_dropped += 1
            return None
        self._left -= len(text)
        return f"data:image/jpeg;base64,{text}"


def draw_picture(picture: Picture, budget: ByteBudget) -> str:
    """An `<svg>` of the image with the boxes as lines over it, sharp at any size."""
    x1, y1, x2, y2 = picture.window
    width, height = x2 - x1, y2 - y1
    uri = None if picture.pixels is None else budget.encode(picture.pixels)
    ground = f'<rect class="blank" width="{width}" height="{height}"/>'
    if uri is not None:
        ground = f'<image width="{width}" height="{height}" href="{uri}"/>'
    lines = "".join(_outline(outline, x1, y1) for outline in picture.case.outlines)
    return (
        f'<svg class="shot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(picture.case.text)}">{ground}{lines}</svg>'
    )


def _outline(outline: Outline, x: int, y: int) -> str:
    x1, y1, x2, y2 = (float(v) for v in outline.box)
    shape = f'd="M{x1 - x:.1f} {y1 - y:.1f}H{x2 - x:.1f}V{y2 - y:.1f}H{x1 - x:.1f}z"'
    return f'<path class="rim" {shape}/><path class="box {outline.kind}" {shape}/>'


def save_contact_sheet(
    path: Path, pictures: Iterable[Picture], class_names: tuple[str, ...]
) -> None:
    """Writes the pictures that have pixels as one PNG, boxes drawn in."""
    shown = [picture for picture in pictures if picture.pixels is not None]
    sheet = detection_grid(
        [picture.pixels for picture in shown if picture.pixels is not None],
        [LabelledBoxes(*_columns(picture, ("truth",))[:2]) for picture in shown],
        [LabelledBoxes(*_columns(picture, ("found", "other"))) for picture in shown],
        class_names,
        cell=420,
    )
    save_png(path, sheet)


def _columns(picture: Picture, kinds: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in the pixels of the picture, labels and scores."""
    assert picture.pixels is not None
    outlines = [o for o in picture.case.outlines if o.kind in kinds]
    x1, y1, x2, _ = picture.window
    scale = picture.pixels.shape[1] / (x2 - x1)
    boxes = np.array([o.box for o in outlines]).reshape(-1, 4)
    return (
        (boxes - [x1, y1, x1, y1]) * scale,
        np.array([o.label for o in outlines], int),
        np.array([o.score if o.score is not None else np.nan for o in outlines]),
    )


def first_of_groups(pictures: list[list[Picture]], each: int) -> Iterator[Picture]:
    """The worst of every group, for the contact sheet."""
    for group in pictures:
        yield from group[:each]
