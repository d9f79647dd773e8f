"""COCO's two kinds of JSON files, as people and tools write them: annotations and results.

An annotation file becomes a `CocoFile`, whose images and objects are read entry by entry; whether a
wrong one is dropped and counted (training) or ends the command (metrics) is the caller's, who gets
it as an `EntryFault`. A results file becomes a list of `CocoResult`: a clean one is decoded
straight to them, any other is read entry by entry, which names the first that is wrong.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from harmonic_jax.coco_format.values import (
    Box,
    Id,
    area,
    box,
    class_id,
    class_name,
    flag,
    identity,
    keys_of,
    number,
    problem,
    unknown,
)
from harmonic_jax.json_file import JsonFileError, parse_json, read_json, shown

_KEYS = ("images", "annotations", "categories")
_RESULTS = "it must be a list of objects with image_id, category_id, bbox and score"
_OTHER_TASKS = {
    "keypoints": "keypoints",
    "caption": "captions",
    "segments_info": "panoptic segments",
}


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """An annotation file, whose entries are not checked yet.

    Attributes:
      name: what messages call it.
      category_ids: k ids, rising.
      class_names: k names, each once.
      same_names: of each name that several categories have, what they are called here.
      images, annotations: the lists as they stand.
    """

    name: str
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    same_names: tuple[str, ...]
    images: list[Any]
    annotations: list[Any]


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
    xywh: Box
    is_crowd: bool
    is_difficult: bool
    area: float
    entry: dict[str, Any]


class CocoResult(msgspec.Struct, gc=False):
    """An entry of a results file; `bbox`, x, y, width, height, is None for one of a mask alone."""

    image_id: int | str
    category_id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    score: float
    bbox: Box | None = None
    segmentation: Any = None


def read_coco_file(path: str | Path, *, segmentations: bool) -> CocoFile:
    """Reads an annotation file.

    Args:
      path: the file.
      segmentations: keep them; without them a file is a tenth as large in memory.

    Raises:
      OSError: it cannot be read.
      JsonFileError: it is no annotation file, or its categories are not what they should be.
    """
    # Masks are nine tenths of the file: changed while parsing, they never pile up in memory.
    hook = _with_compact_mask if segmentations else _without_mask
    content = read_json(path, unique_keys=True, object_hook=hook)
    return coco_file(content, name=str(path))


def coco_file(content: Any, *, name: str) -> CocoFile:
    """An annotation file of what it holds; see `read_coco_file`."""
    if not isinstance(content, dict):
        hint = "; a list is a results file" if isinstance(content, list) else ""
        raise JsonFileError(f"{name} must hold an object with the lists {', '.join(_KEYS)}{hint}")
    for key in _KEYS:
        if not isinstance(content.get(key), list):
            found = f"{key} is {shown(content[key])}" if key in content else f"there is no {key}"
            raise JsonFileError(f"{name} must hold a list of {key}; {found}, {keys_of(content)}")
    names = _categories(content["categories"], name)
    class_names, same_names = _told_apart(names, name)
    lists = content["images"], content["annotations"]
    return CocoFile(name, tuple(names), class_names, same_names, *lists)


def images_of(file: CocoFile, on_fault: OnFault) -> dict[Id, dict[str, Any]]:
    """The images with an id of their own, by it; of several with one id the first."""
    images: dict[Id, dict[str, Any]] = {}
    rows: dict[Id, int] = {}
    for row, entry in enumerate(file.images):
        where = f"images[{row}]"
        key = identity(entry.get("id")) if isinstance(entry, dict) else None
        if key is None:
            on_fault(EntryFault(FaultKind.IMAGE, where, problem(entry, "id", identity), entry))
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
        found = _object(row, entry, images, labels)
        if isinstance(found, EntryFault):
            on_fault(found)
            continue
        if not found.area >= 0 and entry.get("area") is not None:
            message = problem(entry, "area", area)
            on_fault(EntryFault(FaultKind.AREA, f"annotations[{row}]", message, entry))
        yield found


def read_results(path: str | Path) -> list[CocoResult]:
    """Reads a results file.

    Raises:
      OSError: it cannot be read.
      JsonFileError: it is no results file, or an entry lacks a field or has a wrong one.
    """
    data = Path(path).read_bytes()
    try:
        results = msgspec.json.decode(data, type=list[CocoResult])
        if all(result.bbox is not None for result in results):
            return results
    except (msgspec.MsgspecError, RecursionError):
        pass  # perhaps sound, but of floats for ids, in UTF-16, with masks alone ..
    content, name = parse_json(data, path), str(path)
    if not isinstance(content, list):
        what = f"an object, {_described(content)}" if isinstance(content, dict) else shown(content)
        raise JsonFileError(f"{name} holds {what}; {_RESULTS}")
    return [_result(entry, f"{name}[{row}]") for row, entry in enumerate(content)]


def says_mask(segmentation: Any) -> bool:
    """Whether a segmentation is neither null nor empty."""
    return segmentation not in (None, [], {}, "")


def _result(entry: Any, where: str) -> CocoResult:
    if not isinstance(entry, dict):
        raise JsonFileError(f"{where} is {shown(entry)}; {_RESULTS}")

    def read(field: str, legal: Callable[[Any], Any]) -> Any:
        value = legal(entry.get(field))
        if value is None:
            raise JsonFileError(f"{where}: {problem(entry, field, legal)}{_other_task(entry)}")
        return value

    segmentation = entry.get("segmentation")
    # As in pycocotools' loadRes, [] is no box.
    is_boxless = entry.get("bbox") in (None, []) and says_mask(segmentation)
    return CocoResult(
        image_id=read("image_id", identity),
        category_id=read("category_id", class_id),
        bbox=None if is_boxless else read("bbox", box),
        score=read("score", number),
        segmentation=segmentation,
    )


def _other_task(entry: dict[str, Any]) -> str:
    kinds = [kind for key, kind in _OTHER_TASKS.items() if key in entry]
    return f" ({kinds[0]} are not evaluated; boxes and masks are)" if kinds else ""


def _described(content: dict[str, Any]) -> str:
    """A file of another kind than results, in words."""
    if "images" in content and "annotations" in content:
        return "an annotation file"
    lists = [key for key, value in content.items() if isinstance(value, list)]
    if len(content) == 1 and lists:
        return f"with the key {shown(lists[0])} alone: write its list, without the object"
    if len(lists) == len(content) > 1:
        return f"with a list for each of {len(lists)} keys, {shown(lists[0])} ..: join the lists"
    return keys_of(content)


def _categories(entries: list[Any], name: str) -> dict[int, str]:
    """Names by category id, in the order of the ids."""
    names: dict[int, str] = {}
    for row, entry in enumerate(entries):
        where = f"{name}: categories[{row}]"
        is_object = isinstance(entry, dict)
        key = class_id(entry.get("id")) if is_object else None
        label = class_name(entry.get("name")) if is_object else None
        if key is None or label is None:
            wrong = ("id", class_id) if key is None else ("name", class_name)
            raise JsonFileError(f"{where}: {problem(entry, *wrong)}")
        if key in names:
            raise JsonFileError(f"{where}: id {key} is that of {shown(names[key])} too")
        names[key] = label
    if not names:
        raise JsonFileError(f"{name}: the list of categories is empty")
    return dict(sorted(names.items()))


def _told_apart(names: dict[int, str], file: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names, with the id behind each that stands twice; and what was done, in words."""
    same: dict[str, list[str]] = {name: [] for name in names.values()}
    for key, name in names.items():
        same[name].append(f"{name} (id {key})")
    apart = tuple(
        f"{name} (id {key})" if len(same[name]) > 1 else name for key, name in names.items()
    )
    if len(set(apart)) < len(apart):
        twice = next(name for name in apart if apart.count(name) > 1)
        raise JsonFileError(f"{file}: two categories are called {shown(twice)}; rename one")
    told = tuple(
        f"{len(new)} categories are called {name!r}: here {', '.join(map(repr, new))}"
        for name, new in same.items()
        if len(new) > 1
    )
    return apart, told


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _with_compact_mask(entry: dict[str, Any]) -> dict[str, Any]:
    """Lists of numbers as arrays: a quarter of the memory, until the image's size is known."""
    mask = entry.get("segmentation")
    if isinstance(mask, list):
        entry["segmentation"] = [_compact(part) for part in mask]
    elif isinstance(mask, dict) and isinstance(mask.get("counts"), list):
        mask["counts"] = _compact(mask["counts"])
    return entry


def _compact(numbers: Any) -> Any:
    try:
        array = np.asarray(numbers)
    except ValueError:
        return numbers
    return array if array.ndim == 1 and array.dtype.kind in "iuf" else numbers


def _object(
    row: int, entry: Any, images: Mapping[Id, Any], labels: Mapping[int, int]
) -> CocoObject | EntryFault:
    def fault(kind: FaultKind, message: str) -> EntryFault:
        return EntryFault(kind, f"annotations[{row}]", message, entry)

    image = identity(entry.get("image_id")) if isinstance(entry, dict) else None
    if image is None:
        return fault(FaultKind.UNKNOWN_IMAGE, problem(entry, "image_id", identity))
    if image not in images:
        message = f"image_id {unknown(image, images, 'the list of images')}"
        return fault(FaultKind.UNKNOWN_IMAGE, message)
    category = class_id(entry.get("category_id"))
    if category is None:
        return fault(FaultKind.UNKNOWN_CLASS, problem(entry, "category_id", class_id))
    if category not in labels:
        message = f"category_id {unknown(category, labels, 'the list of categories')}"
        return fault(FaultKind.UNKNOWN_CLASS, message)
    xywh = box(entry.get("bbox"))
    if xywh is None:
        return fault(FaultKind.OBJECT, problem(entry, "bbox", box))
    is_crowd, is_difficult = flag(entry.get("iscrowd")), flag(entry.get("difficult"))
    if is_crowd is None or is_difficult is None:
        field = "iscrowd" if is_crowd is None else "difficult"
        return fault(FaultKind.OBJECT, problem(entry, field, flag))
    stated = area(entry.get("area"))
    pixels = float("nan") if stated is None else stated
    return CocoObject(row, image, labels[category], xywh, is_crowd, is_difficult, pixels, entry)
