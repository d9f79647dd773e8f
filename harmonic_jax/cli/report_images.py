"""Pictures for the page of `eval.py --report`: from a run's data, or from a folder of files."""

from pathlib import Path

import numpy as np

from harmonic_jax.coco_format.annotations import CocoFile
from harmonic_jax.coco_format.entries import images_of
from harmonic_jax.coco_format.values import as_int64, side, text
from harmonic_jax.config import DataConfig
from harmonic_jax.data.decode import ImageError, decode_image
from harmonic_jax.data.file_names import ImageFinder, name_in_words
from harmonic_jax.data.image_file import read_image_file
from harmonic_jax.data.records import DataError, DetectionSource
from harmonic_jax.report import Images


def images_of_source(source: DetectionSource, *, max_pixels: int) -> Images:
    """The images of a data set; those that cannot be decoded are left out."""
    records = source.records
    place = {record.image_id: i for i, record in enumerate(records)}

    def pixels(image_id: int) -> np.ndarray | None:
        record = records[place[image_id]]
        try:
            data = source.image_bytes(place[image_id])
            return _decoded(data, (record.height, record.width), max_pixels)
        except OSError:
            return None

    names = {record.image_id: record.file_name for record in records}
    return Images(
        pixels, names, {record.image_id: (record.height, record.width) for record in records}
    )


def images_of_folder(file: CocoFile, folder: Path | None) -> Images:
    """The images that a COCO annotation file names.

    Args:
      file: its images have been checked already.
      folder: where the image files lie; None: their names and sizes alone.

    Raises:
      DataError: none of them is there.
    """
    entries = {as_int64(key): entry for key, entry in images_of(file, lambda fault: None).items()}
    names = {key: e["file_name"] for key, e in entries.items() if text(e.get("file_name"))}
    stated = {key: (side(e.get("height")), side(e.get("width"))) for key, e in entries.items()}
    sizes = {key: (height, width) for key, (height, width) in stated.items() if height and width}
    if folder is None:
        return Images(None, names, sizes)
    finder = ImageFinder(folder, [""], list(names.values()))
    paths = {key: path for key, name in names.items() if (path := finder.find(name))}
    if not paths:
        name = next(iter(names.values()), "")
        example = f"{name_in_words(name)}{finder.nearby(name)}" if name else "no file_name at all"
        raise DataError(
            f"--images {folder} holds none of the images that {file.name} names ({example})"
        )

    def pixels(image_id: int) -> np.ndarray | None:
        try:
            data = read_image_file(paths[image_id])
        except (KeyError, OSError):
            return None
        return _decoded(data, sizes.get(image_id), DataConfig().max_pixels)

    return Images(pixels, names, sizes)


def _decoded(data: bytes, size: tuple[int, int] | None, max_pixels: int) -> np.ndarray | None:
    try:
        return decode_image(data, max_pixels=max_pixels, annotated_size=size).image
    except ImageError:
        return None
