"""Pictures with truth and prediction, side by side."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from harmonic_jax.files import write_bytes
from harmonic_jax.visualize.boxes import (
    INK,
    PREDICTION_COLOR,
    TRUTH_COLOR,
    Color,
    LabelledBoxes,
    draw_labels,
    draw_outline,
    draw_outlines,
    text_mask,
)
from harmonic_jax.visualize.masks import draw_masks

PAPER: Color = (255, 255, 255)


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

    Masks are drawn where there are any: predicted ones half-transparent with their outlines, true
    ones as outlines.

    Args:
      images: uint8 [h, w, 3] each, RGB, of any size; scaled so that the long side is `cell`.
      truths, predictions: One for each image; scores of predictions are shown.
      class_names: The name of each label.
      columns: Pictures in a row.
      cell: Pixels of a picture's long side.

    Returns:
      uint8 [height, width, 3], RGB; the legend alone where there are no images.
    """
    pictures = [
        _picture(image, truth, prediction, class_names, cell)
        for image, truth, prediction in zip(images, truths, predictions, strict=True)
    ]
    columns = max(1, min(columns, len(pictures)))
    gap = 12
    width = columns * (cell + gap) + gap
    rows = [_legend(width)]
    for start in range(0, len(pictures), columns):
        row = pictures[start : start + columns]
        height = max(picture.shape[0] for picture in row)
        strip = np.full((height + gap, width, 3), PAPER, np.uint8)
        for i, picture in enumerate(row):
            x = gap + i * (cell + gap) + (cell - picture.shape[1]) // 2
            y = (height - picture.shape[0]) // 2
            strip[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        rows.append(strip)
    return np.vstack(rows)


def _picture(
    image: np.ndarray,
    truth: LabelledBoxes,
    prediction: LabelledBoxes,
    class_names: Sequence[str],
    cell: int,
) -> np.ndarray:
    height, width = image.shape[:2]
    scale = cell / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    picture = cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
    truth, prediction = (
        LabelledBoxes(
            np.asarray(o.boxes, float).reshape(-1, 4) * scale, o.labels, o.scores, o.masks
        )
        for o in (truth, prediction)
    )
    draw_masks(picture, prediction.masks or (), PREDICTION_COLOR, filled=True)
    draw_masks(picture, truth.masks or (), TRUTH_COLOR, filled=False)
    # Dashes over the solid lines, so that both show where a prediction is exact.
    draw_outlines(picture, prediction, PREDICTION_COLOR, dashed=False)
    draw_outlines(picture, truth, TRUTH_COLOR, dashed=True)
    taken: list[tuple[int, int, int, int]] = []
    draw_labels(picture, prediction, class_names, PREDICTION_COLOR, taken, below=False)
    draw_labels(picture, truth, class_names, TRUTH_COLOR, taken, below=True)
    return picture


def _legend(width: int) -> np.ndarray:
    strip = np.full((44, width, 3), PAPER, np.uint8)
    x = 12
    for text, color, dashed in (
        ("truth", TRUTH_COLOR, True),
        ("prediction, with score", PREDICTION_COLOR, False),
    ):
        draw_outline(strip, np.array([x, 12, x + 44, 32]), color, dashed)
        mask = text_mask(text, 16)[:, : max(width - x - 52, 0), None]
        y = (44 - mask.shape[0]) // 2
        region = strip[y : y + mask.shape[0], x + 52 : x + 52 + mask.shape[1]]
        region[:] = np.round(region * (1 - mask) + np.array(INK) * mask)
        x += 52 + mask.shape[1] + 24
    return strip


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes a uint8 RGB image [h, w, 3].

    Raises:
      OSError: The file cannot be written.
    """
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_bytes(path, data.tobytes())
