"""The images and objects of a COCO annotation file, and what is wrong with each entry.

Whether a wrong entry is dropped and counted (training) or ends the command (metrics) is the
caller's: it gets each as an `EntryFault`.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from harmonic_jax.coco_format.annotations import CocoFile
from harmonic_jax.coco_format.values import (
    Id,
    box,
    class_id,
    flag,
    identity,
    number,
    problem,
    unknown,
)
from harmonic_jax.json_file import shown


class FaultKind(enum.Enum):
    """What an entry is not good for."""

    IMAGE = enum.auto()
    DUPLICATE_IMAGE = enum.auto()
    UNKNOWN_IMAGE = enum.auto()
    UNKNOWN_CLASS = enum.auto()
    OBJECT = enum.auto()
    AREA = enum.auto()
    """The object is good, but for its area."""


@dataclasses.dataclass(frozen=True)
class EntryFault:
    """What is wrong with an entry: `where` it is, "annotations[3]", and what the field holds."""

    kind: FaultKind
    where: str
    message: str
    entry: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


OnFault = Callable[[EntryFault], None]


class CocoObject(NamedTuple):
    """An annotation.

    Attributes:
      row: its place in the file's list.
      image: the id of its image.
      label: 0..k-1.
      xywh: x, y, width, height, perhaps not finite.
      is_crowd, is_difficult: the flags `iscrowd` and `difficult`.
      area: NaN where none is stated that can be used.
      entry: all of it.
    """

    row: int
    image: Id
    label: int
    xywh: tuple[float, float, float, float]
    is_crowd: bool
    is_difficult: bool
    area: float
    entry: dict[str, Any]


def images_of(file: CocoFile, on_fault: OnFault) -> dict[Id, dict[str, Any]]:
    """The images with an id of their own, by it; of several with one id the first."""
    images: dict[Id, dict[str, Any]] = {}
    rows: dict[Id, int] = {}
    for row, entry in enumerate(file.images):
        where = f"images[{row}]"
        key = identity(entry.get("id")) if isinstance(entry, dict) else None
        if key is None:
            message = _wrong(entry, "id", identity)
            on_fault(EntryFault(FaultKind.IMAGE, where, message, entry))
        elif key in images:
            message = f"id {shown(key)} is that of images[{rows[key]}] too"
            on_fault(EntryFault(FaultKind.DUPLICATE_IMAGE, where, message, entry))
        else:
            images[key], rows[key] = entry, row
    return images


def objects_of(file: CocoFile, images: Mapping[Id, Any], on_fault: OnFault) -> Iterator[CocoObject]:
    """The objects of `images`, in the order of the file.

    An object whose area alone is wrong is given with an area of NaN, after its fault.
    """
    labels = {category: label for label, category in enumerate(file.category_ids)}
    for row, entry in enumerate(file.annotations):
        try:
            found = _object(row, entry, images, labels)
        except _FaultError as fault:
            on_fault(EntryFault(fault.kind, f"annotations[{row}]", str(fault), entry))
            continue
        if not found.area >= 0 and entry.get("area") is not None:
            message = problem(entry, "area", _area)
            on_fault(EntryFault(FaultKind.AREA, f"annotations[{row}]", message, entry))
        yield found


class _FaultError(ValueError):
    def __init__(self, kind: FaultKind, message: str):
        super().__init__(message)
        self.kind = kind


def _object(
    row: int, entry: Any, images: Mapping[Id, Any], labels: Mapping[int, int]
) -> CocoObject:
    image = identity(entry.get("image_id")) if isinstance(entry, dict) else None
    if image is None:
        raise _FaultError(FaultKind.UNKNOWN_IMAGE, _wrong(entry, "image_id", identity))
    if image not in images:
        message = f"image_id {unknown(image, images, 'the list of images')}"
        raise _FaultError(FaultKind.UNKNOWN_IMAGE, message)
    category = class_id(entry.get("category_id"))
    if category is None:
        raise _FaultError(FaultKind.UNKNOWN_CLASS, problem(entry, "category_id", class_id))
    if category not in labels:
        message = f"category_id {unknown(category, labels, 'the list of categories')}"
        raise _FaultError(FaultKind.UNKNOWN_CLASS, message)
    xywh = box(entry.get("bbox"))
    if xywh is None:
        raise _FaultError(FaultKind.OBJECT, problem(entry, "bbox", box))
    is_crowd, is_difficult = flag(entry.get("iscrowd")), flag(entry.get("difficult"))
    if is_crowd is None or is_difficult is None:
        field = "iscrowd" if is_crowd is None else "difficult"
        raise _FaultError(FaultKind.OBJECT, problem(entry, field, flag))
    area = _area(entry.get("area"))
    area = float("nan") if area is None else area
    return CocoObject(row, image, labels[category], xywh, is_crowd, is_difficult, area, entry)


def _area(value: Any) -> float | None:
    """a number of square pixels"""
    area = number(value)
    return area if area is not None and 0 <= area < float("inf") else None


def _wrong(entry: Any, field: str, legal: Callable[[Any], Any]) -> str:
    if not isinstance(entry, dict):
        return f"{shown(entry)} must be an object"
    return problem(entry, field, legal)
