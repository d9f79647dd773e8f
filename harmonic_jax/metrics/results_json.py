"""Tables from and to files in COCO format, whose boxes are x, y, width, height.

Every error is one line that names the file, the entry and the value.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.coco_format.annotations import CocoFile, coco_file, read_coco_file
from harmonic_jax.coco_format.entries import EntryFault, images_of, objects_of
from harmonic_jax.coco_format.values import Id, as_int64, class_id, identity, number, side
from harmonic_jax.files import write_text
from harmonic_jax.json_file import JsonFileError, read_json, shown
from harmonic_jax.metrics.masks_json import (
    annotated_masks,
    boxes_and_masks,
    image_sizes,
    segmentations_of,
)
from harmonic_jax.metrics.result_entries import (
    check_numbers,
    column,
    entries_of,
    known_images,
    labels_of,
)
from harmonic_jax.metrics.tables import (
    DetectionTable,
    GroundTruthTable,
    box_sizes,
    check_labels,
)

_LOG = logging.getLogger(__name__)


def load_coco_annotations(path: str | Path, *, masks: bool = False) -> GroundTruthTable:
    """Reads a COCO annotation file; see `ground_truth_from_coco`."""
    return ground_truth_from_coco(read_coco_file(path, segmentations=masks), masks=masks)


def ground_truth_from_coco(
    content: Any, *, name: str = "annotations", masks: bool = False
) -> GroundTruthTable:
    """The table of a COCO annotation dict.

    Classes are in the order of their category ids; of several with one name each is called
    "NAME (id ID)", which is logged. Where an annotation lacks them, `iscrowd` is 0 and `area` the
    box's. `difficult`, which COCO does not have, is read where it is there. Annotation ids are not
    used: pycocotools takes an object with the id 0 for an unmatched one.

    Args:
      content: A dict with the lists "images", "categories" and "annotations", or a `CocoFile`.
      name: What messages call a dict, a file for instance.
      masks: Also draw the segmentations, where the file has them: polygons or run lengths.

    Raises:
      ValueError: A list or a field is missing or wrong, or an id is not known; with `masks`, some
        objects have a usable segmentation and some have none.
    """
    file = content if isinstance(content, CocoFile) else coco_file(content, name=name)
    for told in file.same_names:
        _LOG.warning("%s: %s", file.name, told)

    def refuse(fault: EntryFault) -> None:
        raise JsonFileError(f"{file.name}: {fault}")

    images = images_of(file, refuse)
    objects = list(objects_of(file, images, refuse))
    xywh = np.array([item.xywh for item in objects], np.float64).reshape(-1, 4)
    check_numbers("bbox", xywh, f"{file.name}: annotations")
    if (xywh[:, 2:] < 0).any():
        row = int(np.argmax((xywh[:, 2:] < 0).any(axis=1)))
        raise JsonFileError(
            f"{file.name}: annotations[{row}]: bbox is {shown(xywh[row].tolist())}; its width and "
            "height must be >= 0"
        )
    area = np.array([item.area for item in objects], np.float64)
    keys = {key: as_int64(key) for key in images}
    sizes = [
        [side(image.get(key)) or 0 for key in ("height", "width")] for image in images.values()
    ]
    table = GroundTruthTable(
        image_ids=np.array(list(keys.values()), np.int64),
        image_id=np.array([keys[item.image] for item in objects], np.int64),
        boxes=np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
        labels=np.array([item.label for item in objects], np.int32),
        is_crowd=np.array([item.is_crowd for item in objects], bool),
        is_difficult=np.array([item.is_difficult for item in objects], bool),
        area=np.where(np.isnan(area), xywh[:, 2] * xywh[:, 3], area),
        class_names=file.class_names,
        category_ids=file.category_ids,
        sizes=xywh[:, 2:],
        image_sizes=np.array(sizes, np.int32).reshape(-1, 2),
        original_ids={value: key for key, value in keys.items() if key != value},
    )
    return with_masks(table, file) if masks else table


def with_masks(truth: GroundTruthTable, file: CocoFile) -> GroundTruthTable:
    """The table of a file, with its segmentations drawn, where it has any.

    Raises:
      ValueError: some objects have a usable segmentation and some have none, or the size of an
        image with objects is not stated.
    """
    segmentations = [annotation.get("segmentation") for annotation in file.annotations]
    if not any(segmentations):
        return truth
    masks = annotated_masks(segmentations, truth, file.name)
    return dataclasses.replace(truth, masks=masks)


def load_coco_results(
    path: str | Path, ground_truth: GroundTruthTable, *, masks: bool | None = None
) -> DetectionTable:
    """Reads detections from a COCO results file, a list of
    {"image_id", "category_id", "bbox", "score"}, and "segmentation" where there are masks.

    A mask is compressed run lengths, {"size": [height, width], "counts": text}. An entry with a
    mask may leave out its box, or have [], which is then the tight one of the mask.

    Args:
      path: The JSON file.
      ground_truth: Gives the images and category ids that are legal.
      masks: Whether the table has masks. None: where every entry has one; where some have, that is
        logged. True: an entry without is refused. False: never; masks only stand in for boxes.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a results file, an entry lacks a field or has a wrong one, or an image
        or category is not in the ground truth.
    """
    name = str(path)
    entries = entries_of(read_json(path), name)
    image_id = known_images(column(entries, "image_id", identity, name), ground_truth, name)
    labels = labels_of(column(entries, "category_id", class_id, name), ground_truth, name)
    xywh, rles = boxes_and_masks(entries, image_sizes(ground_truth, image_id), name, masks=masks)
    scores = np.array(column(entries, "score", number, name), np.float64)
    check_numbers("bbox", xywh, name)
    check_numbers("score", scores, name)
    return DetectionTable(
        image_id=image_id,
        boxes=np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
        scores=scores,
        labels=labels,
        sizes=xywh[:, 2:],
        masks=rles,
    )


def save_coco_results(
    path: str | Path,
    detections: DetectionTable,
    category_ids: Sequence[int],
    original_ids: Mapping[int, Id] | None = None,
) -> None:
    """Writes detections as a COCO results file, which pycocotools reads too.

    Args:
      path: The JSON file; replaced where it exists.
      detections: Every row becomes an entry, in order; with its mask where the table has masks.
      category_ids: The data set's own id of each label.
      original_ids: The data set's own ids of images for which the table has others.
    """
    original_ids = original_ids or {}
    check_labels("detection", detections.image_id, detections.labels, len(category_ids))
    entries = [
        {
            "image_id": original_ids.get(image, image),
            "category_id": category,
            "bbox": box,
            "score": score,
        }
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
    does not. Image entries hold ids, and sizes where they are known.
    """
    table = ground_truth
    images: dict[int, dict[str, Any]] = {
        image: {"id": table.original_ids.get(image, image)} for image in table.image_ids.tolist()
    }
    names = zip(table.category_ids, table.class_names, strict=True)
    columns = zip(
        [images[image]["id"] for image in table.image_id.tolist()],
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
    sizes = image_sizes(table, table.image_ids).tolist()
    for image, size in zip(table.image_ids.tolist(), sizes, strict=True):
        if all(size):
            images[image] |= {"height": size[0], "width": size[1]}
    if table.masks is not None:
        segmentations = segmentations_of(table.masks)
        owners = table.image_id.tolist()
        for annotation, owner, rle in zip(annotations, owners, segmentations, strict=True):
            annotation["segmentation"] = rle
            images[owner] |= {"height": rle["size"][0], "width": rle["size"][1]}
    content = {
        "images": list(images.values()),
        "categories": [{"id": int(category), "name": name} for category, name in names],
        "annotations": annotations,
    }
    write_text(path, json.dumps(content))


def _xywh(table: DetectionTable | GroundTruthTable) -> list[list[float]]:
    rows: list[list[float]] = np.hstack([table.boxes[:, :2], box_sizes(table)]).tolist()
    return rows
