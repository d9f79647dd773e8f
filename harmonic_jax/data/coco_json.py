"""Folders in COCO's layout: ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/*.jpg."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harmonic_jax.data.folders import FolderSource, files_in, header_size, is_inside
from harmonic_jax.data.reasons import Reason
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.rules import RawAnnotations, apply_rules


class _Image(NamedTuple):
    id: int
    file_name: str
    path: Path
    size: tuple[int, int] | None


class _Object(NamedTuple):
    image_id: int
    box: tuple[float, float, float, float]
    label: int
    is_crowd: bool
    area: float
    mask: Any


def coco_splits(root: Path) -> tuple[str, ...]:
    """The splits a folder has annotations for, by name."""
    names = sorted(path.stem for path in (root / "annotations").glob("instances_*.json"))
    return tuple(name.removeprefix("instances_") for name in names)


def read_coco(root: Path, split: str, *, max_objects: int, masks: bool = False) -> FolderSource:
    """Reads one split.

    Args:
      root: the folder with `annotations/`.
      split: SPLIT in the names above; the images lie in ROOT/SPLIT or else ROOT/images.
      max_objects: of more objects in an image, the surplus is counted.
      masks: also read the segmentations: polygons, or run lengths of either kind.

    Returns:
      The source; classes are the file's categories in the order of their ids.

    Raises:
      DataError: if the annotation file is absent or is not a COCO detection file.
    """
    path = root / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        legal = ", ".join(coco_splits(root)) or "none, there is no annotations/instances_*.json"
        raise DataError(f"{path} does not exist; splits under data.root={root}: {legal}")
    content = _load(path, masks=masks)
    categories = _categories(content["categories"], path)
    report = DataReport()
    folder = root / split if (root / split).is_dir() else root / "images"
    images = _images(content["images"], folder, report)
    labels = {category: label for label, category in enumerate(categories)}
    objects = list(_objects(content["annotations"], images, labels, report))
    usable = [image for image in images.values() if image]
    class_names = tuple(categories.values())
    return FolderSource(
        name=f"coco:{root.name}:{split}",
        class_names=class_names,
        category_ids=tuple(categories),
        records=apply_rules(
            _flatten(usable, objects, masks=masks),
            class_names=class_names,
            max_objects=max_objects,
            report=report,
        ),
        paths=tuple(str(image.path) for image in usable),
        report=report,
    )


def _load(path: Path, *, masks: bool) -> dict[str, list[Any]]:
    hook = _with_compact_mask if masks else _without_mask
    try:
        # Masks are nine tenths of the file: changed while parsing, they never pile up in memory.
        content = json.loads(path.read_bytes(), object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path} has no list {key!r}: it is not a COCO detection file")
    return content


def _without_mask(content: dict[str, Any]) -> dict[str, Any]:
    content.pop("segmentation", None)
    return content


def _with_compact_mask(content: dict[str, Any]) -> dict[str, Any]:
    """Lists of numbers as arrays: a quarter of the memory, until the image's size is known."""
    mask = content.get("segmentation")
    if isinstance(mask, list):
        content["segmentation"] = [_compact(part) for part in mask]
    elif isinstance(mask, dict) and isinstance(mask.get("counts"), list):
        mask["counts"] = _compact(mask["counts"])
    return content


def _compact(numbers: Any) -> Any:
    try:
        array = np.asarray(numbers)
    except ValueError:
        return numbers
    return array if array.ndim == 1 and array.dtype.kind in "iuf" else numbers


def _categories(entries: list[Any], path: Path) -> dict[int, str]:
    """Names by category id, in the order of the ids."""
    names: dict[int, str] = {}
    for entry in entries:
        identity, name = _get(entry, "id"), _get(entry, "name")
        if type(identity) is not int or not isinstance(name, str) or identity in names:
            raise DataError(f"{path}: category {entry!r} needs a name and an integer id of its own")
        names[identity] = name
    if not names:
        raise DataError(f"{path}: the list 'categories' is empty")
    return dict(sorted(names.items()))


def _images(entries: list[Any], folder: Path, report: DataReport) -> dict[int, _Image | None]:
    """The images by id; None for those that were dropped, whose objects go with them."""
    images: dict[int, _Image | None] = {}
    present: dict[Path, frozenset[str]] = {}
    for entry in entries:
        image = _image(entry, folder)
        if image is None:
            report.add(Reason.MALFORMED_IMAGE, [_text(entry, "file_name", "id")])
        elif image.id in images:
            report.add(Reason.DUPLICATE_IMAGE, [f"{image.file_name}: id {image.id}"])
        elif not _is_present(image.path, present):
            report.add(Reason.MISSING_IMAGE, [image.file_name])
            images[image.id] = None
        else:
            images[image.id] = _with_size(image, report)
    return images


def _is_present(path: Path, present: dict[Path, frozenset[str]]) -> bool:
    # Each folder is listed once: much cheaper than asking for 118k files.
    if path.parent not in present:
        present[path.parent] = files_in(path.parent)
    return path.name in present[path.parent]


def _image(entry: Any, folder: Path) -> _Image | None:
    identity, name = _get(entry, "id"), _get(entry, "file_name")
    if type(identity) is not int or abs(identity) >= 2**63:
        return None
    if not isinstance(name, str) or not is_inside(name):
        return None
    height, width = _get(entry, "height"), _get(entry, "width")
    is_known = all(type(side) is int and 0 < side < 2**31 for side in (height, width))
    return _Image(identity, name, folder / name, (height, width) if is_known else None)


def _with_size(image: _Image, report: DataReport) -> _Image | None:
    if image.size:
        return image
    size = header_size(image.path)
    report.add(Reason.SIZE_FROM_FILE if size else Reason.UNREADABLE_HEADER, [image.file_name])
    return image._replace(size=size) if size else None


def _objects(
    entries: list[Any],
    images: dict[int, _Image | None],
    labels: dict[int, int],
    report: DataReport,
) -> Iterator[_Object]:
    seen: set[int] = set()
    for entry in entries:
        identity, parsed = _get(entry, "id"), _object(entry, labels)
        if type(identity) is int and identity in seen:
            report.add(Reason.DUPLICATE_ANNOTATION_ID, [f"annotation {identity}"])
        elif type(identity) is int:
            seen.add(identity)
        owner = _get(entry, "image_id")
        if type(owner) is not int or owner not in images:
            report.add(Reason.UNKNOWN_IMAGE, [_text(entry, "image_id", "id")])
        elif image := images[owner]:
            if isinstance(parsed, Reason):
                where = _text(entry, "id", "category_id", "bbox")
                report.add(parsed, [f"{image.file_name}: {where}"])
            else:
                yield parsed


def _object(entry: dict[str, Any], labels: dict[int, int]) -> _Object | Reason:
    category, box, area = (_get(entry, key) for key in ("category_id", "bbox", "area"))
    if type(category) is not int or category not in labels:
        return Reason.UNKNOWN_CLASS
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return Reason.MALFORMED_OBJECT
    x, y, width, height = map(float, box)
    return _Object(
        image_id=_get(entry, "image_id"),
        box=(x, y, x + width, y + height),
        label=labels[category],
        is_crowd=bool(_get(entry, "iscrowd")),
        area=float(area) if _is_number(area) else float("nan"),
        mask=_get(entry, "segmentation"),
    )


def _flatten(images: list[_Image], objects: list[_Object], *, masks: bool) -> RawAnnotations:
    position = {image.id: row for row, image in enumerate(images)}
    owners = np.array([position[item.image_id] for item in objects], np.int64)
    order = np.argsort(owners, kind="stable")
    boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    return RawAnnotations(
        image_ids=np.array([image.id for image in images], np.int64),
        file_names=tuple(image.file_name for image in images),
        sizes=np.array([image.size for image in images], np.int32).reshape(-1, 2),
        owners=owners[order],
        boxes=boxes[order],
        labels=np.array([item.label for item in objects], np.int32)[order],
        is_crowd=np.array([item.is_crowd for item in objects], bool)[order],
        is_difficult=np.zeros(len(objects), bool),
        area=np.array([item.area for item in objects], np.float64)[order],
        masks=[objects[i].mask for i in order.tolist()] if masks else None,
    )


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _text(entry: Any, *keys: str) -> str:
    return ", ".join(f"{key} {_get(entry, key)!r}" for key in keys)


def _is_number(value: Any) -> bool:
    # An integer beyond float's range would raise; a float may be NaN, which has its own rule.
    return type(value) is float or (type(value) is int and abs(value) < 10**300)
