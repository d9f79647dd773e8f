"""Boxes before NMS as a file: NumPy columns, or a COCO results file."""

from pathlib import Path

import numpy as np

from harmonic_jax.files import replacing
from harmonic_jax.metrics.files import (
    check_numbers,
    known_images,
    known_labels,
    load_coco_results,
)
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
        columns = _read_columns(path)
    except Exception as error:  # damaged archives raise anything, OSError as well
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a file of boxes before NMS: {reason}") from None
    image_id = known_images(columns["image_id"].tolist(), truth, str(path))
    labels = known_labels(columns["category_id"], truth, str(path))
    boxes, scores = (columns[name].astype(np.float64) for name in ("boxes", "scores"))
    check_numbers("boxes", boxes, str(path))
    check_numbers("scores", scores, str(path))
    return DetectionTable(image_id, boxes, scores, labels)


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        missing = [name for name in _COLUMNS if name not in archive.files]
        if missing:
            held = ", ".join(map(repr, archive.files[:8])) or "nothing"
            raise ValueError(f"it has no {', '.join(missing)}; it holds {held}")
        size = sum(archive.zip.getinfo(f"{name}.npy").file_size for name in _COLUMNS)
        if size > MOST_BYTES:
            raise ValueError(
                f"its columns are {size / 2**30:.1f} GiB; at most {MOST_BYTES >> 30} are read"
            )
        columns = {name: _read_column(archive, name) for name in _COLUMNS}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its columns have different lengths, {lengths}")
    return columns


def _read_column(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        column = np.asarray(archive[name])
    except Exception as error:
        raise ValueError(f"{name}: {error or type(error).__name__}") from None
    kinds, row = _COLUMNS[name]
    if column.dtype.kind not in kinds:
        raise ValueError(f"{name} is of type {column.dtype}; it must be {_KINDS[kinds]}")
    if column.ndim != 1 + len(row) or column.shape[1:] != row:
        raise ValueError(f"{name} has the shape {column.shape}; it must be {['n', *row]}")
    return column
