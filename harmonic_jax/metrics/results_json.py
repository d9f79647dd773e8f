"""Tables from and to files in COCO format, whose boxes are x, y, width, height.

Every error is one line that names the file, the entry and the value.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, box_sizes, check_labels


def load_coco_annotations(path: str | Path) -> GroundTruthTable:
    """Reads a COCO annotation file; see `ground_truth_from_coco`."""
    return ground_truth_from_coco(_read(path), name=str(path))


def ground_truth_from_coco(content: Any, *, name: str = "annotations") -> GroundTruthTable:
    """The table of a COCO annotation dict.

    Classes are in the order of their category ids. Where an annotation lacks them, `iscrowd` is 0
    and `area` the box's. `difficult`, which COCO does not have, is read where it is there.
    Annotation ids are not used: pycocotools takes an object with the id 0 for an unmatched one.

    Args:
      content: A dict with the lists "images", "categories" and "annotations".
      name: What messages call it, a file for instance.

    Raises:
      ValueError: A list or a field is missing or wrong, or an id is not known.
    """
    images, categories, annotations = (
        _entries(content, key, name) for key in ("images", "categories", "annotations")
    )
    image_ids = _column(images, "id", _integer, f"{name}: images")
    unordered_ids = _column(categories, "id", _integer, f"{name}: categories")
    order = np.argsort(unordered_ids)
    category_ids = np.array(unordered_ids, np.int64)[order]
    names = _column(categories, "name", _text, f"{name}: categories")
    where = f"{name}: annotations"
    image_id, labels, xywh = _objects(annotations, image_ids, category_ids, where)
    defaults = [{"area": w * h, "iscrowd": 0, "difficult": 0} for w, h in xywh[:, 2:].tolist()]
    annotations = [d | dict(a) for d, a in zip(defaults, annotations, strict=True)]
    try:
        return GroundTruthTable(
            image_ids=np.array(image_ids, np.int64),
            image_id=image_id,
            boxes=np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
            labels=labels,
            is_crowd=np.array(_column(annotations, "iscrowd", _flag, where), bool),
            is_difficult=np.array(_column(annotations, "difficult", _flag, where), bool),
            area=np.array(_column(annotations, "area", _number, where), np.float64),
            class_names=tuple(names[i] for i in order),
            category_ids=tuple(category_ids.tolist()),
            sizes=xywh[:, 2:],
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def load_coco_results(path: str | Path, ground_truth: GroundTruthTable) -> DetectionTable:
    """Reads detections from a COCO results file, a list of
    {"image_id", "category_id", "bbox", "score"}.

    Args:
      path: The JSON file.
      ground_truth: Gives the images and category ids that are legal.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a results file, an entry lacks a field or has a wrong one, or an image
        or category is not in the ground truth.
    """
    name = str(path)
    entries = _entries({"results": _read(path)}, "results", name)
    category_ids = np.array(ground_truth.category_ids, np.int64)
    image_id, labels, xywh = _objects(entries, ground_truth.image_ids, category_ids, name)
    scores = _column(entries, "score", _number, name)
    try:
        return DetectionTable(
            image_id=image_id,
            boxes=np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
            scores=np.array(scores, np.float64),
            labels=labels,
            sizes=xywh[:, 2:],
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def save_coco_results(
    path: str | Path, detections: DetectionTable, category_ids: Sequence[int]
) -> None:
    """Writes detections as a COCO results file, which pycocotools reads too.

    Args:
      path: The JSON file; replaced where it exists.
      detections: Every row becomes an entry, in order.
      category_ids: The data set's own id of each label.
    """
    check_labels("detection", detections.image_id, detections.labels, len(category_ids))
    entries = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(
            detections.image_id.tolist(),
            np.asarray(category_ids, np.int64)[detections.labels].tolist(),
            _xywh(detections),
            detections.scores.tolist(),
            strict=True,
        )
    ]
    Path(path).write_text(json.dumps(entries))


def save_coco_annotations(path: str | Path, ground_truth: GroundTruthTable) -> None:
    """Writes the table as a COCO annotation file; annotation ids count from 1.

    Difficult objects carry `"difficult": 1`, which `load_coco_annotations` reads and pycocotools
    does not. Image entries hold ids alone.
    """
    table = ground_truth
    names = zip(table.category_ids, table.class_names, strict=True)
    columns = zip(
        table.image_id.tolist(),
        np.array(table.category_ids, np.int64)[table.labels].tolist(),
        _xywh(table),
        table.area.tolist(),
        table.is_crowd.astype(int).tolist(),
        table.is_difficult.astype(int).tolist(),
        strict=True,
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd", "difficult")
    content = {
        "images": [{"id": image} for image in table.image_ids.tolist()],
        "categories": [{"id": int(category), "name": name} for category, name in names],
        "annotations": [
            {"id": i, **dict(zip(keys, row, strict=True))} for i, row in enumerate(columns, 1)
        ],
    }
    Path(path).write_text(json.dumps(content))


def _xywh(table: DetectionTable | GroundTruthTable) -> list[list[float]]:
    rows: list[list[float]] = np.hstack([table.boxes[:, :2], box_sizes(table)]).tolist()
    return rows


def _read(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None


def _entries(content: Any, key: str, name: str) -> list[Any]:
    entries = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError(f"{name}: must hold a list of {key}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{name}: {key}[{i}] is {str(entry)[:60]}; it must be an object")
    return entries


def _objects(
    entries: list[Any], image_ids: Any, category_ids: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image id, label and xywh of each entry; `category_ids` in the order of the labels."""
    image_id = np.array(_column(entries, "image_id", _integer, where), np.int64)
    category_id = np.array(_column(entries, "category_id", _integer, where), np.int64)
    for field, values, known in (
        ("image_id", image_id, np.asarray(image_ids, np.int64)),
        ("category_id", category_id, category_ids),
    ):
        unknown = np.flatnonzero(~np.isin(values, known))
        if unknown.size:
            i = unknown[0]
            raise ValueError(f"{where}[{i}]: {field} {values[i]} is not in the ground truth")
    order = np.argsort(category_ids)
    labels = order[np.searchsorted(category_ids, category_id, sorter=order)]
    boxes = np.array(_column(entries, "bbox", _box, where), np.float64).reshape(-1, 4)
    return image_id, labels, boxes


def _column(
    entries: list[Any], field: str, is_legal: Callable[[Any], bool], where: str
) -> list[Any]:
    values = [entry.get(field) for entry in entries]
    for i, value in enumerate(values):
        if not is_legal(value):
            legal = (is_legal.__doc__ or "").rstrip(".")
            found = f"{field} is {str(value)[:60]!r}" if field in entries[i] else f"no {field}"
            raise ValueError(f"{where}[{i}]: {found}; it must be {legal}")
    return values


def _integer(value: Any) -> bool:
    """an integer."""
    return type(value) is int


def _number(value: Any) -> bool:
    """a number."""
    return type(value) is float or type(value) is int


def _flag(value: Any) -> bool:
    """0 or 1."""
    return value in (0, 1)


def _text(value: Any) -> bool:
    """a text."""
    return type(value) is str


def _box(value: Any) -> bool:
    """four numbers: x, y, width, height."""
    return type(value) is list and len(value) == 4 and all(map(_number, value))
