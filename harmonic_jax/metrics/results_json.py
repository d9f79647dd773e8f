"""Tables from and to files in COCO format, whose boxes are x, y, width, height.

Every error is one line that names the file, the entry and the value.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.files import write_text
from harmonic_jax.metrics.columns import check_labels
from harmonic_jax.metrics.json_fields import box, column, entries_of, flag, integer, number, text
from harmonic_jax.metrics.masks_json import annotated_masks, detected_masks, segmentations_of
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, box_sizes


def load_coco_annotations(path: str | Path, *, masks: bool = False) -> GroundTruthTable:
    """Reads a COCO annotation file; see `ground_truth_from_coco`."""
    return ground_truth_from_coco(_read(path), name=str(path), masks=masks)


def ground_truth_from_coco(
    content: Any, *, name: str = "annotations", masks: bool = False
) -> GroundTruthTable:
    """The table of a COCO annotation dict.

    Classes are in the order of their category ids. Where an annotation lacks them, `iscrowd` is 0
    and `area` the box's. `difficult`, which COCO does not have, is read where it is there.
    Annotation ids are not used: pycocotools takes an object with the id 0 for an unmatched one.

    Args:
      content: A dict with the lists "images", "categories" and "annotations".
      name: What messages call it, a file for instance.
      masks: Also draw the segmentations, where the file has them: polygons or run lengths.

    Raises:
      ValueError: A list or a field is missing or wrong, or an id is not known; with `masks`, some
        objects have a usable segmentation and some have none.
    """
    images, categories, annotations = (
        entries_of(content, key, name) for key in ("images", "categories", "annotations")
    )
    image_ids = column(images, "id", integer, f"{name}: images")
    unordered_ids = column(categories, "id", integer, f"{name}: categories")
    order = np.argsort(unordered_ids)
    category_ids = np.array(unordered_ids, np.int64)[order]
    names = column(categories, "name", text, f"{name}: categories")
    where = f"{name}: annotations"
    image_id, labels, xywh = _objects(annotations, image_ids, category_ids, where)
    defaults = [{"area": w * h, "iscrowd": 0, "difficult": 0} for w, h in xywh[:, 2:].tolist()]
    annotations = [d | dict(a) for d, a in zip(defaults, annotations, strict=True)]
    columns = {
        "is_crowd": np.array(column(annotations, "iscrowd", flag, where), bool),
        "is_difficult": np.array(column(annotations, "difficult", flag, where), bool),
        "area": np.array(column(annotations, "area", number, where), np.float64),
    }
    drawn = annotated_masks(annotations, images, name) if masks else None
    try:
        return GroundTruthTable(
            image_ids=np.array(image_ids, np.int64),
            image_id=image_id,
            boxes=np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
            labels=labels,
            class_names=tuple(names[i] for i in order),
            category_ids=tuple(category_ids.tolist()),
            sizes=xywh[:, 2:],
            masks=drawn,
            **columns,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def load_coco_results(path: str | Path, ground_truth: GroundTruthTable) -> DetectionTable:
    """Reads detections from a COCO results file, a list of
    {"image_id", "category_id", "bbox", "score"}, and "segmentation" where there are masks.

    A mask is compressed run lengths, {"size": [height, width], "counts": text}. An entry may leave
    out its box, which is then the tight one of its mask.

    Args:
      path: The JSON file.
      ground_truth: Gives the images and category ids that are legal.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a results file, an entry lacks a field or has a wrong one, or an image
        or category is not in the ground truth.
    """
    name = str(path)
    entries = entries_of({"results": _read(path)}, "results", name)
    category_ids = np.array(ground_truth.category_ids, np.int64)
    masks = detected_masks(entries, name)
    if masks is not None:
        x1, y1, x2, y2 = masks.boxes().T
        tight = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).tolist()
        entries = [{"bbox": box} | entry for box, entry in zip(tight, entries, strict=True)]
    image_id, labels, xywh = _objects(entries, ground_truth.image_ids, category_ids, name)
    scores = column(entries, "score", number, name)
    try:
        return DetectionTable(
            image_id=image_id,
            boxes=np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
            scores=np.array(scores, np.float64),
            labels=labels,
            sizes=xywh[:, 2:],
            masks=masks,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def save_coco_results(
    path: str | Path, detections: DetectionTable, category_ids: Sequence[int]
) -> None:
    """Writes detections as a COCO results file, which pycocotools reads too.

    Args:
      path: The JSON file; replaced where it exists.
      detections: Every row becomes an entry, in order; with its mask where the table has masks.
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
    if detections.masks is not None:
        for entry, segmentation in zip(entries, segmentations_of(detections.masks), strict=True):
            entry["segmentation"] = segmentation
    write_text(path, json.dumps(entries))


def save_coco_annotations(path: str | Path, ground_truth: GroundTruthTable) -> None:
    """Writes the table as a COCO annotation file; annotation ids count from 1.

    Difficult objects carry `"difficult": 1`, which `load_coco_annotations` reads and pycocotools
    does not. Image entries hold ids alone, and with masks the size of images that have objects.
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
    annotations = [
        {"id": i, **dict(zip(keys, row, strict=True))} for i, row in enumerate(columns, 1)
    ]
    images: dict[int, dict[str, Any]] = {image: {"id": image} for image in table.image_ids.tolist()}
    if table.masks is not None:
        segmentations = segmentations_of(table.masks)
        for annotation, segmentation in zip(annotations, segmentations, strict=True):
            annotation["segmentation"] = segmentation
            height, width = segmentation["size"]
            images[annotation["image_id"]] |= {"height": height, "width": width}
    content = {
        "images": list(images.values()),
        "categories": [{"id": int(category), "name": name} for category, name in names],
        "annotations": annotations,
    }
    write_text(path, json.dumps(content))


def _xywh(table: DetectionTable | GroundTruthTable) -> list[list[float]]:
    rows: list[list[float]] = np.hstack([table.boxes[:, :2], box_sizes(table)]).tolist()
    return rows


def _read(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None


def _objects(
    entries: list[Any], image_ids: Any, category_ids: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image id, label and xywh of each entry; `category_ids` in the order of the labels."""
    image_id = np.array(column(entries, "image_id", integer, where), np.int64)
    category_id = np.array(column(entries, "category_id", integer, where), np.int64)
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
    boxes = np.array(column(entries, "bbox", box, where), np.float64).reshape(-1, 4)
    return image_id, labels, boxes
