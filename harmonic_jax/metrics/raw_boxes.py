"""Boxes before NMS as a file: NumPy columns, or a COCO results file."""

from pathlib import Path

import numpy as np

from harmonic_jax.files import replacing
from harmonic_jax.json_file import JsonFileError
from harmonic_jax.metrics.files import known_images, known_labels, load_coco_results
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, as_column

MOST_BYTES = 2**32  # 100 million boxes
_COLUMNS = ("image_id", "boxes", "scores", "category_id")


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
        images, boxes, scores, categories = _read_columns(path)
        for name, ids in (("image_id", images), ("category_id", categories)):
            as_column(name, ids, np.int64, boxes.shape[:1])
        image_id = known_images(images.tolist(), truth, str(path))
        labels = known_labels(categories, truth, str(path))
        return DetectionTable(image_id, boxes, scores, labels)
    except JsonFileError:  # of ids, and names the file
        raise
    except Exception as error:  # damaged archives raise anything, OSError as well
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a file of boxes before NMS: {reason}") from None


def _read_columns(path: Path) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        missing = [name for name in _COLUMNS if name not in archive.files]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        size = sum(archive.zip.getinfo(f"{name}.npy").file_size for name in _COLUMNS)
        if size > MOST_BYTES:
            raise ValueError(
                f"its columns are {size / 2**30:.1f} GiB; at most {MOST_BYTES >> 30} are read"
            )
        return [np.asarray(archive[name]) for name in _COLUMNS]
