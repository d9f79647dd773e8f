"""What was found in one image: the arrays, the rows of a table, the picture."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from harmonic_jax.masks import RleTable, paste_masks
from harmonic_jax.metrics.tables import DetectionTable, concatenate_detections
from harmonic_jax.report.boxes import Color, LabelledBoxes, draw_objects
from harmonic_jax.structures import Detections

# Okabe and Ito's palette, which every kind of colour vision tells apart, without what is too dark
# for the labels' ink.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0),
)  # fmt: skip
LONG_SIDE = (640, 1600)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDetections:
    """The objects found in an image, best first.

    Attributes:
      boxes: float32 [n, 4], xyxy in pixels of the image, x2 = x1 + width.
      scores: float32 [n], in [0, 1].
      labels: int32 [n], 0..k-1.
      names: n class names.
      size: height and width of the image, pixels.
      masks: n masks of the image's size as COCO's run lengths; `masks.decode(i)` gives bool
        [h, w]. None where the detector finds boxes only.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int]
    masks: RleTable | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> "ImageDetections":
        """Those with a score of at least `score`."""
        rows = np.flatnonzero(self.scores >= score)
        return ImageDetections(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            tuple(self.names[row] for row in rows),
            self.size,
            None if self.masks is None else self.masks.take(rows),
        )


def detections_of(
    found: Detections, row: int, size: tuple[int, int], class_names: Sequence[str]
) -> ImageDetections:
    """One image of a batch on the host.

    Args:
      found: numpy arrays, boxes in pixels of the image.
      row: of the image in the batch.
      size: its height and width.
      class_names: of the detector.
    """
    valid = np.asarray(found.valid[row])
    boxes, labels = np.asarray(found.boxes[row])[valid], np.asarray(found.labels[row])[valid]
    masks = None
    if found.masks is not None:
        masks = paste_masks(np.asarray(found.masks[row])[valid], boxes, *size)
    return ImageDetections(
        boxes=boxes,
        scores=np.asarray(found.scores[row])[valid],
        labels=labels,
        names=tuple(class_names[label] for label in labels),
        size=size,
        masks=masks,
    )


def detection_table(found: Sequence[tuple[int, ImageDetections]]) -> DetectionTable:
    """(image id, detections) of some images as one table, in that order."""
    tables = [
        DetectionTable(
            image_id=np.full(len(image), image_id),
            boxes=image.boxes,
            scores=image.scores,
            labels=image.labels,
            masks=image.masks,
        )
        for image_id, image in found
    ]
    return concatenate_detections(tables)


def picture_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of an image's picture: on a very small one labels would hide everything,
    on a very large one they could not be read.

    >>> picture_size(480, 640), picture_size(30, 40), picture_size(3000, 4000)
    ((480, 640), (480, 640), (1200, 1600))
    """
    low, high = LONG_SIDE
    scale = min(max(low / max(height, width), 1.0), high / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def draw_detections(
    image: np.ndarray, found: ImageDetections, class_names: Sequence[str]
) -> np.ndarray:
    """Boxes, masks, class names and scores on an image, a colour a class.

    Args:
      image: uint8 RGB [h, w, 3].
      found: what was found in it.
      class_names: of the detector.

    Returns:
      uint8 RGB, the image with its long side between 640 and 1600 pixels.
    """
    objects = LabelledBoxes(found.boxes, found.labels, found.scores, found.masks)
    size = picture_size(*image.shape[:2])
    return draw_objects(image, objects, class_names, size=size, colors=PALETTE)
