"""Folders in PASCAL VOC's layout: ImageSets/Main/SPLIT.txt, Annotations/*.xml, JPEGImages/*."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harmonic_jax.data.class_names import read_class_names
from harmonic_jax.data.decode import SUFFIXES
from harmonic_jax.data.folders import (
    FolderSource,
    Listing,
    folder_name,
    header_size,
    list_folder,
)
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.rules import RawAnnotations, apply_rules
from harmonic_jax.data.voc_annotation import (
    AnnotationError,
    VocAnnotation,
    VocObject,
    read_annotation,
)
from harmonic_jax.data.voc_lists import Listed, NamedFiles, list_paths, read_list, split_names

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


class _Year(NamedTuple):
    """The files of a folder with ImageSets, Annotations and JPEGImages."""

    folder: Path
    images: NamedFiles
    xml: NamedFiles
    annotations: dict[str, VocAnnotation | str]
    """By file; a text says why a file is none."""


class _Image(NamedTuple):
    path: Path
    file_name: str
    position: int
    size: tuple[int, int]
    objects: tuple[VocObject, ...]


def voc_splits(root: Path) -> tuple[str, ...]:
    """The splits a folder defines; of a VOCdevkit as YEAR_SPLIT.

    The lists of one class (`cat_train.txt` beside `train.txt`, with a column of flags) are no
    splits, though `read_voc` reads them.

    Raises:
      DataError: there is none.
      OSError: a folder may not be read.
    """
    folders = _years(root).items()
    names = tuple(prefix + name for prefix, folder in folders for name in split_names(folder))
    if not names:
        raise DataError(f"no split found under data.root={root}: ImageSets/Main holds no .txt file")
    return names


def read_voc(root: Path, split: str, *, max_objects: int) -> FolderSource:
    """Reads one split, or several joined by "+".

    Args:
      root: a folder with `ImageSets/`, or a VOCdevkit with one such folder a year (`VOC2007`).
      split: SPLIT in the names above; in a devkit YEAR_SPLIT: "2007_trainval+2012_trainval".
      max_objects: of more objects in an image, the surplus is counted.

    Returns:
      The source. Its classes are the lines of ROOT/labels.txt where there is one; else VOC's
      twenty where no other name occurs; else the sorted names that occur in any annotation,
      of all splits, so that training and evaluation agree. An image's id is its position in the
      list or lists, absent images included.

    Raises:
      DataError: if a split or its folders are absent.
      OSError: if one of them may not be read.
    """
    report = DataReport()
    folders = _years(root)
    parts = _find_lists(root, folders, split)
    years = {prefix: _read_year(folder) for prefix, folder in folders.items()}
    class_names = _class_names(root, years.values())
    listed = ((years[p], line) for p, path in parts for line in read_list(path, years[p].images))
    images = list(_images(listed, report))
    raw = _flatten(images, class_names, report)
    return FolderSource(
        name=f"voc:{folder_name(root)}:{split}",
        class_names=class_names,
        category_ids=tuple(range(1, len(class_names) + 1)),
        records=apply_rules(raw, class_names=class_names, max_objects=max_objects, report=report),
        paths=tuple(str(image.path) for image in images),
        report=report,
    )


def _years(root: Path) -> dict[str, Path]:
    """The VOC folders by split prefix: {"": root}, or {"2007_": root/VOC2007, ..}."""
    if (root / "ImageSets" / "Main").is_dir():
        return {"": root}
    found = sorted(path for path in root.glob("VOC*") if (path / "ImageSets" / "Main").is_dir())
    if found:
        return {path.name.removeprefix("VOC") + "_": path for path in found}
    around = [root.parent, *root.glob("*"), *root.glob("*/*")]
    near = [str(path) for path in around if (path / "ImageSets" / "Main").is_dir()][:3]
    told = f"; there is one in {', '.join(near)}" if near else f": {_folders_in(root)}"
    if (root / "ImageSets").is_dir() and not near:
        told += f"; in ImageSets, {_folders_in(root / 'ImageSets')}"
    if any((root / "annotations").glob("*.json")):
        told += "; the files in annotations/ are of COCO's layout (coco)"
    raise DataError(
        f"data.root={root} has no ImageSets/Main (SPLIT.txt, the names of JPEGImages/NAME.jpg and "
        f"Annotations/NAME.xml), and no VOC20xx folder with one{told}"
    )


def _folders_in(folder: Path) -> str:
    names = [name for name in list_folder(folder, depth=0).others if (folder / name).is_dir()]
    return f"its folders are {', '.join(map(repr, names[:8]))}" if names else "it has no folders"


def _find_lists(root: Path, folders: dict[str, Path], split: str) -> list[tuple[str, Path]]:
    """The prefix of the year and the list, of each split that is joined."""
    lists = {
        prefix + name: (prefix, path)
        for prefix, folder in folders.items()
        for name, path in list_paths(folder).items()
    }
    # A list's own name may have a + or spaces in it.
    parts = [split] if split in lists else [part.strip() for part in split.split("+")]
    for part in parts:
        if part not in lists:
            legal = ", ".join(voc_splits(root))
            raise DataError(f"no split {part!r} under data.root={root}: {legal}")
    return [lists[part] for part in parts]


def _read_year(folder: Path) -> _Year:
    """The files of a folder, and every annotation in it, whichever split its image is in."""
    found = {name: list_folder(folder / name) for name in ("Annotations", "JPEGImages")}
    beside = _kinds(found["JPEGImages"])[".xml"]
    hint = f"; JPEGImages holds {beside} .xml, which belong in Annotations" if beside else ""
    for name in found:
        if not (folder / name).is_dir():
            raise DataError(f"{folder} has no folder {name}: {_folders_in(folder)}{hint}")
    xml = NamedFiles(found["Annotations"], (".xml",))
    if not xml.files:
        kinds = _kinds(found["Annotations"]).most_common(3)
        holds = ", ".join(f"{count} {kind}" for kind, count in kinds) or "it is empty"
        raise DataError(f"{xml.folder} holds no .xml files: {holds}{hint}")
    images = NamedFiles(found["JPEGImages"], SUFFIXES)
    used = (file for file in xml.files if _may_be_meant(file, xml, images))
    return _Year(folder, images, xml, {file: _read(xml.folder / file) for file in used})


def _kinds(listing: Listing) -> Counter[str]:
    """How many files have which suffix."""
    return Counter(Path(file).suffix.lower() or "without a suffix" for file in listing.files)


def _may_be_meant(file: str, xml: NamedFiles, images: NamedFiles) -> bool:
    """Not where it is in a sub-folder with no such image, and there is one of its name above."""
    stem = file.rpartition(".")[0]
    return "/" not in stem or bool(images.of_path(stem)) or not xml.of_path(_base(stem))


def _read(path: Path) -> VocAnnotation | str:
    try:
        return read_annotation(path)
    except AnnotationError as error:
        return str(error)


def _class_names(root: Path, years: Iterable[_Year]) -> tuple[str, ...]:
    read = [item for year in years for item in year.annotations.items()]
    known = (annotation for _, annotation in read if isinstance(annotation, VocAnnotation))
    found = {item.class_name for annotation in known for item in annotation.objects} - {""}
    path = root / "labels.txt"
    if path.is_file():
        names = read_class_names(path)
        if found.isdisjoint(names) and found:
            raise DataError(
                f"{path} has a class name a line, {_few(names)}, of which no object is; the "
                f"objects are {_few(sorted(found))}"
            )
        return names
    if not found:
        bad = [f"{file}: {reason}" for file, reason in read if isinstance(reason, str)]
        told = f"; {len(bad)} of {len(read)} cannot be read, such as {bad[0]}" if bad else ""
        raise DataError(f"no object with a name in any annotation under data.root={root}{told}")
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", .." if len(names) > 5 else "")


def _images(listed: Iterable[tuple[_Year, Listed]], report: DataReport) -> Iterator[_Image]:
    """The usable images of the lists, in their order."""
    seen: set[Path] = set()
    for position, (year, line) in enumerate(listed):
        if line.is_negative:
            report.add(Reason.NEGATIVE_IMAGE, [line.name])
            continue
        if len(line.files) != 1:
            report.add(Reason.MISSING_IMAGE, _missing(year.images, line), count=1)
            continue
        (file,) = line.files
        path = year.images.folder / file
        if path in seen:
            report.add(Reason.DUPLICATE_IMAGE, [f"{line.name}: {file} again"])
        elif annotation := _annotation(year, file, report):
            size = annotation.size or _size_from_file(path, file, annotation, report)
            if size:
                yield _Image(path, file, position, size, annotation.objects)
        seen.add(path)


def _missing(images: NamedFiles, line: Listed) -> Iterator[str]:
    """Why a line gives no image; looked for only where it is shown."""
    if line.files:
        meant = ", ".join(map(repr, line.files[:3]))
        yield f"{line.name}: may mean {len(line.files)} files of {images.folder}: {meant}"
    else:
        near = images.nearby(line.name) or images.nearby(line.name.split()[0])
        yield f"{line.name}: not in {images.folder}{near}"


def _annotation(year: _Year, file: str, report: DataReport) -> VocAnnotation | None:
    """That of the image's own path, a.xml or a.jpg.xml; else the only one of its name, where it is
    the only image."""
    stem = file.rpartition(".")[0]
    found = year.xml.of_path(stem) or year.xml.of_path(file)
    if not found and len({x.rpartition(".")[0] for x in year.images.of_name(_base(stem))}) == 1:
        found = year.xml.of_path(_base(stem)) or year.xml.of_name(_base(stem))
    if not found:
        report.add(Reason.MISSING_ANNOTATION, _unannotated(year.xml, file, stem), count=1)
        return None
    if len(found) > 1:
        report.add(Reason.UNREADABLE_ANNOTATION, [f"{file}: has several, {', '.join(found)}"])
        return None
    annotation = year.annotations[found[0]]
    if isinstance(annotation, str):
        report.add(Reason.UNREADABLE_ANNOTATION, [f"{found[0]}: {annotation}"])
        return None
    return annotation


def _base(stem: str) -> str:
    return stem.rpartition("/")[2]


def _unannotated(xml: NamedFiles, file: str, stem: str) -> Iterator[str]:
    yield f"{file}: no {stem}.xml in {xml.folder}{xml.nearby(stem)}"


def _size_from_file(
    path: Path, file: str, annotation: VocAnnotation, report: DataReport
) -> tuple[int, int] | None:
    size = header_size(path)
    reason = Reason.SIZE_FROM_FILE if size else Reason.UNREADABLE_HEADER
    report.add(reason, [f"{file}: {annotation.stated}"])
    return size


def _flatten(
    images: list[_Image], class_names: tuple[str, ...], report: DataReport
) -> RawAnnotations:
    labels = {name: label for label, name in enumerate(class_names)}
    owners, boxes, classes, is_difficult = [], [], [], []
    for owner, image in enumerate(images):
        for item in image.objects:
            if item.class_name and item.class_name not in labels:
                report.add(Reason.UNKNOWN_CLASS, [f"{image.file_name}: {item.class_name!r}"])
            elif item.fault:
                what = f"{image.file_name}: {item.class_name or 'object'}: {item.fault}"
                report.add(Reason.MALFORMED_OBJECT, [what])
            else:
                owners.append(owner)
                boxes.append(item.corners)
                classes.append(labels[item.class_name])
                is_difficult.append(item.is_difficult)
    return RawAnnotations(
        image_ids=np.array([image.position for image in images], np.int64),
        file_names=tuple(image.file_name for image in images),
        sizes=np.array([image.size for image in images], np.int32).reshape(-1, 2),
        owners=np.array(owners, np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(classes, np.int32),
        is_crowd=np.zeros(len(owners), bool),
        is_difficult=np.array(is_difficult, bool),
        area=np.full(len(owners), np.nan),
        one_based=True,
    )
