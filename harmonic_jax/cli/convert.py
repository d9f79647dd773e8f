"""`harmonic-jax convert SPEC --to FORMAT --out DIR`: a data set in another format."""

import dataclasses
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

import numpy as np
import yaml
from tyro.conf import Positional

from harmonic_jax.cli.command import command
from harmonic_jax.data.decode import SUFFIXES
from harmonic_jax.data.file_names import suffix_of, without_folders
from harmonic_jax.data.folders import SPLITS, FolderSource
from harmonic_jax.data.image_file import ImageError, open_image
from harmonic_jax.data.records import DataError, DetectionSource, Record
from harmonic_jax.data.sources import list_splits, open_source, parse_spec
from harmonic_jax.data.yolo import OTHER_KEYS
from harmonic_jax.metrics.files import save_coco_annotations
from harmonic_jax.metrics.tables import GroundTruthTable
from harmonic_jax.terminal import Terminal, counted


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a data set in another format, and say what that cannot hold."""

    spec: Positional[str]
    """coco:DIR, voc:DIR, yolo:DIR or tfds:NAME; append :SPLIT for one split only."""
    to: Literal["coco", "voc", "yolo"]
    out: Path
    """A new folder."""
    copy: bool = False
    """Copy the images; else they are links to where they are."""


@command(Options, "convert")
def main(options: Options) -> int:
    """Writes all splits; prints what was read, and what the format cannot hold."""
    config, split = parse_spec(options.spec)
    config = dataclasses.replace(config, masks=config.format in ("coco", "yolo"))
    if options.out.exists() and next(options.out.iterdir(), None):
        raise DataError(f"--out {options.out} is not empty; name a new folder")
    splits = [split] if split else list_splits(config)
    sources = {name: open_source(config, name) for name in splits}
    console = Terminal()
    for source in sources.values():
        images, objects = len(source.records), len(source.records.labels)
        number = f"{counted(images, 'image')}, {counted(objects, 'object')}"
        rules = {rule: f.count for rule, f in source.report.findings.items() if rule != "no_mask"}
        console.print(", ".join([f"{source.name}: {number}", *(f"{r} {rules[r]}" for r in rules)]))
    for what, count in _Writer(options, sources).write().items():
        if count:
            console.print(f"{options.to} holds no {what}: {count}")
    console.print(f"written: {options.out}")
    return 0


class _Writer:
    """Writes splits into a folder, and counts what its format cannot hold."""

    def __init__(self, options: Options, sources: dict[str, DetectionSource]):
        self._to, self._out, self._copy = options.to, options.out, options.copy
        self._sources, self._lost = sources, Counter[str]()
        self._taken: dict[str, object] = {}  # names of images, and what has them
        names = (name for source in sources.values() for name in source.class_names)
        self._names = list(dict.fromkeys(names))

    def write(self) -> Counter[str]:
        """What could not be written, by what was done about it."""
        data: dict[str, Any] = {}
        for split, source in self._sources.items():
            if self._to == "coco":
                self._write_coco(split, source)
            elif self._to == "voc":
                self._write_voc(split, source)
            else:  # train2017 is train to other readers
                key = re.sub(r"^\d+_|\d+$", "", split)
                key = key if key in SPLITS and key not in data else split
                data[f"{key}_split" if key in OTHER_KEYS else key] = f"images/{split}"
                self._write_yolo(split, source)
        if self._to == "voc":
            names = [_in_xml(name) for name in self._names]
            changed = sum(map(str.__ne__, names, self._names))
            self._lost["control characters in class names, written \ufffd"] = changed
            _write(self._out / "labels.txt", names)
        if self._to == "yolo":
            data["names"] = dict(enumerate(self._names))
            text = yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
            _write(self._out / "data.yaml", [text])
        return self._lost

    def _write_coco(self, split: str, source: DetectionSource) -> None:
        placed = list(self._placed(split, source))
        records = [record for record, _ in placed]
        names, ids = source.class_names, source.category_ids
        table = GroundTruthTable.from_records(records, names, ids, source.federation)
        if table.masks is not None and not table.masks.areas().any():
            table = dataclasses.replace(table, masks=None)
        path = self._out / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        save_coco_annotations(path, table, {record.image_id: file for record, file in placed})

    def _write_voc(self, split: str, source: DetectionSource) -> None:
        names = [_in_xml(name) for name in source.class_names]
        stems = []
        for record, file in self._placed("JPEGImages", source):
            is_thin = (record.boxes[:, 2:] - record.boxes[:, :2] <= 1).any(axis=1)
            self._lost["boxes of a pixel or less, left out"] += int(is_thin.sum())
            stems.append(os.path.splitext(file)[0])
            lines = _voc_lines(record, self._kept(record, ~is_thin), names, file)
            _write(self._out / "Annotations" / f"{stems[-1]}.xml", lines)
        _write(self._out / "ImageSets" / "Main" / f"{split}.txt", stems)

    def _write_yolo(self, split: str, source: DetectionSource) -> None:
        keys = [self._names.index(name) for name in source.class_names]
        for record, file in self._placed(f"images/{split}", source):
            self._lost["difficult flags"] += int(record.is_difficult.sum())
            path = self._out / "labels" / split / file
            lines = []
            for row in self._kept(record, True):
                box = record.boxes[row].astype(np.float64).reshape(2, 2)
                low, high = box / (record.width, record.height)
                numbers = *((low + high) / 2).tolist(), *(high - low).tolist()
                lines.append(" ".join(map(str, (keys[record.labels[row]], *numbers))))
            _write(path.with_suffix(".txt"), lines)

    def _kept(self, record: Record, kept: np.ndarray | bool) -> list[int]:
        """The objects among those that VOC and YOLO can hold."""
        self._lost["crowd regions, left out"] += int(record.is_crowd.sum())
        if record.masks is not None:
            self._lost["masks"] += int((~record.is_crowd & (record.masks.areas() > 0)).sum())
        return np.flatnonzero(~record.is_crowd & kept).tolist()

    def _placed(self, inner: str, source: DetectionSource) -> Iterator[tuple[Record, str]]:
        """Links or copies the images under their names without folders; a second one of a name,
        whatever case and suffix, is NAME_2, unless it is the same file with the same objects."""
        folder = self._out / inner
        folder.mkdir(parents=True, exist_ok=True)
        for row, record in enumerate(source.records):
            if source.upright != (self._to == "yolo") and _is_turned(source, row):
                self._lost["orientation (EXIF) as it was read, images left out"] += 1
                continue
            name = without_folders(record.file_name.replace("\\", "/"))
            name = re.sub("[\r\n]", "_", name)  # lists have a line each
            stem, suffix = os.path.splitext(name) if suffix_of(name) in SUFFIXES else (name, ".jpg")
            path = source.paths[row] if isinstance(source, FolderSource) else f"{source.name} {row}"
            labels = [source.class_names[label] for label in record.labels]
            columns = record.boxes, record.is_crowd, record.is_difficult
            content = path, labels, [column.tobytes() for column in columns]
            tried = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
            for stem in tried:
                if self._taken.setdefault(f"{inner}/{stem}".casefold(), content) == content:
                    break
            place = folder / (stem + suffix)
            if self._copy or not isinstance(source, FolderSource):
                place.write_bytes(source.image_bytes(row))
            elif not place.is_symlink():
                place.symlink_to(os.path.realpath(path))
            yield record, place.name


def _is_turned(source: DetectionSource, row: int) -> bool:
    """Whether an image has an orientation, and its record the size in which it is stored."""
    try:
        header, orientation = open_image(source.image_bytes(row))
    except ImageError:
        return False
    return orientation > 1 and header.size == tuple(source.records.sizes[row, ::-1].tolist())


def _voc_lines(record: Record, rows: list[int], names: list[str], file: str) -> Iterator[str]:
    """An annotation; pixels are counted from 1, and the last one is included."""
    yield f"<annotation>\n<filename>{escape(_in_xml(file))}</filename>\n<size>"
    yield f"<width>{record.width}</width><height>{record.height}</height><depth>3</depth></size>"
    for row in rows:
        yield f"<object><name>{escape(names[record.labels[row]])}</name>"
        yield f"<difficult>{record.is_difficult[row]:d}</difficult><bndbox>"
        x1, y1, *ends = (Decimal(str(value)) for value in record.boxes[row])  # shortest of float32
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, *ends), strict=True)
        yield "".join(f"<{key}>{value.normalize():f}</{key}>" for key, value in corners)
        yield "</bndbox></object>"
    yield "</annotation>"


def _in_xml(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return re.sub("[\0-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
