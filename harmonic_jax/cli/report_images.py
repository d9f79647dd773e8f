"""Pictures for the page of `eval.py --report`: from a run's data, or from a folder of files."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.config import DataConfig
from harmonic_jax.data.decode import ImageError, decode_image
from harmonic_jax.data.folders import is_inside
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


def images_of_folder(annotations: Path, folder: Path | None) -> Images:
    """The images that a COCO annotation file names.

    Args:
      annotations: read once more for its list of images, which has been checked already.
      folder: where the files lie; None: their names and sizes alone.

    Raises:
      DataError: none of them is there.
    """
    entries: list[dict[str, Any]] = json.loads(annotations.read_bytes())["images"]
    names = {e["id"]: e["file_name"] for e in entries if isinstance(e.get("file_name"), str)}
    sizes = {e["id"]: (e["height"], e["width"]) for e in entries if _has_size(e)}
    if folder is None:
        return Images(None, names, sizes)
    # A name may not lead out of the folder.
    paths = {i: folder / name for i, name in names.items() if is_inside(name)}
    if not any(map(os.path.isfile, paths.values())):
        example = next(iter(names.values()), "no file_name at all")
        raise DataError(
            f"--images {folder} holds none of the images that {annotations} names ({example})"
        )

    def pixels(image_id: int) -> np.ndarray | None:
        try:
            data = read_image_file(paths[image_id])
        except (KeyError, OSError):
            return None
        return _decoded(data, sizes.get(image_id), DataConfig().max_pixels)

    return Images(pixels, names, sizes)


def _has_size(entry: dict[str, Any]) -> bool:
    return all(type(entry.get(side)) is int and entry[side] > 0 for side in ("height", "width"))


def _decoded(data: bytes, size: tuple[int, int] | None, max_pixels: int) -> np.ndarray | None:
    try:
        return decode_image(data, max_pixels=max_pixels, annotated_size=size).image
    except ImageError:
        return None
