"""COCO's two kinds of JSON files, as people and tools write them: annotations and results.

An annotation file becomes a `CocoFile`, whose images and objects are read entry by entry; whether a
wrong one is dropped and counted (training) or ends the command (metrics) is the caller's, who gets
it as an `EntryFault`. A results file becomes a list of `CocoResult`: a clean one is decoded
straight to them, any other is read entry by entry, which names the first that is wrong.
"""

import collections
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from harmonic_jax.coco_format.federated import LISTS, Federation
from harmonic_jax.coco_format.values import (
    Box,
    FieldError,
    Id,
    area,
    as_int64,
    box,
    class_id,
    class_name,
    entries,
    flag,
    identity,
    number,
    problem,
    read_field,
    unknown,
)
from harmonic_jax.json_file import JsonFileError, parse_json, read_json, shown


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """An annotation file, whose entries are not checked yet.

    Attributes:
      name: what messages call it.
      category_ids: k ids, rising.
      class_names: k names, each once.
      same_names: of each name that several categories have, what they are called here.
    """

    name: str
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    same_names: tuple[str, ...]
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]

    @property
    def is_federated(self) -> bool:
        """Whether an image has one of LVIS's lists."""
        known = set(LISTS.values())
        return any(isinstance(entry, dict) and known & entry.keys() for entry in self.images)


class FaultKind(enum.Enum):
    """What an entry is not good for, by the names of docs/data.md."""

    MALFORMED_IMAGE = enum.auto()
    DUPLICATE_IMAGE = enum.auto()
    UNKNOWN_IMAGE = enum.auto()
    UNKNOWN_CLASS = enum.auto()
    MALFORMED_OBJECT = enum.auto()
    AREA_FROM_BOX = enum.auto()  # the object is good, but for its area


_KINDS = {"image_id": FaultKind.UNKNOWN_IMAGE, "category_id": FaultKind.UNKNOWN_CLASS}


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
      label: 0..k-1.
      xywh: x, y, width, height, perhaps not finite.
      is_crowd, is_difficult: the flags `iscrowd` and `difficult`, or LVIS's `ignore`.
      area: NaN where none is stated that can be used.
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
    """Reads an annotation file, which without `segmentations` is a tenth as large in memory.

    A JsonFileError where it is none, or its categories are not what they should be.
    """
    # Masks are nine tenths of the file: changed while parsing, they never pile up in memory.
    hook = _with_compact_mask if segmentations else _without_mask
    content = read_json(path, unique_keys=True, object_hook=hook)
    return coco_file(content, name=str(path))


def coco_file(content: Any, *, name: str) -> CocoFile:
    """An annotation file of what it holds; see `read_coco_file`."""
    try:
        images, annotations, categories = (
            read_field(content, key, entries) for key in ("images", "annotations", "categories")
        )
    except FieldError as error:
        raise JsonFileError(f"{name} is no annotation file: {error}") from None
    names = _categories(categories, name)
    counts = collections.Counter(names.values())
    apart = {key: f"{text} (id {key})" for key, text in names.items() if counts[text] > 1}
    class_names = tuple((names | apart).values())
    if len(set(class_names)) < len(class_names):
        raise JsonFileError(
            f"{name}: names of categories are the same as others with ids: {shown(class_names)}"
        )
    same: dict[str, list[str]] = {}
    for key, told in apart.items():
        same.setdefault(names[key], []).append(repr(told))
    same_names = tuple(
        f"{len(new)} categories are called {text!r}: here {', '.join(new)}"
        for text, new in same.items()
    )
    lists = (images, annotations, categories)
    return CocoFile(name, tuple(names), class_names, same_names, *lists)


def images_of(file: CocoFile, on_fault: OnFault) -> dict[Id, dict[str, Any]]:
    """The images with an id of their own, by it; of several with one id the first.

    Where `coco_url` alone names the file, as in LVIS, `file_name` is its folder and name.
    """
    images: dict[Id, dict[str, Any]] = {}
    rows: dict[Id, int] = {}
    for row, entry in enumerate(file.images):
        where = f"images[{row}]"
        try:
            key = read_field(entry, "id", identity)
        except FieldError as error:
            on_fault(EntryFault(FaultKind.MALFORMED_IMAGE, where, str(error), entry))
            continue
        if key in images:
            message = f"id {shown(key)} is that of images[{rows[key]}] too"
            on_fault(EntryFault(FaultKind.DUPLICATE_IMAGE, where, message, entry))
        else:
            url = entry.get("coco_url")
            if "file_name" not in entry and isinstance(url, str):
                entry = entry | {"file_name": "/".join(url.split("/")[-2:])}
            images[key], rows[key] = entry, row
    return images


def federation_of(file: CocoFile, images: Mapping[Id, dict[str, Any]]) -> Federation | None:
    """What images were searched for, where they have LVIS's lists; None for COCO's.

    Raises:
      JsonFileError: a list or a frequency is absent or wrong; no category need have a frequency.
    """
    if not file.is_federated:
        return None
    labels: dict[int | None, int] = {key: k for k, key in enumerate(file.category_ids)}
    pairs: dict[str, list[tuple[int, int]]] = {key: [] for key in LISTS}
    for image, entry in images.items():
        for key, field in LISTS.items():
            ids = entry.get(field)
            for category in ids if isinstance(ids, list) else [ids]:
                if (label := labels.get(class_id(category))) is None:
                    told = f"{field} has {shown(category)}; it must be a list of ids of categories"
                    raise JsonFileError(f"{file.name}: image {shown(image)}: {told}")
                pairs[key].append((as_int64(image), label))
    groups = {class_id(entry["id"]): entry.get("frequency") for entry in file.categories}
    for category, group in groups.items():
        if group not in ("r", "c", "f") and any(groups.values()):
            told = f"frequency is {shown(group)}; it must be r, c or f"
            raise JsonFileError(f"{file.name}: category {category}: {told}")
    arrays = {key: np.array(rows, np.int64).reshape(-1, 2) for key, rows in pairs.items()}
    known = [groups[key] for key in file.category_ids if groups[key]]
    return Federation(**arrays, frequencies=tuple(known))


def objects_of(file: CocoFile, images: Mapping[Id, Any], on_fault: OnFault) -> Iterator[CocoObject]:
    """The objects of `images`, in the order of the file.

    An object whose area alone is wrong is given with an area of NaN, after its fault.
    """
    labels = {category: label for label, category in enumerate(file.category_ids)}
    ignoring = ("difficult", "ignore") if file.is_federated else ("difficult",)
    for row, entry in enumerate(file.annotations):
        where = f"annotations[{row}]"
        try:
            image = read_field(entry, "image_id", identity)
            if image not in images:
                told = unknown(image, images, "the list of images")
                raise FieldError("image_id", f"image_id {told}")
            category = read_field(entry, "category_id", class_id)
            if category not in labels:
                told = unknown(category, labels, "the list of categories")
                raise FieldError("category_id", f"category_id {told}")
            xywh = read_field(entry, "bbox", box)
            is_crowd = read_field(entry, "iscrowd", flag)
            is_difficult = any(read_field(entry, field, flag) for field in ignoring)
        except FieldError as error:
            kind = _KINDS.get(error.field, FaultKind.MALFORMED_OBJECT)
            on_fault(EntryFault(kind, where, str(error), entry))
            continue
        pixels = area(entry.get("area"))
        if pixels is None and entry.get("area") is not None:
            message = problem(entry, "area", area)
            on_fault(EntryFault(FaultKind.AREA_FROM_BOX, where, message, entry))
        yield CocoObject(
            row=row,
            image=image,
            label=labels[category],
            xywh=xywh,
            is_crowd=is_crowd,
            is_difficult=is_difficult,
            area=float("nan") if pixels is None else pixels,
            entry=entry,
        )


def read_results(path: str | Path) -> list[CocoResult]:
    """Reads a results file; a JsonFileError where it is none, or a field is absent or wrong."""
    data = Path(path).read_bytes()
    try:
        results = msgspec.json.decode(data, type=list[CocoResult])
        if all(result.bbox is not None for result in results):
            return results
    except (msgspec.MsgspecError, RecursionError):
        pass  # perhaps sound, but of floats for ids, in UTF-16, with masks alone ..
    content, legal = parse_json(data, path), "a list of objects with image_id, category_id"
    if not isinstance(content, list):
        raise JsonFileError(f"{path} is {shown(content)}; it must be {legal}, bbox and score")
    return [_result(entry, f"{path}[{row}]") for row, entry in enumerate(content)]


def says_mask(segmentation: Any) -> bool:
    """Whether a segmentation is neither null nor empty."""
    return segmentation not in (None, [], {}, "")


def _result(entry: Any, where: str) -> CocoResult:
    try:
        ids = read_field(entry, "image_id", identity), read_field(entry, "category_id", class_id)
        # As in pycocotools' loadRes, [] is no box.
        is_boxless = entry.get("bbox") in (None, []) and says_mask(entry.get("segmentation"))
        xywh = None if is_boxless else read_field(entry, "bbox", box)
        score = read_field(entry, "score", number)
    except FieldError as error:
        raise JsonFileError(f"{where}: {error}") from None
    return CocoResult(*ids, score, xywh, entry.get("segmentation"))


def _categories(entries: list[Any], name: str) -> dict[int, str]:
    """Names by category id, in the order of the ids."""
    names: dict[int, str] = {}
    for row, entry in enumerate(entries):
        try:
            key, label = read_field(entry, "id", class_id), read_field(entry, "name", class_name)
        except FieldError as error:
            raise JsonFileError(f"{name}: categories[{row}]: {error}") from None
        if key in names:
            told = f"id {key} is that of {shown(names[key])} too"
            raise JsonFileError(f"{name}: categories[{row}]: {told}")
        names[key] = label
    if not names:
        raise JsonFileError(f"{name}: the list of categories is empty")
    return dict(sorted(names.items()))


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
