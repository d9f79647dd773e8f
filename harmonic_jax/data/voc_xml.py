"""Folders in PASCAL VOC's layout: ImageSets/Main/SPLIT.txt, Annotations/*.xml, JPEGImages/*."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harmonic_jax.data.folders import FolderSource, files_in, header_size, is_inside
from harmonic_jax.data.reasons import Reason
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.rules import RawAnnotations, apply_rules

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".JPEG", ".png", ".PNG", ".bmp", ".webp")


class _Object(NamedTuple):
    class_name: str
    corners: tuple[float, float, float, float] | None
    is_difficult: bool


class _Annotation(NamedTuple):
    size: tuple[int, int] | None
    objects: tuple[_Object, ...]


class _Image(NamedTuple):
    path: Path
    position: int
    size: tuple[int, int]
    objects: tuple[_Object, ...]


def voc_splits(root: Path) -> tuple[str, ...]:
    """The splits a folder defines; of a VOCdevkit as YEAR_SPLIT.

    The lists of one class (`cat_train.txt`, two columns) are no splits.
    """
    splits = []
    for prefix, folder in _years(root).items():
        for path in sorted((folder / "ImageSets" / "Main").glob("*.txt")):
            if all(len(line.split()) == 1 for line in _lines(path)):
                splits.append(prefix + path.stem)
    return tuple(splits)


def read_voc(root: Path, split: str, *, max_objects: int) -> FolderSource:
    """Reads one split, or several joined by "+".

    Args:
      root: a folder with `ImageSets/`, or a VOCdevkit with one such folder a year (`VOC2007`).
      split: SPLIT in the names above; in a devkit YEAR_SPLIT: "2007_trainval+2012_trainval".
      max_objects: of more objects in an image, the surplus is counted.

    Returns:
      The source. Its classes are the lines of ROOT/labels.txt where there is one; else VOC's
      twenty where no other name occurs; else the sorted names that occur in any annotation,
      of all splits, so that training and evaluation agree.

    Raises:
      DataError: if a split or its folders are absent.
    """
    report = DataReport()
    folders = _years(root)
    annotations = {year: _read_annotations(folder) for year, folder in folders.items()}
    class_names = _class_names(root, [a for year in annotations.values() for a in year.values()])
    images: list[_Image] = []
    for part in split.split("+"):
        year, names = _read_split(root, folders, part.strip())
        images += _images(folders[year], names, annotations[year], len(images), report)
    raw = _flatten(images, class_names, report)
    return FolderSource(
        name=f"voc:{root.name}:{split}",
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
    if not found:
        raise DataError(f"data.root={root} has no ImageSets/Main, and no VOC20xx folder with one")
    return {path.name.removeprefix("VOC") + "_": path for path in found}


def _read_split(root: Path, folders: dict[str, Path], part: str) -> tuple[str, list[str]]:
    """The prefix of the year and the image names of one split."""
    year = next((prefix for prefix in folders if prefix and part.startswith(prefix)), "")
    name = part.removeprefix(year)
    if year not in folders or not is_inside(name) or "/" in name:
        raise DataError(f"no split {part!r} under data.root={root}: {', '.join(voc_splits(root))}")
    path = folders[year] / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        raise DataError(f"{path} does not exist; splits: {', '.join(voc_splits(root))}")
    return year, [line.split()[0] for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    """The lines of a text file that say something."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _class_names(root: Path, annotations: Sequence[_Annotation | None]) -> tuple[str, ...]:
    path = root / "labels.txt"
    if path.is_file():
        names = tuple(_lines(path))
        if not names or len(set(names)) != len(names):
            raise DataError(f"{path} must hold one class name a line, each once")
        return names
    found = {item.class_name for known in annotations if known for item in known.objects}
    if not found:
        raise DataError(f"no object in any annotation under data.root={root}")
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _images(
    folder: Path,
    names: Sequence[str],
    annotations: dict[str, _Annotation | None],
    start: int,
    report: DataReport,
) -> Iterator[_Image]:
    """The usable images of a list; `start` is the position of its first one in the split."""
    paths = _image_paths(folder / "JPEGImages")
    seen: set[str] = set()
    for position, name in enumerate(names, start):
        if name in seen:
            report.add(Reason.DUPLICATE_IMAGE, [name])
        elif name not in paths:
            report.add(Reason.MISSING_IMAGE, [f"{folder.name}/JPEGImages/{name}.jpg"])
        elif name not in annotations:
            report.add(Reason.MISSING_ANNOTATION, [f"{folder.name}/Annotations/{name}.xml"])
        elif (annotation := annotations[name]) is None:
            report.add(Reason.UNREADABLE_ANNOTATION, [f"{folder.name}/Annotations/{name}.xml"])
        elif size := annotation.size or _size_from_file(paths[name], report):
            yield _Image(paths[name], position, size, annotation.objects)
        seen.add(name)


def _image_paths(folder: Path) -> dict[str, Path]:
    """The image files of a folder by name without suffix."""
    found: dict[str, Path] = {}
    for name in sorted(files_in(folder), key=lambda name: (Path(name).suffix != ".jpg", name)):
        path = folder / name
        if path.suffix in IMAGE_SUFFIXES:
            found.setdefault(path.stem, path)
    return found


def _size_from_file(path: Path, report: DataReport) -> tuple[int, int] | None:
    size = header_size(path)
    report.add(Reason.SIZE_FROM_FILE if size else Reason.UNREADABLE_HEADER, [path.name])
    return size


def _flatten(
    images: list[_Image], class_names: tuple[str, ...], report: DataReport
) -> RawAnnotations:
    labels = {name: label for label, name in enumerate(class_names)}
    owners, boxes, classes, is_difficult = [], [], [], []
    for owner, image in enumerate(images):
        for item in image.objects:
            if item.class_name not in labels:
                report.add(Reason.UNKNOWN_CLASS, [f"{image.path.name}: {item.class_name!r}"])
            elif item.corners is None:
                report.add(Reason.MALFORMED_OBJECT, [f"{image.path.name}: {item.class_name}"])
            else:
                owners.append(owner)
                boxes.append(item.corners)
                classes.append(labels[item.class_name])
                is_difficult.append(item.is_difficult)
    return RawAnnotations(
        image_ids=np.array([image.position for image in images], np.int64),
        file_names=tuple(image.path.name for image in images),
        sizes=np.array([image.size for image in images], np.int32).reshape(-1, 2),
        owners=np.array(owners, np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(classes, np.int32),
        is_crowd=np.zeros(len(owners), bool),
        is_difficult=np.array(is_difficult, bool),
        area=np.full(len(owners), np.nan),
        one_based=True,
    )


class _RefuseDoctype(ET.TreeBuilder):
    """VOC files declare no document type, and only one can define entities that grow or read files.

    Python's parser fetches no external entity by itself; refusing the declaration also rules out
    internal ones that expand without end.
    """

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ET.ParseError(f"document type {name!r} declared")


def _read_annotations(folder: Path) -> dict[str, _Annotation | None]:
    """Every annotation of a folder by image name; None for a file that is not such XML."""
    directory = folder / "Annotations"
    names = sorted(name for name in files_in(directory) if name.endswith(".xml"))
    if not names:
        raise DataError(f"{directory} holds no .xml files")
    return {name.removesuffix(".xml"): _read_annotation(directory / name) for name in names}


def _read_annotation(path: Path) -> _Annotation | None:
    try:
        root = ET.fromstring(path.read_bytes(), ET.XMLParser(target=_RefuseDoctype()))
    except (ET.ParseError, OSError, ValueError, LookupError):
        return None
    height, width = (_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    is_known = all(math.isfinite(side) and side >= 1 for side in (height, width))
    return _Annotation(
        size=(int(height), int(width)) if is_known else None,
        objects=tuple(map(_object, root.findall("object"))),
    )


def _object(element: ET.Element) -> _Object:
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = map(_number, texts)
    return _Object(
        class_name=(element.findtext("name") or "").strip(),
        corners=None if None in texts else (x1, y1, x2, y2),
        is_difficult=(element.findtext("difficult") or "").strip() == "1",
    )


def _number(text: str | None) -> float:
    """The number written; NaN, which no rule lets through, for anything else."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
