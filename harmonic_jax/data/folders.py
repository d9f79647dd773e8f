"""What data sets share: entries -> records, headers of images, names of classes."""

import collections
import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harmonic_jax.coco_format.values import Id, as_int64, clean_name
from harmonic_jax.data.file_names import without_folders, without_suffix
from harmonic_jax.data.image_file import ImageError, open_image, read_image_file
from harmonic_jax.data.records import Annotations, DataError, DetectionSource
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.rules import apply_rules
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.files import read_lines

_START = 2**16  # bytes of an image file that are read for its header
SPLITS = ("train", "val", "valid", "validation", "test")  # where one is known by its name


class ImageEntry(NamedTuple):
    """An image of a data set: its id and name there, its height and width, and where it is."""

    id: Id
    file_name: str
    size: tuple[int, int]
    place: Path | int


class ObjectEntry(NamedTuple):
    """An object as its file states it; `image` is the place of its image among the entries."""

    image: int
    corners: Sequence[float]
    label: int
    is_crowd: bool = False
    is_difficult: bool = False
    area: float = np.nan
    segmentation: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource(DetectionSource):
    """A data set whose images are files."""

    paths: tuple[str, ...]
    """The image file of each record; strings, for 118k of them."""

    def image_bytes(self, index: int) -> bytes:
        return read_image_file(self.paths[index])


def folder_source(
    data_set: str,
    split: str,
    images: Sequence[ImageEntry],
    objects: Sequence[ObjectEntry],
    config: DataConfig,
    *,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    report: DataReport,
    one_based: bool = False,
    **about: Any,
) -> FolderSource:
    """The source of what the files of a folder state; the rules about boxes are applied here.

    Args:
      data_set: FORMAT:DATA_SET.
      split: of `images` those that are not in it by `config.eval_share` are left out.
      report: has the counts of what was dropped, and receives those of the rules.
      about: other fields of `DetectionSource`.
    """
    if config.eval_share is not None:
        chosen = [i for i, image in enumerate(images) if _is_in_split(image, split, config)]
        places = {old: new for new, old in enumerate(chosen)}
        images = [images[i] for i in chosen]
        objects = [o._replace(image=places[o.image]) for o in objects if o.image in places]
    raw = annotations_of(images, objects, masks=config.masks)
    records = apply_rules(raw, config, class_names=class_names, report=report, one_based=one_based)
    for beyond, end in ((category_ids[-1] + 1, 0), (category_ids[0] - 1, len(class_names) - 1)):
        if report.unknown_ids == {beyond} and end not in records.labels:
            report.doubts.append(
                f"class id {beyond} has no name, and {category_ids[end]} ({class_names[end]}) no "
                "object: ids seem off by one, and every class is learned as another; shift them"
            )
    paths = tuple(str(image.place) for image in images)
    name = f"{data_set}:{split}"
    return FolderSource(name, class_names, category_ids, records, report, paths, **about)


def in_words(splits: Collection[str]) -> str:
    """For messages: the splits there are, and what divides a single one."""
    return ", ".join(splits) + "; --data.eval-share 0.2 divides it" * (len(splits) == 1)


def whole_split(splits: Sequence[str], split: str, config: DataConfig) -> str:
    """What to read for a split: the only one there is, where `config.eval_share` divides it; a
    DataError if there are several, or the name is that of neither part."""
    if config.eval_share is None:
        return split
    parts = (config.train_split, config.eval_split)
    if len(splits) != 1 or split not in parts:
        raise DataError(
            f"data.eval_share={config.eval_share} makes {' and '.join(parts)} of a folder with one "
            f"split; asked for is {split}, and data.root={config.root} has {', '.join(splits)}"
        )
    return splits[0]


def _is_in_split(image: ImageEntry, split: str, config: DataConfig) -> bool:
    """By 64 bits of the BLAKE2b hash of the file's name, without folders and suffix, in NFC."""
    name = without_folders(image.file_name.replace("\\", "/"))
    name = without_suffix(name) or name
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
    place = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
    return (place < (config.eval_share or 0)) == (split == config.eval_split)


def annotations_of(
    images: Sequence[ImageEntry], objects: Sequence[ObjectEntry], *, masks: bool
) -> Annotations:
    """What entries say, image by image, as the rules take it."""
    owners = np.array([item.image for item in objects], np.int64)
    order = np.argsort(owners, kind="stable")
    ordered = [objects[i] for i in order.tolist()]
    ids = [as_int64(image.id) for image in images]
    return Annotations(
        image_ids=np.array(ids, np.int64),
        original_ids={key: i.id for key, i in zip(ids, images, strict=True) if key != i.id},
        file_names=tuple(image.file_name for image in images),
        sizes=np.array([image.size for image in images], np.int32).reshape(-1, 2),
        owners=owners[order],
        boxes=np.array([item.corners for item in ordered], np.float64).reshape(-1, 4),
        labels=np.array([item.label for item in ordered], np.int32),
        is_crowd=np.array([item.is_crowd for item in ordered], bool),
        is_difficult=np.array([item.is_difficult for item in ordered], bool),
        area=np.array([item.area for item in ordered], np.float64),
        masks=[item.segmentation for item in ordered] if masks else None,
    )


def shared_images(one: DetectionSource, other: DetectionSource) -> list[str]:
    """File names of the images of `other` that are files of `one` too; of folders only."""
    if not isinstance(one, FolderSource) or not isinstance(other, FolderSource):
        return []
    known = set(one.paths)
    pairs = zip(other.paths, other.records.file_names, strict=True)
    return [name for path, name in pairs if path in known]


def folder_name(folder: Path) -> str:
    """The last part of a folder's path, however it is written: "." has a name too."""
    return os.path.basename(os.path.abspath(folder))


def read_list(path: Path) -> list[str]:
    """The lines of a list that say something; names on a disk need not be text."""
    try:
        return [line for line in read_lines(path, errors="surrogateescape") if line.strip()]
    except ValueError as error:
        raise DataError(str(error)) from error


def read_class_names(path: Path, *, repeatable: str | None = None) -> tuple[str, ...]:
    """The names in a file, one a line; empty lines and outer spaces are no part of them.

    A DataError where there is none, one but `repeatable` is there twice, or the file is no text.
    """
    try:
        lines = read_lines(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    names = [name for line in lines if (name := clean_name(line))]
    counts = collections.Counter(names)
    again = [name for name in counts if counts[name] > 1 and name != repeatable]
    if again or not names:
        found = f"{again[0]!r} is there twice" if again else "it has none"
        raise DataError(f"{path} must hold one class name a line, each once; {found}")
    return tuple(names)


def header_size(image: bytes | Path, *, upright: bool = False) -> tuple[int, int] | None:
    """Height and width as the file stores them, read from its header; None where it has none.

    Pixels are not decoded. An orientation (EXIF's, or TIFF's tag) is applied if `upright` only.
    """
    try:
        if isinstance(image, bytes):
            header, orientation = open_image(image)
        else:
            start = read_image_file(image, start=_START)
            try:  # most headers are short; some stand behind a profile, or at the end of a TIFF
                header, orientation = open_image(start)
                is_all = not upright or header.format != "PNG" or len(start) < _START
            except ImageError:
                is_all = False
            if not is_all:  # a PNG's orientation may stand behind its pixels
                header, orientation = open_image(read_image_file(image))
    except (ImageError, OSError):
        return None
    if max(header.size) >= 2**31:  # no image has that; a damaged header does
        return None
    return header.size if upright and orientation >= 5 else header.size[::-1]


def size_from_file(path: Path, told: str, report: DataReport) -> tuple[int, int] | None:
    """The size in an image's header, where its annotation states none, as `told` says."""
    size = header_size(path)
    report.add(Reason.SIZE_FROM_FILE if size else Reason.UNREADABLE_HEADER, [told])
    return size
