"""What every source gives: records without pixels, and the encoded image on demand."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harmonic_jax.coco_format.federated import Federation
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.masks import RleTable


class DataError(ValueError):
    """A data set that cannot be used as it is; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image and its objects, after the rules of docs/data.md were applied.

    Attributes:
      image_id: the data set's own id, or the position in the split where it has none, or a hash of
        the id where that is a text or longer than 64 bits.
      file_name: names the image in messages and reports.
      height, width: pixels of the image as annotated.
      boxes: float32 [n, 4], xyxy in absolute pixels of the original image, inside it.
      labels: int32 [n], 0..k-1.
      is_crowd: bool [n], a region of many objects (COCO): ignored in training and evaluation.
      is_difficult: bool [n], VOC's flag: ignored in evaluation.
      area: float32 [n], square pixels; the mask's where the data set has it, else the box's.
      masks: n masks of the image's size, where they were asked for (data.masks); an empty one is
        unknown.
      original_id: the data set's own id where `image_id` is a hash of it.
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
    masks: RleTable | None = None
    original_id: int | str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """The images and objects of a split as its files state them, stored flat, before any rule.

    Attributes:
      image_ids: int64 [m].
      sizes: int32 [m, 2], height and width in pixels, at least 1.
      owners: int64 [n], ascending: the image of each object, 0..m-1.
      boxes: float64 [n, 4], xyxy in pixels, unchecked.
      labels: int32 [n], 0..k-1.
      is_crowd, is_difficult: bool [n].
      area: float64 [n]; NaN asks for the box's.
      masks: n segmentations as `masks.encode_segmentations` takes them; None: not asked for.
      original_ids: by those of `image_ids` that are not the data set's own, the data set's own.
    """

    image_ids: np.ndarray
    file_names: tuple[str, ...]
    sizes: np.ndarray
    owners: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    area: np.ndarray
    masks: Sequence[Any] | None = None
    original_ids: Mapping[int, int | str] = dataclasses.field(default_factory=dict)


def is_trainable(objects: Record | Annotations, config: DataConfig) -> np.ndarray:
    """Which objects are trained on, bool [n]: no crowds, difficult ones only where asked."""
    return ~objects.is_crowd & (config.use_difficult | ~objects.is_difficult)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordTable(Annotations, Sequence[Record]):
    """All records of a split, stored flat: 118k COCO images take 60 MB, not a million objects.

    `table[i]` is a `Record` whose arrays are read-only views. The objects of image i are the rows
    `offsets[i]:offsets[i + 1]` of the flat arrays, which serve statistics over the whole split and
    have the types that `Record` says.
    """

    masks: RleTable | None = None
    offsets: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        ends = np.cumsum(np.bincount(self.owners, minlength=len(self.file_names)))
        object.__setattr__(self, "offsets", np.concatenate([[0], ends]).astype(np.int64))
        for array in self._arrays():
            array.setflags(write=False)

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return (
            self.image_ids, self.sizes, self.offsets,
            self.boxes, self.labels, self.is_crowd, self.is_difficult, self.area,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices
        row = range(len(self))[index]  # resolves negative indices, raises IndexError
        objects = slice(self.offsets[row], self.offsets[row + 1])
        return Record(
            image_id=int(self.image_ids[row]),
            file_name=self.file_names[row],
            height=int(self.sizes[row, 0]),
            width=int(self.sizes[row, 1]),
            boxes=self.boxes[objects],
            labels=self.labels[objects],
            is_crowd=self.is_crowd[objects],
            is_difficult=self.is_difficult[objects],
            area=self.area[objects],
            masks=None if self.masks is None else self.masks[objects],
            original_id=self.original_ids.get(int(self.image_ids[row])),
        )

    def fingerprint(self, class_names: tuple[str, ...]) -> str:
        """SHA-256 of the class names and of every record, in order, as hexadecimal digits."""
        digest = hashlib.sha256()
        for names in (class_names, self.file_names):
            digest.update(f"{len(names)}:".encode())
            # A file name on the disk need not be text: its stray bytes are halves of surrogates.
            digest.update("\0".join(names).encode("utf-8", "surrogatepass"))
        masks = () if self.masks is None else (self.masks.offsets, self.masks.counts)
        for array in (*self._arrays(), *masks):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionSource:
    """A data set split with random access; records are in memory, images are read on demand.

    Attributes:
      name: FORMAT:DATA_SET:SPLIT, for messages.
      class_names: of the labels 0..k-1.
      category_ids: the data set's own id of each class, for results in COCO format; else 1..k.
      report: what the rules of docs/data.md did to the annotations.
      upright: boxes count pixels of the images as viewers turn them, by EXIF's orientation.
      federation: where images were searched for some classes alone (LVIS), for which.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: RecordTable
    report: DataReport
    upright: bool = dataclasses.field(default=False, kw_only=True)
    federation: Federation | None = dataclasses.field(default=None, kw_only=True)

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of records[index]; raises OSError where it cannot be read."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash of names, sizes and objects: changes where the data or their order change."""
        return self.records.fingerprint(self.class_names)
