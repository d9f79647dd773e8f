"""Folders in COCO's layout: ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/*.jpg."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harmonic_jax.coco_format.annotations import CocoFile, read_coco_file
from harmonic_jax.coco_format.entries import (
    CocoObject,
    EntryFault,
    FaultKind,
    images_of,
    objects_of,
)
from harmonic_jax.coco_format.values import (
    Id,
    as_int64,
    flag,
    identity,
    problem,
    side,
    text,
)
from harmonic_jax.data.coco_images import ImageFinder, name_in_words
from harmonic_jax.data.folders import (
    FolderSource,
    folder_name,
    header_size,
    is_hidden,
    list_folder,
)
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.rules import RawAnnotations, apply_rules
from harmonic_jax.json_file import JsonFileError, shown

_ROBOFLOW = "_annotations.coco.json"
_REASONS = {
    FaultKind.IMAGE: Reason.MALFORMED_IMAGE,
    FaultKind.DUPLICATE_IMAGE: Reason.DUPLICATE_IMAGE,
    FaultKind.UNKNOWN_IMAGE: Reason.UNKNOWN_IMAGE,
    FaultKind.UNKNOWN_CLASS: Reason.UNKNOWN_CLASS,
    FaultKind.OBJECT: Reason.MALFORMED_OBJECT,
    FaultKind.AREA: Reason.AREA_FROM_BOX,
}


class _Image(NamedTuple):
    id: Id
    file_name: str
    path: Path
    size: tuple[int, int]


def coco_splits(root: Path) -> tuple[str, ...]:
    """The splits a folder has annotations for, by name.

    Raises:
      DataError: there is none.
    """
    splits = tuple(sorted(_annotation_files(root)))
    if not splits:
        files = list_folder(root, depth=2).files
        found = [name for name in files if name.lower().endswith(".json")]
        told = f"; there is {', '.join(map(repr, found[:3]))}" if found else ""
        raise DataError(
            f"no split found under data.root={root}: it has no annotations/instances_SPLIT.json, "
            f"and no SPLIT/{_ROBOFLOW}{told}"
        )
    return splits


def read_coco(root: Path, split: str, *, max_objects: int, masks: bool = False) -> FolderSource:
    """Reads one split.

    Args:
      root: the folder with `annotations/`.
      split: SPLIT in the names above, or the folder of Roboflow's SPLIT/_annotations.coco.json.
        The images lie in one of ROOT/SPLIT, ROOT/images/SPLIT, ROOT/SPLIT/images, ROOT/images and
        ROOT: that in which most of them are found.
      max_objects: of more objects in an image, the surplus is counted.
      masks: also read the segmentations: polygons, or run lengths of either kind.

    Returns:
      The source; classes are the file's categories in the order of their ids.

    Raises:
      DataError: if the annotation file is absent or is not a COCO detection file.
    """
    path = _annotation_files(root).get(split)
    if path is None:
        expected, legal = root / "annotations" / f"instances_{split}.json", coco_splits(root)
        raise DataError(
            f"{expected} does not exist; splits under data.root={root}: {', '.join(legal)}"
        )
    try:
        file = read_coco_file(path, segmentations=masks)
    except JsonFileError as error:
        raise DataError(str(error)) from error
    report = DataReport()
    if file.same_names:
        report.add(Reason.SAME_CLASS_NAME, file.same_names)
    _count_repeated_ids(file, report)
    images = _images(file, root, split, report)
    objects = list(_objects(file, images, report))
    usable = [image for image in images.values() if image]
    return FolderSource(
        name=f"coco:{folder_name(root)}:{split}",
        class_names=file.class_names,
        category_ids=file.category_ids,
        records=apply_rules(
            _flatten(usable, objects, masks=masks),
            class_names=file.class_names,
            max_objects=max_objects,
            report=report,
        ),
        paths=tuple(str(image.path) for image in usable),
        report=report,
    )


def _annotation_files(root: Path) -> dict[str, Path]:
    """The annotation files by split: in COCO's layout, else in that of Roboflow's exports."""
    folder = root / "annotations"
    names = [name for name in list_folder(folder, depth=0).files if name.endswith(".json")]
    found = {
        Path(name).stem.removeprefix("instances_"): folder / name
        for name in names
        if name.startswith("instances_")
    }
    for path in root.glob(f"*/{_ROBOFLOW}"):
        if path.is_file() and not is_hidden(path.parent.name):
            found.setdefault(path.parent.name, path)
    return found


def _images(file: CocoFile, root: Path, split: str, report: DataReport) -> dict[Id, _Image | None]:
    """The images by id; None for those that were dropped, whose objects go with them."""
    entries = images_of(file, lambda fault: report.add(_REASONS[fault.kind], [_of_image(fault)]))
    names = [name for entry in entries.values() if isinstance(name := entry.get("file_name"), str)]
    folders = (split, f"images/{split}", f"{split}/images", "images", "")
    finder = ImageFinder(root, folders, names)
    return {key: _image(key, entry, finder, report) for key, entry in entries.items()}


def _image(
    key: Id, entry: dict[str, Any], finder: ImageFinder, report: DataReport
) -> _Image | None:
    name = entry.get("file_name")
    if not isinstance(name, str):
        report.add(
            Reason.MALFORMED_IMAGE, [f"id {shown(key)}: {problem(entry, 'file_name', text)}"]
        )
        return None
    path = finder.find(name)
    if path is None:
        refusal = finder.refusal(name)
        what = f"file_name {shown(name)}, {refusal}"
        told = what if refusal else f"{name_in_words(name)}: {finder.searched()}"
        near = (told + finder.nearby(n) for n in [name])  # looked for only where it is shown
        reason = Reason.MALFORMED_IMAGE if refusal else Reason.MISSING_IMAGE
        report.add(reason, near, count=1)
        return None
    height, width = side(entry.get("height")), side(entry.get("width"))
    if height and width:
        return _Image(key, name, path, (height, width))
    size = header_size(path)
    reason = Reason.SIZE_FROM_FILE if size else Reason.UNREADABLE_HEADER
    stated = ", ".join(f"{field} {shown(entry.get(field))}" for field in ("height", "width"))
    report.add(reason, [f"{name_in_words(name)}: {stated}"])
    return _Image(key, name, path, size) if size else None


def _of_image(fault: EntryFault) -> str:
    name = fault.entry.get("file_name") if isinstance(fault.entry, dict) else None
    where = name_in_words(name) if isinstance(name, str) else fault.where
    return f"{where}: {fault.message}"


def _objects(
    file: CocoFile, images: Mapping[Id, _Image | None], report: DataReport
) -> Iterator[CocoObject]:
    """The objects of the images that were not dropped."""

    def on_fault(fault: EntryFault) -> None:
        key = identity(fault.entry.get("image_id")) if isinstance(fault.entry, dict) else None
        image = None if key is None else images.get(key)
        if image is not None:
            what = f"{name_in_words(image.file_name)}: {fault}"
            report.add(_REASONS[fault.kind], [what])
        elif key not in images:
            report.add(_REASONS[fault.kind], [str(fault)])
        elif fault.kind is not FaultKind.AREA:
            report.add(Reason.DROPPED_WITH_IMAGE, [fault.where])

    for found in objects_of(file, images, on_fault):
        image = images[found.image]
        if image is None:
            report.add(Reason.DROPPED_WITH_IMAGE, [f"annotations[{found.row}]"])
            continue
        if flag(found.entry.get("ignore")):
            name = name_in_words(image.file_name)
            report.add(Reason.IGNORE_FLAG, [f"{name}: annotations[{found.row}]"])
        yield found


def _count_repeated_ids(file: CocoFile, report: DataReport) -> None:
    seen: set[Id] = set()
    for row, entry in enumerate(file.annotations):
        key = identity(entry.get("id")) if isinstance(entry, dict) else None
        if key in seen:
            report.add(Reason.DUPLICATE_ANNOTATION_ID, [f"annotations[{row}]: id {shown(key)}"])
        elif key is not None:
            seen.add(key)


def _flatten(images: list[_Image], objects: list[CocoObject], *, masks: bool) -> RawAnnotations:
    position = {image.id: row for row, image in enumerate(images)}
    owners = np.array([position[item.image] for item in objects], np.int64)
    order = np.argsort(owners, kind="stable")
    boxes = np.array([item.xywh for item in objects], np.float64).reshape(-1, 4)
    with np.errstate(over="ignore"):  # what is infinite then has its rule
        boxes[:, 2:] += boxes[:, :2]
    ids = [as_int64(image.id) for image in images]
    return RawAnnotations(
        image_ids=np.array(ids, np.int64),
        original_ids={key: i.id for key, i in zip(ids, images, strict=True) if key != i.id},
        file_names=tuple(image.file_name for image in images),
        sizes=np.array([image.size for image in images], np.int32).reshape(-1, 2),
        owners=owners[order],
        boxes=boxes[order],
        labels=np.array([item.label for item in objects], np.int32)[order],
        is_crowd=np.array([item.is_crowd for item in objects], bool)[order],
        is_difficult=np.array([item.is_difficult for item in objects], bool)[order],
        area=np.array([item.area for item in objects], np.float64)[order],
        masks=[objects[i].entry.get("segmentation") for i in order.tolist()] if masks else None,
    )
