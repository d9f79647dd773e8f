"""Boxes and their labels on one image."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from harmonic_jax.visualize.fonts import FONTS

Color = tuple[int, int, int]

TRUTH_COLOR: Color = (86, 180, 233)
PREDICTION_COLOR: Color = (230, 159, 0)
INK: Color = (25, 25, 25)
_TEXT_SIZE = 13  # pixels


@dataclasses.dataclass(frozen=True)
class LabelledBoxes:
    """Objects of an image: boxes float [n, 4] xyxy in its pixels, labels [n], scores [n] or None,
    masks n times bool [h, w] or None."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: Sequence[np.ndarray] | None = None

    def __post_init__(self) -> None:
        columns = self.boxes, self.labels, self.scores, self.masks
        lengths = {len(column) for column in columns if column is not None}
        if len(lengths) > 1:
            raise ValueError(f"boxes, labels, scores and masks have lengths {sorted(lengths)}")


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    scores: np.ndarray | None = None,
    color: Color = PREDICTION_COLOR,
    dashed: bool = False,
) -> np.ndarray:
    """A copy of an image with boxes, their class names and scores drawn on it.

    A label for which there is no free place beside its box is left out; the best scores come first.

    Args:
      image: uint8 [h, w, 3], RGB.
      boxes: [n, 4], xyxy in pixels of the image; what lies outside is cut off.
      labels: int [n], 0..k-1.
      class_names: k names.
      scores: [n], or None.
      color: RGB of lines and labels.
      dashed: Draw dashed lines, with the label under the box instead of over it.

    Returns:
      uint8 [h, w, 3].

    Raises:
      ValueError: An image that is not uint8 RGB, or columns of different lengths.

    Example:
      >>> image = np.zeros((40, 60, 3), np.uint8)
      >>> drawn = draw_boxes(image, np.array([[5.0, 20.0, 50.0, 35.0]]), np.array([0]), ["cat"])
      >>> drawn.shape, bool((drawn != image).any())
      ((40, 60, 3), True)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}; it must be uint8 [h, w, 3]")
    canvas = np.ascontiguousarray(image).copy()
    objects = LabelledBoxes(np.asarray(boxes, float).reshape(-1, 4), labels, scores)
    draw_outlines(canvas, objects, color, dashed)
    draw_labels(canvas, objects, class_names, color, [], below=dashed)
    return canvas


def draw_outlines(canvas: np.ndarray, objects: LabelledBoxes, color: Color, dashed: bool) -> None:
    for box in objects.boxes:
        draw_outline(canvas, box, color, dashed)


def draw_labels(
    canvas: np.ndarray,
    objects: LabelledBoxes,
    class_names: Sequence[str],
    color: Color,
    taken: list[tuple[int, int, int, int]],
    *,
    below: bool,
) -> None:
    scores = objects.scores
    order = np.arange(len(objects.boxes)) if scores is None else np.argsort(-np.asarray(scores))
    for row in order:
        label = class_names[int(objects.labels[row])]
        if scores is not None:
            label += f" {float(scores[row]):.2f}"
        _draw_label(canvas, objects.boxes[row], label, color, taken, below=below)


def draw_outline(canvas: np.ndarray, box: np.ndarray, color: Color, dashed: bool) -> None:
    height, width = canvas.shape[:2]
    limits = np.array([width - 1, height - 1, width - 1, height - 1])
    x1, y1, x2, y2 = np.clip(np.round(box), 0, limits).astype(int).tolist()
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    for line_color, thickness in ((INK, 4), (color, 2)):  # a dark rim shows on any ground
        for start, end in itertools.pairwise(corners):
            for a, b in _dashes(start, end) if dashed else [(start, end)]:
                cv2.line(canvas, a, b, line_color, thickness)


def _dashes(
    start: tuple[int, int], end: tuple[int, int], *, on: int = 7, off: int = 9
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)

    def at(distance: int) -> tuple[int, int]:
        part = min(distance / length, 1.0)
        return (
            round(start[0] + part * (end[0] - start[0])),
            round(start[1] + part * (end[1] - start[1])),
        )

    return [(at(d), at(d + on)) for d in range(0, length, on + off)]


def _draw_label(
    canvas: np.ndarray,
    box: np.ndarray,
    label: str,
    color: Color,
    taken: list[tuple[int, int, int, int]],
    *,
    below: bool,
) -> None:
    """Writes a label at the first place beside its box that no other label holds, if any."""
    mask = text_mask(label, _TEXT_SIZE)[:, : canvas.shape[1]]
    height, width = mask.shape
    right, bottom = canvas.shape[1] - width, canvas.shape[0] - height
    if bottom < 0:
        return
    x1, y1, x2, y2 = np.round(box).astype(int).tolist()
    over, inside_top = (x1 - 1, y1 - height - 1), (x1 + 2, y1 + 2)
    under, inside_bottom = (x1 - 1, y2 + 2), (x1 + 2, y2 - height - 1)
    places = [over, inside_top, (x2 - width, y1 - height - 1), (x1 + 2, y1 + height + 3)]
    if below:
        places = [under, inside_bottom, (x2 - width, y2 + 2), (x1 + 2, y2 - 2 * height - 2)]
    clipped = [(min(max(x, 0), right), min(max(y, 0), bottom)) for x, y in places]
    free = [(x, y) for x, y in clipped if not _overlaps((x, y, x + width, y + height), taken)]
    if not free:
        return
    x, y = free[0]
    taken.append((x, y, x + width, y + height))
    alpha = mask[:, :, None]
    region = canvas[y : y + height, x : x + width]
    region[:] = np.round(np.array(color) * (1 - alpha) + np.array(INK) * alpha)


def _overlaps(box: tuple[int, ...], others: Sequence[tuple[int, ...]]) -> bool:
    return any(
        min(box[2], o[2]) > max(box[0], o[0]) and min(box[3], o[3]) > max(box[1], o[1])
        for o in others
    )


@functools.lru_cache(maxsize=4096)
def text_mask(text: str, size: int) -> np.ndarray:
    """Coverage in 0..1 of a line of text with a small margin, float [height, width]."""
    scale = 4  # drawn larger and averaged down, for smooth edges
    text = FONTS.drawable(text)
    fonts = FontProperties(family=list(FONTS.families([text])))
    # Two dollar signs would make a formula of the text between them.
    path = TextPath((0, 0), text.replace("$", r"\$"), size=size * scale, prop=fonts)
    polygons = [np.asarray(polygon) for polygon in path.to_polygons()]
    right = max((p[:, 0].max() for p in polygons), default=0.0)
    width, height = int(right / scale) + 7, round(1.35 * size)
    mask = np.zeros((height * scale, width * scale), np.uint8)
    baseline = round(1.02 * size) * scale
    outlines = [np.round(p * [1, -1] + [3 * scale, baseline]).astype(np.int32) for p in polygons]
    if outlines:
        cv2.fillPoly(mask, outlines, 255)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA) / 255.0
