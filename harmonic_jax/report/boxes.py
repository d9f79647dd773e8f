"""Objects drawn on photos: boxes, masks, class names and scores; pictures side by side.

Truth is a dashed blue line, prediction a solid orange one: two colours of Okabe and Ito's palette
that every kind of colour vision tells apart, and two line styles for prints without colour.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from harmonic_jax.files import write_bytes
from harmonic_jax.masks import RleTable
from harmonic_jax.report.fonts import drawable, font_families

Color = tuple[int, int, int]
Area = tuple[int, int, int, int]  # x1, y1, x2, y2

TRUTH_COLOR: Color = (86, 180, 233)
PREDICTION_COLOR: Color = (230, 159, 0)
INK: Color = (25, 25, 25)
PAPER: Color = (255, 255, 255)
OPACITY = 0.45  # of a mask's inside
_TEXT_SIZE = 13  # pixels


@dataclasses.dataclass(frozen=True)
class LabelledBoxes:
    """Objects of an image.

    Attributes:
      boxes: float [n, 4], xyxy in pixels of the image.
      labels: int [n], 0..k-1.
      scores: [n], or None.
      masks: n masks of the image, at any size, or None.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: RleTable | None = None

    def __post_init__(self) -> None:
        columns = self.boxes, self.labels, self.scores, self.masks
        lengths = {len(column) for column in columns if column is not None}
        if len(lengths) > 1:
            raise ValueError(f"boxes, labels, scores and masks have lengths {sorted(lengths)}")

    def best_first(self) -> list[int]:
        """Rows by their scores; in their order where there are none."""
        scores = np.zeros(len(self.boxes)) if self.scores is None else np.asarray(self.scores)
        return np.argsort(-scores, kind="stable").tolist()


def draw_objects(
    image: np.ndarray,
    predictions: LabelledBoxes,
    class_names: Sequence[str],
    *,
    truth: LabelledBoxes | None = None,
    size: tuple[int, int] | None = None,
    colors: Sequence[Color] = (PREDICTION_COLOR,),
) -> np.ndarray:
    """A copy of an image with boxes, masks, class names and scores drawn on it.

    Predictions are solid lines with their names above and tinted masks; truth is dashed lines with
    the names below and masks as outlines. A label for which there is no free place beside its box
    is left out; the best scores come first.

    Args:
      image: uint8 [h, w, 3], RGB.
      predictions: boxes outside the image are cut off.
      size: height and width of the result; None: those of the image.
      colors: RGB, of the predictions' lines and labels, a class each in turn.

    Returns:
      uint8 [*size, 3].

    Raises:
      ValueError: an image that is not uint8 RGB.

    Example:
      >>> image = np.zeros((40, 60, 3), np.uint8)
      >>> cat = LabelledBoxes(np.array([[5.0, 20.0, 50.0, 35.0]]), np.array([0]))
      >>> drawn = draw_objects(image, cat, ["cat"])
      >>> drawn.shape, bool((drawn != image).any())
      ((40, 60, 3), True)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}; it must be uint8 [h, w, 3]")
    height, width = size or image.shape[:2]
    method = cv2.INTER_CUBIC if height > image.shape[0] else cv2.INTER_AREA
    canvas = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
    factors = np.array([width / image.shape[1], height / image.shape[0]] * 2)
    layers = [(predictions, colors, False)]
    if truth is not None:
        layers.append((truth, (TRUTH_COLOR,), True))
    for objects, of_class, is_truth in layers:
        _draw_masks(canvas, objects, of_class, filled=not is_truth)
    for objects, of_class, is_truth in layers:
        # The best last, dashes over solid lines: both show where a prediction is exact.
        for row in reversed(objects.best_first()):
            color = of_class[int(objects.labels[row]) % len(of_class)]
            _draw_outline(canvas, objects.boxes[row] * factors, color, dashed=is_truth)
    taken: list[Area] = []
    for objects, of_class, is_truth in layers:
        for row in objects.best_first():
            label = int(objects.labels[row])
            text = class_names[label]
            if objects.scores is not None:
                text += f" {float(objects.scores[row]):.2f}"
            color = of_class[label % len(of_class)]
            _draw_label(canvas, objects.boxes[row] * factors, text, color, taken, below=is_truth)
    return canvas


def detection_grid(
    images: Sequence[np.ndarray],
    truths: Sequence[LabelledBoxes],
    predictions: Sequence[LabelledBoxes],
    class_names: Sequence[str],
    *,
    columns: int = 3,
    cell: int = 480,
) -> np.ndarray:
    """Pictures side by side with true and predicted objects, under a legend.

    Args:
      images: uint8 [h, w, 3] each, RGB, of any size; scaled so that the long side is `cell` pixels.

    Returns:
      uint8 [height, width, 3], RGB; the legend alone where there are no images.
    """
    pictures = []
    for image, truth, prediction in zip(images, truths, predictions, strict=True):
        height, width = (max(round(s * cell / max(image.shape[:2])), 1) for s in image.shape[:2])
        pictures.append(
            draw_objects(image, prediction, class_names, truth=truth, size=(height, width))
        )
    columns = max(1, min(columns, len(pictures)))
    gap = 12
    total_width = columns * (cell + gap) + gap
    rows = [_legend(total_width)]
    for start in range(0, len(pictures), columns):
        row = pictures[start : start + columns]
        height = max(picture.shape[0] for picture in row)
        strip = np.full((height + gap, total_width, 3), PAPER, np.uint8)
        for i, picture in enumerate(row):
            x = gap + i * (cell + gap) + (cell - picture.shape[1]) // 2
            y = (height - picture.shape[0]) // 2
            strip[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        rows.append(strip)
    return np.vstack(rows)


def _legend(width: int) -> np.ndarray:
    strip = np.full((44, width, 3), PAPER, np.uint8)
    x = 12
    for text, color, dashed in (
        ("truth", TRUTH_COLOR, True),
        ("prediction, with score", PREDICTION_COLOR, False),
    ):
        _draw_outline(strip, np.array([x, 12, x + 44, 32]), color, dashed=dashed)
        mask = text_mask(text, 16)[:, : max(width - x - 52, 0), None]
        y = (44 - mask.shape[0]) // 2
        region = strip[y : y + mask.shape[0], x + 52 : x + 52 + mask.shape[1]]
        region[:] = np.round(region * (1 - mask) + np.array(INK) * mask)
        x += 52 + mask.shape[1] + 24
    return strip


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes a uint8 RGB image [h, w, 3]."""
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_bytes(path, data.tobytes())


def encode_jpeg(image: np.ndarray, *, quality: int = 92) -> bytes:
    """A uint8 RGB image [h, w, 3] as a JPEG file."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _draw_masks(
    canvas: np.ndarray, objects: LabelledBoxes, colors: Sequence[Color], *, filled: bool
) -> None:
    """Outlines of masks, stretched to the canvas; where filled, their insides are tinted too."""
    height, width = canvas.shape[:2]
    outlines = []
    for row in range(len(objects.masks or ())):
        assert objects.masks is not None
        mask = objects.masks.decode(row).astype(np.float32)
        inside = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
        color = colors[int(objects.labels[row]) % len(colors)]
        if filled:
            tinted = canvas[inside] * (1 - OPACITY) + np.array(color) * OPACITY
            canvas[inside] = np.round(tinted).astype(np.uint8)
        curves, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outlines.append((curves, color))
    for curves, color in outlines:  # last, so that no other object's tint covers them
        cv2.drawContours(canvas, curves, -1, INK, 3)
        cv2.drawContours(canvas, curves, -1, color, 1)


def _draw_outline(canvas: np.ndarray, box: np.ndarray, color: Color, *, dashed: bool) -> None:
    height, width = canvas.shape[:2]
    limits = np.array([width - 1, height - 1, width - 1, height - 1])
    x1, y1, x2, y2 = np.clip(np.round(box), 0, limits).astype(int).tolist()
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    for line_color, thickness in ((INK, 4), (color, 2)):  # a dark rim shows on any ground
        for start, end in itertools.pairwise(corners):
            for a, b in _dashes(start, end) if dashed else [(start, end)]:
                cv2.line(canvas, a, b, line_color, thickness)


def _dashes(start: tuple[int, int], end: tuple[int, int]) -> Any:
    """The ends of dashes of 7 pixels with gaps of 9."""
    side = np.subtract(end, start)
    length = max(np.abs(side).max(), 1)
    places = np.arange(0, length, 16)[:, None] + [0, 7]
    return np.round(start + np.minimum(places / length, 1.0)[..., None] * side).astype(int).tolist()


def _draw_label(
    canvas: np.ndarray,
    box: np.ndarray,
    label: str,
    color: Color,
    taken: list[Area],
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
    if below:
        heights = (y2 + 2, y2 - height - 1, y2 + 2, y2 - 2 * height - 2)
    else:
        heights = (y1 - height - 1, y1 + 2, y1 - height - 1, y1 + height + 3)
    for place in zip((x1 - 1, x1 + 2, x2 - width, x1 + 2), heights, strict=True):
        x, y = min(max(place[0], 0), right), min(max(place[1], 0), bottom)
        area = (x, y, x + width, y + height)
        if not any(_overlap(area, other) for other in taken):
            taken.append(area)
            region = canvas[y : y + height, x : x + width]
            alpha = mask[:, :, None]
            region[:] = np.round(np.array(color) * (1 - alpha) + np.array(INK) * alpha)
            return


def _overlap(a: Area, b: Area) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


@functools.lru_cache(maxsize=4096)
def text_mask(text: str, size: int) -> np.ndarray:
    """Coverage in 0..1 of a line of text with a small margin, float [height, width]."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    scale = 4  # drawn larger and averaged down, for smooth edges
    text = drawable(text)
    fonts = FontProperties(family=font_families([text]))
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
