"""What every source gives: records without pixels, and the encoded image on demand."""

import dataclasses
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """One image and its objects, after the rules of docs/data.md were applied.

    Attributes:
      image_id: the data set's own id, or the position in the split where it has none.
      file_name: names the image in messages and reports.
      height, width: pixels of the image as annotated.
      boxes: float32 [n, 4], xyxy in absolute pixels of the original image, inside it.
      labels: int32 [n], 0..k-1.
      is_crowd: bool [n], a region of many objects (COCO): ignored in training and evaluation.
      is_difficult: bool [n], VOC's flag: ignored in evaluation.
      area: float32 [n], square pixels; the mask's where the data set has it, else the box's.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    area: np.ndarray


class DetectionSource(Protocol):
    """A data set split with random access; records are in memory, images are read on demand."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own id of each class, for results in COCO format."""
        ...

    @property
    def records(self) -> tuple[Record, ...]: ...

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of records[index]; raises OSError where it cannot be read."""
        ...

    def fingerprint(self) -> str:
        """A hash of names, sizes and objects: changes where the data or their order change."""
        ...
