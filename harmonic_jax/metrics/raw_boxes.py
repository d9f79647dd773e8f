"""Boxes before NMS as a file: NumPy columns, or a COCO results file."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from harmonic_jax.coco_format.values import as_int64
from harmonic_jax.files import replacing
from harmonic_jax.metrics.result_entries import check_numbers, labels_of
from harmonic_jax.metrics.results_json import load_coco_results
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

MOST_BYTES = 2**32  # 100 million boxes
# Of each column the kinds of numbers that it may be, and the shape of a row.
_COLUMNS = {
    "image_id": ("iu", ()),
    "boxes": ("fiu", (4,)),
    "scores": ("fiu", ()),
    "category_id": ("iu", ()),
}
_KINDS = {"iu": "whole numbers", "fiu": "numbers"}


def save_raw(path: Path, boxes: DetectionTable, category_ids: tuple[int, ...]) -> None:
    """Writes boxes as NumPy columns: a COCO results file of them would be several times larger."""
    category_id = np.array(category_ids, np.int64)[boxes.labels]
    columns = (boxes.image_id, boxes.boxes.astype(np.float32), boxes.scores, category_id)
    with replacing(path) as partial:
        np.savez_compressed(partial, **dict(zip(_COLUMNS, columns, strict=True)))


def load_raw(path: Path, truth: GroundTruthTable) -> DetectionTable:
    """Reads boxes before NMS: a COCO results file, or a .npz file that `save_raw` wrote.

    A .npz file has the columns image_id [n], boxes [n, 4] (xyxy), scores [n] and category_id [n].

    Raises:
      OSError: the file cannot be read.
      ValueError: it is neither, or holds an image or class that the ground truth does not have.
    """
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if not is_archive:
        return load_coco_results(path, truth, masks=False)
    try:
        with zipfile.ZipFile(path) as archive:
            columns = _read_columns(archive)
    except Exception as error:  # damaged archives raise anything, OSError as well
        text = str(error) or type(error).__name__
        raise ValueError(f"{path} is not a file of boxes before NMS: {text}") from None
    image_id, boxes, scores, category_id = columns
    image_id = _as_int64(image_id)
    unknown = np.flatnonzero(~np.isin(image_id, truth.image_ids))
    if len(unknown):
        row = int(unknown[0])
        raise ValueError(f"{path}[{row}]: image_id {columns[0][row]} is not in the ground truth")
    labels = labels_of(category_id, truth, str(path))
    boxes, scores = boxes.astype(np.float64), scores.astype(np.float64)
    check_numbers("boxes", boxes, str(path))
    check_numbers("scores", scores, str(path))
    return DetectionTable(image_id, boxes, scores, labels)


def _as_int64(ids: np.ndarray) -> np.ndarray:
    if ids.dtype.kind == "i" or not len(ids) or ids.max() < 2**63:
        return ids.astype(np.int64)
    different, place = np.unique(ids, return_inverse=True)
    return np.array([as_int64(value) for value in different.tolist()], np.int64)[place]


def _read_columns(archive: zipfile.ZipFile) -> list[np.ndarray]:
    """The columns, whose headers are believed only as far as there are bytes."""
    names = archive.namelist()
    missing = [name for name in _COLUMNS if f"{name}.npy" not in names]
    if missing:
        held = ", ".join(repr(name.removesuffix(".npy")) for name in names[:8]) or "nothing"
        raise ValueError(f"it has no {', '.join(missing)}; it holds {held}")
    size = sum(archive.getinfo(f"{name}.npy").file_size for name in _COLUMNS)
    if size > MOST_BYTES:
        raise ValueError(
            f"its columns are {size / 2**30:.1f} GiB; at most {MOST_BYTES >> 30} are read"
        )
    columns = [_read_column(archive, name) for name in _COLUMNS]
    lengths = {name: len(column) for name, column in zip(_COLUMNS, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its columns have different lengths, {lengths}")
    return columns


def _read_column(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    kinds, row = _COLUMNS[name]
    with archive.open(info) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has the format {version} of NumPy arrays")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        if dtype.kind not in kinds or dtype.hasobject:
            raise ValueError(f"{name} is of type {dtype}; it must be {_KINDS[kinds]}")
        if len(shape) != 1 + len(row) or shape[1:] != row:
            raise ValueError(f"{name} has the shape {shape}; it must be {['n', *row]}")
        left = info.file_size - file.tell()
        if shape[0] * int(np.prod(row)) * dtype.itemsize != left:
            raise ValueError(f"{name} claims the shape {shape} of {dtype}, and has {left} bytes")
        array = np.frombuffer(file.read(), dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")
