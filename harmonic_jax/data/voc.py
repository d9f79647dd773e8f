"""Folders in PASCAL VOC's layout: ImageSets/Main/SPLIT.txt, Annotations/*.xml, JPEGImages/*."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harmonic_jax.data.decode import SUFFIXES
from harmonic_jax.data.file_names import NamedFiles, list_files, without_folders, without_suffix
from harmonic_jax.data.folders import (
    SPLITS,
    FolderSource,
    ImageEntry,
    ObjectEntry,
    folder_name,
    folder_source,
    in_words,
    read_class_names,
    read_list,
    size_from_file,
    whole_split,
)
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.data.voc_annotation import AnnotationError, VocAnnotation, read_annotation

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
_FLAGS = ("-1", "0", "1", "+1")


class _Year(NamedTuple):
    """The files of a folder with ImageSets, Annotations and JPEGImages."""

    images: NamedFiles
    xml: NamedFiles
    annotations: dict[str, VocAnnotation | str]  # by file; a text says why a file is none


class _Line(NamedTuple):
    """A line of a list, or a file of a folder without one."""

    name: str
    files: tuple[str, ...]  # that it may mean
    is_negative: bool  # flag -1: no object of the list's class is in it


def voc_splits(root: Path) -> tuple[str, ...]:
    """The splits a folder defines; of a VOCdevkit as YEAR_SPLIT; without lists, the folders train,
    valid, .. that hold annotations. A DataError where there is none.

    The lists of one class (`cat_train.txt` beside `train.txt`, with a column of flags) are no
    splits, though `read_voc` reads them.
    """
    names = _split_names(root)
    if names == ("",):
        raise DataError(
            f"no split found under data.root={root}: it has no ImageSets/Main/SPLIT.txt, no folder "
            "VOC20xx with one, and no folder train or val with annotations; --data.eval-share 0.2 "
            "splits images and annotations (.xml) that lie anywhere in it"
        )
    return names


def _split_names(root: Path) -> tuple[str, ...]:
    lists = _all_lists(root)
    names = []
    for name, (prefix, path) in lists.items():
        words = name.removeprefix(prefix).split("_")
        is_longer = any(prefix + "_".join(words[n:]) in lists for n in range(1, len(words)))
        if not is_longer or not path or not _flags(read_list(path)):
            names.append(name)
    return tuple(names)


def read_voc(root: Path, split: str, config: DataConfig) -> FolderSource:
    """Reads one split, or several joined by "+".

    Args:
      root: a folder with `ImageSets/`, or a VOCdevkit with one such folder a year (`VOC2007`).
      split: SPLIT in the names above; in a devkit YEAR_SPLIT: "2007_trainval+2012_trainval".

    Returns:
      The source. Its classes are the lines of ROOT/labels.txt where there is one; else VOC's
      twenty where no other name occurs; else the sorted names that occur in any annotation,
      of all splits, so that training and evaluation agree. An image's id is its position in the
      list or lists, absent images included.
    """
    report = DataReport()
    lists = _find_lists(root, whole_split(_split_names(root), split, config))
    years = {prefix: _read_year(folder) for prefix, folder in _year_folders(root).items()}
    class_names = _class_names(root, years.values())
    listed = ((years[p], line) for p, path in lists for line in _read_list(path, years[p].images))
    found = list(_images(listed, report))
    return folder_source(
        f"voc:{folder_name(root)}",
        split,
        [image for image, _ in found],
        list(_objects(found, class_names, report)),
        config,
        class_names=class_names,
        category_ids=tuple(range(1, len(class_names) + 1)),
        report=report,
        one_based=True,
    )


# Folders


def _year_folders(root: Path) -> dict[str, Path]:
    """The VOC folders by split prefix: {"": root}, or {"2007_": root/VOC2007, ..}.

    Without lists, {"train": root/train, ..} where annotations are in such folders, or {"": root}.
    """
    if _list_files(root):
        return {"": root}
    years = [path for path in sorted(root.glob("VOC*")) if _list_files(path)]
    if years:
        return {path.name.removeprefix("VOC") + "_": path for path in years}
    plain = {name: root / name for name in SPLITS if NamedFiles(root / name, (".xml",)).files}
    return plain or {"": root}


def _read_year(folder: Path) -> _Year:
    """The files of a folder, and every annotation in it, whichever split its image is in."""
    places = [folder / name for name in ("Annotations", "JPEGImages")]
    place, image_place = (place if place.is_dir() else folder for place in places)
    xml, images = NamedFiles(place, (".xml",)), NamedFiles(image_place, SUFFIXES)
    if not xml.files:
        raise DataError(f"{xml.folder} holds no .xml files")
    annotations: dict[str, VocAnnotation | str] = {}
    for file in xml.files:
        if _may_be_meant(file, xml, images):
            try:
                annotations[file] = read_annotation(xml.folder / file)
            except AnnotationError as error:
                annotations[file] = str(error)
    return _Year(images, xml, annotations)


def _may_be_meant(file: str, xml: NamedFiles, images: NamedFiles) -> bool:
    """Not where it is in a sub-folder with no such image, and there is one of its name above."""
    stem = without_suffix(file)
    return "/" not in stem or bool(images.of_path(stem)) or not xml.of_path(without_folders(stem))


def _class_names(root: Path, years: Iterable[_Year]) -> tuple[str, ...]:
    read = [annotation for year in years for annotation in year.annotations.values()]
    known = [annotation for annotation in read if isinstance(annotation, VocAnnotation)]
    found = {item.class_name for annotation in known for item in annotation.objects} - {""}
    path = root / "labels.txt"
    if path.is_file():
        names = read_class_names(path)
        if found.isdisjoint(names) and found:
            others = sorted(found)[:5]
            raise DataError(f"{path}: no object is of its classes, {names[:5]}, but of {others}")
        return names
    if not found:
        bad = "".join(f"; a file {reason}" for reason in read if isinstance(reason, str))
        raise DataError(
            f"no object with a name in any annotation under data.root={root}{bad[:200]}"
        )
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


# Lists


def _all_lists(root: Path) -> dict[str, tuple[str, Path | None]]:
    """The prefix of the year and the file of each list, by PREFIX + NAME; None: all images."""
    lists: dict[str, tuple[str, Path | None]] = {}
    for prefix, folder in _year_folders(root).items():
        files: Sequence[Path | None] = _list_files(folder) or [None]
        for path in files:
            lists[prefix + (path.stem if path else "")] = (prefix, path)
    return dict(sorted(lists.items()))


def _list_files(folder: Path) -> Sequence[Path]:
    main = folder / "ImageSets" / "Main"
    return [main / file for file in list_files(main, depth=0) if file.lower().endswith(".txt")]


def _find_lists(root: Path, split: str) -> list[tuple[str, Path | None]]:
    """The lists that a split joins."""
    lists = _all_lists(root)
    # A list's own name may have a + or spaces in it.
    parts = [split] if split in lists else [part.strip() for part in split.split("+")]
    for part in parts:
        if part not in lists:
            legal = in_words(voc_splits(root))
            raise DataError(f"no split {part!r} under data.root={root}: {legal}")
    return [lists[part] for part in parts]


def _read_list(path: Path | None, images: NamedFiles) -> Iterator[_Line]:
    """The lines of a list; all images where there is none.

    A line is a name; it may be quoted, have a suffix, and be a path on another machine. In the
    lists of one class, where every line ends in a flag of -1, 0 or 1, the name is what comes before
    it; unless a line as a whole names an image: then no line has a flag.
    """
    if path is None:
        yield from (_Line(file, (file,), False) for file in images.files)
        return
    named = read_list(path)
    found = [images.find(name) for name in named]
    flags = _flags(named)
    if flags and not any(found):
        for name, flag in flags:
            yield _Line(name, images.find(name), flag == "-1")
    else:
        for name, files in zip(named, found, strict=True):
            yield _Line(name, files, False)


def _flags(named: Iterable[str]) -> list[tuple[str, str]]:
    """Name and flag of each line; nothing where not every line has a flag."""
    columns = [line.rsplit(None, 1) for line in named]
    if not all(len(found) == 2 and found[1] in _FLAGS for found in columns):
        return []
    return [(name, flag) for name, flag in columns]


# Images and their objects


def _images(
    listed: Iterable[tuple[_Year, _Line]], report: DataReport
) -> Iterator[tuple[ImageEntry, VocAnnotation]]:
    """The usable images of the lists, in their order."""
    seen: set[Path] = set()
    for position, (year, line) in enumerate(listed):
        if line.is_negative:
            report.add(Reason.NEGATIVE_IMAGE, [line.name])
            continue
        if len(line.files) != 1:
            report.add(Reason.MISSING_IMAGE, year.images.problem(line.name, line.files), count=1)
            continue
        (file,) = line.files
        path = year.images.folder / file
        if path in seen:
            report.add(Reason.DUPLICATE_IMAGE, [f"{line.name}: {file} again"])
        elif annotation := _annotation(year, file, report):
            size = annotation.size or size_from_file(path, f"{file}: {annotation.stated}", report)
            if size:
                yield ImageEntry(position, file, size, path), annotation
        seen.add(path)


def _annotation(year: _Year, file: str, report: DataReport) -> VocAnnotation | None:
    """That of the image's own path, a.xml or a.jpg.xml; else the only one of its name, where it is
    the only image."""
    stem = without_suffix(file)
    name = without_folders(stem)
    found = year.xml.of_path(stem) or year.xml.of_path(file)
    if not found and len(set(map(without_suffix, year.images.of_name(name)))) == 1:
        found = year.xml.of_path(name) or year.xml.of_name(name)
    if not found:
        report.add(Reason.MISSING_ANNOTATION, map(year.xml.absence, [f"{stem}.xml"]), count=1)
    elif len(found) > 1:
        report.add(Reason.UNREADABLE_ANNOTATION, [f"{file}: has several, {', '.join(found)}"])
    elif isinstance(annotation := year.annotations[found[0]], str):
        report.add(Reason.UNREADABLE_ANNOTATION, [f"{found[0]}: {annotation}"])
    else:
        return annotation
    return None


def _objects(
    found: Sequence[tuple[ImageEntry, VocAnnotation]],
    class_names: tuple[str, ...],
    report: DataReport,
) -> Iterator[ObjectEntry]:
    labels = {name: label for label, name in enumerate(class_names)}
    for place, (image, annotation) in enumerate(found):
        for item in annotation.objects:
            if item.class_name and item.class_name not in labels:
                report.add(Reason.UNKNOWN_CLASS, [f"{image.file_name}: {item.class_name!r}"])
            elif item.fault:
                what = f"{image.file_name}: {item.class_name or 'object'}: {item.fault}"
                report.add(Reason.MALFORMED_OBJECT, [what])
            else:
                label = labels[item.class_name]
                yield ObjectEntry(place, item.corners, label, is_difficult=item.is_difficult)
