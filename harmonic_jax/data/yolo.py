"""Folders with YOLO's text labels: data.yaml, images/**/NAME.jpg and labels/**/NAME.txt."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from harmonic_jax.coco_format.values import FieldError, class_name, read_field
from harmonic_jax.data.decode import SUFFIXES
from harmonic_jax.data.file_names import NamedFiles, list_files, suffix_of
from harmonic_jax.data.folders import (
    SPLITS,
    FolderSource,
    ImageEntry,
    ObjectEntry,
    folder_name,
    folder_source,
    header_size,
    in_words,
    read_class_names,
    read_list,
    whole_split,
)
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.files import read_lines

OTHER_KEYS = ("path", "names", "nc", "kpt_shape", "flip_idx", "download")
"""Of a data.yaml, those that are no splits."""
_Rows = list[tuple[str, list[str]]]  # of a label file: where each one is, and its columns


class _DataFile(NamedTuple):
    """What a data.yaml states."""

    path: Path
    base: Path  # that paths start from
    names: dict[int, str]  # by class id, ids rising
    splits: dict[str, list[str]]  # their folders and lists of images, as written
    has_keypoints: bool = False  # behind the box of each row


def yolo_splits(root: Path) -> tuple[str, ...]:
    """The splits that data.yaml names; a DataError says why there is none."""
    return tuple(_read_data_file(root).splits)


def read_yolo(root: Path, split: str, config: DataConfig) -> FolderSource:
    """Reads one split. Masks are polygons.

    Args:
      root: the folder with `data.yaml`, or that file; without one, the folder with `classes.txt`.
      split: a key of data.yaml, `train`, `val`, `test`.

    Returns:
      The source. Boxes are fractions of the image as a viewer shows it, EXIF's orientation applied.
      Classes are those of data.yaml in the order of their ids, which are the category ids. An
      image's id is its position in the split.
    """
    file, report = _read_data_file(root), DataReport()
    whole = whole_split(tuple(file.splits), split, config)
    if whole not in file.splits:
        raise DataError(f"no split {split!r} in {file.path}: {in_words(file.splits)}")
    found = list(_images(_image_paths(file, whole, report), file, report))
    return folder_source(
        f"yolo:{folder_name(file.path.parent)}",
        split,
        [image for image, _ in found],
        list(_objects(found, file, report)),
        config,
        class_names=tuple(file.names.values()),
        category_ids=tuple(file.names),
        report=report,
        upright=True,
    )


# data.yaml


def _read_data_file(root: Path) -> _DataFile:
    path = (root if root.is_file() else _find_data_file(root)).absolute()
    base = path.parent
    if path.name == "classes.txt":
        names = dict(enumerate(read_class_names(path)))
        return _DataFile(path, base, names, {"train": ["images" * (base / "images").is_dir()]})
    content = _read_yaml(path)
    try:
        names = read_field(content, "names", _names)
        splits = {name: read_field(content, name, _places) for name in SPLITS if content.get(name)}
        splits |= {
            key: [place]
            for key, place in content.items()
            if isinstance(key, str)
            and isinstance(place, str)
            and key not in (*SPLITS, *OTHER_KEYS)
            and place.startswith("images/")
        }
    except FieldError as error:
        raise DataError(f"{path}: {error}") from error
    stated = base / str(content.get("path") or "")
    base = stated if stated.is_dir() else base
    return _DataFile(path, base, names, splits, "kpt_shape" in content)


def _find_data_file(root: Path) -> Path:
    files = list_files(root, depth=0)
    found = [file for file in files if suffix_of(file) in (".yaml", ".yml")]
    found = [file for file in found if file in ("data.yaml", "data.yml")] or found
    found = found or [file for file in files if file == "classes.txt"]
    if len(found) != 1:
        has = ", ".join(map(repr, found)) or "neither that nor classes.txt"
        raise DataError(f"data.root={root} must be a folder with one data.yaml; it has {has}")
    return root / found[0]


def _read_yaml(path: Path) -> Any:
    try:
        text = "\n".join(read_lines(path))
        _refuse_repeats(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        told = getattr(error, "problem", None) or " ".join(str(error).split())
        where = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{where} cannot be read as YAML: {told}") from error


def _refuse_repeats(root: yaml.Node | None) -> None:
    """Of a key that is twice in a map the last would count, without a word."""
    waiting, met = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in met:  # an alias: a few of them can stand for a billion nodes
            continue
        met.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        keys: set[str] = set()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                told = f"{key.value!r} is there twice in one map"
                raise yaml.MarkedYAMLError(problem=told, problem_mark=key.start_mark)
            keys.add(str(key.value))
            waiting.append(value)


def _places(value: Any) -> list[str] | None:
    """a folder of images, a .txt file of their paths, or a list of these"""
    places = value if isinstance(value, list) else [value]
    is_text = all(isinstance(place, str) for place in places)
    return [place.replace("\\", "/") for place in places] if is_text else None


def _names(value: Any) -> dict[int, str] | None:
    """a list of class names or a map from class ids to them, none twice (yes and no in quotes)"""
    items = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(items, dict) or not all(re.fullmatch("[0-9]{1,9}", str(k)) for k in items):
        return None
    texts = {int(k): str(v) if type(v) in (int, float) else v for k, v in items.items()}
    names = {key: class_name(texts[key]) or "" for key in sorted(texts)}
    return names if names and len(set(names.values()) - {""}) == len(items) else None


# Images


def _image_paths(file: _DataFile, split: str, report: DataReport) -> Iterator[Path]:
    for place in file.splits[split]:
        # Roboflow's files say ../train/images of a folder that lies beside them.
        tried = [file.base / place, file.base / place.removeprefix("../")]
        path = next(filter(os.path.exists, tried), tried[0])
        if path.is_dir():
            yield from (path / name for name in list_files(path) if suffix_of(name) in SUFFIXES)
        elif path.is_file() and suffix_of(path.name) == ".txt":
            yield from _listed_paths(path, file.base, report)
        else:
            raise DataError(f"{file.path}: {split} is {place!r}; {path} is no folder and no .txt")


def _listed_paths(path: Path, base: Path, report: DataReport) -> Iterator[Path]:
    """Those of a list: from its own folder or the base, absolute, or found as in VOC's lists."""
    files = NamedFiles(base, SUFFIXES)
    for line in read_list(path):
        near = [folder / line.strip() for folder in (path.parent, base)]
        found = list(filter(os.path.isfile, near))[:1] or [base / f for f in files.find(line)]
        if len(found) == 1:
            yield found[0]
        else:
            report.add(Reason.MISSING_IMAGE, files.problem(line, found), count=1)


def _images(
    paths: Iterable[Path], file: _DataFile, report: DataReport
) -> Iterator[tuple[ImageEntry, _Rows]]:
    """The usable images, and the rows of their label files."""
    seen: set[Path] = set()
    for position, path in enumerate(paths):
        name = os.path.relpath(path, file.base)
        if path in seen:
            report.add(Reason.DUPLICATE_IMAGE, [f"{name} again"])
        elif (size := header_size(path, upright=True)) is None:
            report.add(Reason.UNREADABLE_HEADER, [name])
        elif (rows := _read_rows(path, file.base, report)) is not None:
            yield ImageEntry(position, name, size, path), rows
        seen.add(path)


# Labels


def _read_rows(image: Path, base: Path, report: DataReport) -> _Rows | None:
    """The rows of an image's label file: in labels/ in place of the last images/ of its path, else
    beside the image. None where it cannot be read; no file is one without rows."""
    head, images, tail = str(image).rpartition("/images/")
    beside = image.with_suffix(".txt")
    mapped = Path(f"{head}/labels/{tail}").with_suffix(".txt") if images else beside
    path = mapped if mapped.is_file() or not beside.is_file() else beside
    name = os.path.relpath(path, base)
    if not path.is_file():
        report.add(Reason.NO_LABEL_FILE, [name])
        return []
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        report.add(Reason.UNREADABLE_ANNOTATION, [f"{name}: {error}"])
        return None
    columns = ((f"{name}, line {number}", line.split()) for number, line in enumerate(lines, 1))
    return [(where, row) for where, row in columns if row]


def _objects(
    found: Sequence[tuple[ImageEntry, _Rows]], file: _DataFile, report: DataReport
) -> Iterator[ObjectEntry]:
    labels: dict[float, int] = {key: label for label, key in enumerate(file.names)}
    for place, (image, rows) in enumerate(found):
        for where, row in rows:
            try:
                key, corners, polygon = _parse(row[:5] if file.has_keypoints else row, image.size)
            except ValueError as error:
                report.add(Reason.MALFORMED_OBJECT, [f"{where}: {error}"])
                continue
            if key in labels:
                yield ObjectEntry(place, corners, labels[key], segmentation=polygon)
            else:
                report.unknown_ids.add(key)
                report.add(Reason.UNKNOWN_CLASS, [f"{where}: class {row[0]} has no name"])


def _parse(
    row: Sequence[str], size: tuple[int, int]
) -> tuple[float, Sequence[float], list[list[float]] | None]:
    """Class id, corners and polygon of a row, in pixels; a ValueError says why it has none."""
    if "_" in "".join(row):  # Python's own way to write numbers
        raise ValueError(f"{' '.join(row)[:60]!r} is not all numbers")
    key, *numbers = map(float, row)
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError(f"it has {len(row)} columns; a box has 5, a polygon 7, 9, 11, ..")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite has a rule
        points = np.array(numbers).reshape(-1, 2) * size[::-1]
        if len(numbers) == 4:
            return key, (points[0] + points[1] * [[-0.5], [0.5]]).ravel().tolist(), None
    return key, [*points.min(axis=0), *points.max(axis=0)], [points.ravel().tolist()]
