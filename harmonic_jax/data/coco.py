"""Folders in COCO's layout: ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/*.jpg; LVIS's."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.coco_format.files import (
    CocoFile,
    EntryFault,
    FaultKind,
    federation_of,
    images_of,
    objects_of,
    read_coco_file,
)
from harmonic_jax.coco_format.values import Id, class_id, flag, identity, problem, side, text
from harmonic_jax.data.file_names import NamedFiles, is_hidden, list_files, name_in_words
from harmonic_jax.data.folders import (
    FolderSource,
    ImageEntry,
    ObjectEntry,
    folder_name,
    folder_source,
    in_words,
    size_from_file,
    whole_split,
)
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.json_file import JsonFileError, shown

_ROBOFLOW = "_annotations.coco.json"


def coco_splits(root: Path) -> tuple[str, ...]:
    """The splits a folder has annotations for, by name; a DataError where there is none."""
    splits = tuple(sorted(_annotation_files(root)))
    if not splits:
        raise DataError(
            f"no split found under data.root={root}: it has no annotations/instances_SPLIT.json, "
            f"and no SPLIT/{_ROBOFLOW}"
        )
    return splits


def read_coco(root: Path, split: str, config: DataConfig) -> FolderSource:
    """Reads one split; classes are the file's categories in the order of their ids.

    Masks are polygons, or run lengths of either kind.

    Args:
      root: the folder with `annotations/`.
      split: SPLIT in the names above, the folder of Roboflow's SPLIT/_annotations.coco.json, or
        LVIS's lvis_v1_val of annotations/lvis_v1_val.json.
        The images lie in one of ROOT/SPLIT, ROOT/images/SPLIT, ROOT/SPLIT/images, ROOT/images and
        ROOT, or sub-folders of it: that in which most of them are found.
    """
    whole = whole_split(tuple(_annotation_files(root)), split, config)
    path = _annotation_files(root).get(whole)
    if path is None:
        expected, legal = root / "annotations" / f"instances_{whole}.json", coco_splits(root)
        raise DataError(
            f"{expected} does not exist; splits under data.root={root}: {in_words(legal)}"
        )
    report = DataReport()
    try:
        file = read_coco_file(path, segmentations=config.masks)
        federation = federation_of(file, images_of(file, lambda fault: None))
    except JsonFileError as error:
        raise DataError(str(error)) from error
    if file.same_names:
        report.add(Reason.SAME_CLASS_NAME, file.same_names)
    _count_repeated_ids(file, report)
    images = _images(file, root, whole, report)
    usable = [image for image in images.values() if image]
    return folder_source(
        f"coco:{folder_name(root)}",
        split,
        usable,
        list(_objects(file, images, report)),
        config,
        class_names=file.class_names,
        category_ids=file.category_ids,
        report=report,
        federation=federation,
    )


def _annotation_files(root: Path) -> dict[str, Path]:
    """The annotation files by split: in COCO's or LVIS's layout, or of Roboflow's exports."""
    folder = root / "annotations"
    found = {
        name.removeprefix("instances_").removesuffix(".json"): folder / name
        for name in list_files(folder, depth=0)
        if name.startswith(("instances_", "lvis_")) and name.endswith(".json")
    }
    for path in root.glob(f"*/{_ROBOFLOW}"):
        if path.is_file() and not is_hidden(path.parent.name):
            found.setdefault(path.parent.name, path)
    return found


def _count_repeated_ids(file: CocoFile, report: DataReport) -> None:
    seen: set[Id] = set()
    for row, entry in enumerate(file.annotations):
        key = identity(entry.get("id")) if isinstance(entry, dict) else None
        if key in seen:
            report.add(Reason.DUPLICATE_ANNOTATION_ID, [f"annotations[{row}]: id {shown(key)}"])
        elif key is not None:
            seen.add(key)


def _images(
    file: CocoFile, root: Path, split: str, report: DataReport
) -> dict[Id, ImageEntry | None]:
    """The images by id; None for those that were dropped, whose objects go with them."""

    def on_fault(fault: EntryFault) -> None:
        name = fault.entry.get("file_name") if isinstance(fault.entry, dict) else None
        where = name_in_words(name) if isinstance(name, str) else fault.where
        report.add(Reason[fault.kind.name], [f"{where}: {fault.message}"])

    entries = images_of(file, on_fault)
    names = [name for entry in entries.values() if isinstance(name := entry.get("file_name"), str)]
    files = _image_files(root, split, names)
    return {key: _image(key, entry, files, report) for key, entry in entries.items()}


def _image_files(root: Path, split: str, names: Sequence[str]) -> NamedFiles:
    """The folder in which most of the names are found, of equals the first; the root for none."""
    folders = [
        root / inner for inner in (split, f"images/{split}", f"{split}/images", "images", "")
    ]
    tried = []
    for files in map(NamedFiles, folders):
        tried.append((sum(bool(files.find(name)) for name in names), files))
        if tried[-1][0] == len(names):
            break
    number, files = max(tried, key=lambda item: item[0])
    return files if number else tried[-1][1]


def _image(
    key: Id, entry: dict[str, Any], files: NamedFiles, report: DataReport
) -> ImageEntry | None:
    name = entry.get("file_name")
    if not isinstance(name, str):
        told = f"id {shown(key)}: {problem(entry, 'file_name', text)}"
        report.add(Reason.MALFORMED_IMAGE, [told])
        return None
    found = files.find(name)
    if not found:
        report.add(Reason.MISSING_IMAGE, map(files.absence, [name]), count=1)
        return None
    path = files.folder / found[0]
    height, width = side(entry.get("height")), side(entry.get("width"))
    if height and width:
        return ImageEntry(key, name, (height, width), path)
    stated = ", ".join(f"{field} {shown(entry.get(field))}" for field in ("height", "width"))
    size = size_from_file(path, f"{name_in_words(name)}: {stated}", report)
    return ImageEntry(key, name, size, path) if size else None


def _objects(
    file: CocoFile, images: Mapping[Id, ImageEntry | None], report: DataReport
) -> Iterator[ObjectEntry]:
    """The objects of the images that were not dropped."""

    def on_fault(fault: EntryFault) -> None:
        key = identity(fault.entry.get("image_id")) if isinstance(fault.entry, dict) else None
        image = None if key is None else images.get(key)
        if fault.kind is FaultKind.UNKNOWN_CLASS:
            report.unknown_ids.add(class_id(fault.entry.get("category_id")))
        if image is not None:
            report.add(Reason[fault.kind.name], [f"{name_in_words(image.file_name)}: {fault}"])
        elif key not in images:
            report.add(Reason[fault.kind.name], [str(fault)])
        elif fault.kind is not FaultKind.AREA_FROM_BOX:
            report.add(Reason.DROPPED_WITH_IMAGE, [fault.where])

    places = {key: place for place, key in enumerate(k for k, image in images.items() if image)}
    for found in objects_of(file, images, on_fault):
        image = images[found.image]
        if image is None:
            report.add(Reason.DROPPED_WITH_IMAGE, [f"annotations[{found.row}]"])
            continue
        if flag(found.entry.get("ignore")) and not found.is_difficult:
            told = f"{name_in_words(image.file_name)}: annotations[{found.row}]"
            report.add(Reason.IGNORE_FLAG, [told])
        x, y, width, height = found.xywh
        yield ObjectEntry(
            image=places[found.image],
            corners=(x, y, x + width, y + height),
            label=found.label,
            is_crowd=found.is_crowd,
            is_difficult=found.is_difficult,
            area=found.area,
            segmentation=found.entry.get("segmentation"),
        )
