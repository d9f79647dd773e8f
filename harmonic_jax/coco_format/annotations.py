"""A COCO annotation file: its categories, and its images and annotations as they stand."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.coco_format.values import (
    class_id,
    class_name,
    problem,
)
from harmonic_jax.json_file import JsonFileError, read_json, shown

_KEYS = ("images", "annotations", "categories")


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
            keys = ", ".join(map(shown, list(content)[:8])) or "none"
            raise JsonFileError(f"{name} must hold a list of {key}; {found}, its keys are {keys}")
    names = _categories(content["categories"], name)
    shown_names, same = _told_apart(names, name)
    return CocoFile(
        name=name,
        category_ids=tuple(names),
        class_names=shown_names,
        same_names=same,
        images=content["images"],
        annotations=content["annotations"],
    )


def _categories(entries: list[Any], name: str) -> dict[int, str]:
    """Names by category id, in the order of the ids."""
    names: dict[int, str] = {}
    for row, entry in enumerate(entries):
        where = f"{name}: categories[{row}]"
        if not isinstance(entry, dict):
            raise JsonFileError(f"{where} is {shown(entry)}; it must be an object")
        key, label = class_id(entry.get("id")), class_name(entry.get("name"))
        if key is None:
            raise JsonFileError(f"{where}: {problem(entry, 'id', class_id)}")
        if label is None:
            raise JsonFileError(f"{where}: {problem(entry, 'name', class_name)}")
        if key in names:
            raise JsonFileError(f"{where}: id {key} is that of {shown(names[key])} too")
        names[key] = label
    if not names:
        raise JsonFileError(f"{name}: the list of categories is empty")
    return dict(sorted(names.items()))


def _told_apart(names: dict[int, str], file: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names, with the id behind each that stands twice; and what was done, in words."""
    all_names = list(names.values())
    ids: dict[str, list[int]] = {}
    for key, name in names.items():
        ids.setdefault(name, []).append(key)
    apart = tuple(
        f"{name} (id {key})" if len(ids[name]) > 1 else name for key, name in names.items()
    )
    if len(set(apart)) < len(apart):
        twice = next(name for name in apart if apart.count(name) > 1)
        raise JsonFileError(f"{file}: two categories are called {shown(twice)}; rename one")
    told = tuple(
        f"{len(keys)} categories are called {name!r}: here "
        + ", ".join(repr(new) for new, old in zip(apart, all_names, strict=True) if old == name)
        for name, keys in ids.items()
        if len(keys) > 1
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
