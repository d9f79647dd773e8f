"""Tables from and to files in COCO format, whose boxes are x, y, width, height; boxes before NMS.

Every error is one line that names the file, the entry and the value.
"""

import dataclasses
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.coco_format.federated import LISTS
from harmonic_jax.coco_format.files import (
    CocoFile,
    EntryFault,
    federation_of,
    images_of,
    objects_of,
    read_coco_file,
    read_results,
    says_mask,
)
from harmonic_jax.coco_format.values import Id, as_int64, run_lengths, side, unknown
from harmonic_jax.files import replacing, write_text
from harmonic_jax.json_file import JsonFileError, shown
from harmonic_jax.masks import RleTable, encode_segmentations
from harmonic_jax.metrics.coco import coco_metrics
from harmonic_jax.metrics.matching import IouType
from harmonic_jax.metrics.params import COCO_PARAMS, CocoParams
from harmonic_jax.metrics.tables import (
    DetectionTable,
    GroundTruthTable,
    as_column,
    box_sizes,
    check_labels,
)

_LOG = logging.getLogger(__name__)
MOST_BYTES = 2**32  # of boxes before NMS, 100 million
_RAW_COLUMNS = ("image_id", "boxes", "scores", "category_id")


class MaskError(JsonFileError):
    """A file whose boxes may be good, and whose masks are not."""


def coco_metrics_of_files(
    annotations: str | Path,
    results: str | Path,
    *,
    iou_type: IouType = "bbox",
    params: CocoParams = COCO_PARAMS,
) -> dict[str, float]:
    """`coco_metrics` of a COCO or LVIS annotation file and a COCO results file.

    Args:
      annotations: the file with "images", "categories" and "annotations".
      results: the list of detections.
      iou_type: "bbox", the boxes, or "segm", the masks.
      params: as for `coco_metrics`.

    Raises:
      OSError: a file cannot be read.
      ValueError: it is not what it should be; the message names the entry and the value.
      ConfigError: a class or an image of `params` is not in the annotations.
    """
    masks = iou_type == "segm"
    truth = load_coco_annotations(annotations, masks=masks)
    found = load_coco_results(results, truth, masks=masks)
    return coco_metrics(truth, found, iou_type=iou_type, params=params)


def load_coco_annotations(path: str | Path, *, masks: bool = False) -> GroundTruthTable:
    """Reads a COCO annotation file; see `ground_truth_from_coco`."""
    return ground_truth_from_coco(read_coco_file(path, segmentations=masks), masks=masks)


def ground_truth_from_coco(file: CocoFile, *, masks: bool = False) -> GroundTruthTable:
    """The table of a COCO annotation file.

    Classes are in the order of their category ids; of several with one name each is called
    "NAME (id ID)", which is logged. Where an annotation lacks them, `iscrowd` is 0 and `area` the
    box's. `difficult`, which COCO does not have, is read where it is there. Annotation ids are not
    used: pycocotools takes an object with the id 0 for an unmatched one.

    Args:
      file: Its lists, as `coco_file` and `read_coco_file` give them.
      masks: Also draw the segmentations, where the file has them: polygons or run lengths.

    Raises:
      ValueError: A list or a field is missing or wrong, or an id is not known; with `masks`, some
        objects have a usable segmentation and some have none.
    """
    for told in file.same_names:
        _LOG.warning("%s: %s", file.name, told)

    def refuse(fault: EntryFault) -> None:
        raise JsonFileError(f"{file.name}: {fault}")

    images = images_of(file, refuse)
    objects = list(objects_of(file, images, refuse))
    for item in objects:
        if item.xywh[2] < 0 or item.xywh[3] < 0:
            raise JsonFileError(
                f"{file.name}: annotations[{item.row}]: bbox is {shown(item.xywh)}; its width and "
                "height must be >= 0"
            )
    federation = federation_of(file, images)
    xywh = np.array([item.xywh for item in objects], np.float64).reshape(-1, 4)
    area = np.array([item.area for item in objects], np.float64)
    keys = {key: as_int64(key) for key in images}
    sizes = [
        [side(image.get(key)) or 0 for key in ("height", "width")] for image in images.values()
    ]
    try:
        table = GroundTruthTable(
            image_ids=np.array(list(keys.values()), np.int64),
            image_id=np.array([keys[item.image] for item in objects], np.int64),
            boxes=_corners(xywh),
            labels=np.array([item.label for item in objects], np.int32),
            is_crowd=np.array([item.is_crowd for item in objects], bool),
            is_difficult=np.array([item.is_difficult for item in objects], bool),
            area=np.where(np.isnan(area), xywh[:, 2] * xywh[:, 3], area),
            class_names=file.class_names,
            category_ids=file.category_ids,
            sizes=xywh[:, 2:],
            image_sizes=np.array(sizes, np.int32).reshape(-1, 2),
            original_ids={value: key for key, value in keys.items() if key != value},
            federation=federation,
        )
    except ValueError as error:
        raise JsonFileError(f"{file.name}: {error}") from None
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
    sizes = _image_sizes(truth, truth.image_id)
    unsized = np.flatnonzero((sizes == 0).any(axis=1))
    if len(unsized):
        key = int(truth.image_id[unsized[0]])
        owner = shown(truth.original_ids.get(key, key))
        raise MaskError(f"{file.name}: image {owner} has no height and width; its masks need them")
    masks, faults = encode_segmentations(segmentations, sizes)
    if faults:
        where = f"{file.name}: annotations[{faults[0].row}]"
        raise MaskError(f"{where} has no usable mask: {faults[0].message}")
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
    results, name = read_results(path), str(path)
    image_id = _known_images([result.image_id for result in results], ground_truth, name)
    labels = _known_labels([result.category_id for result in results], ground_truth, name)
    is_masked = [says_mask(result.segmentation) for result in results]
    if masks is None:
        masks = bool(results) and all(is_masked)
        if any(is_masked) and not masks:
            row = is_masked.index(False)
            _LOG.warning("%s[%d] has no mask, others have: masks are left out", name, row)
    boxless = [row for row, result in enumerate(results) if result.bbox is None]
    rows = list(range(len(results))) if masks else boxless
    sizes = _image_sizes(ground_truth, image_id[rows])
    drawn = _detected_masks([results[row].segmentation for row in rows], rows, sizes, name)
    numbers = itertools.chain.from_iterable(result.bbox or (0.0,) * 4 for result in results)
    xywh = np.fromiter(numbers, np.float64, 4 * len(results)).reshape(-1, 4)
    tight = drawn.boxes()[np.searchsorted(rows, boxless)]
    xywh[boxless] = np.hstack([tight[:, :2], tight[:, 2:] - tight[:, :2]])
    try:
        return DetectionTable(
            image_id=image_id,
            boxes=_corners(xywh),
            scores=np.array([result.score for result in results], np.float64),
            labels=labels,
            sizes=xywh[:, 2:],
            masks=drawn if masks else None,
        )
    except ValueError as error:
        raise JsonFileError(f"{name}: {error}") from None


def _corners(xywh: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # the tables refuse what is not finite
        return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])


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
    check_labels("detection", detections.image_id, detections.labels, len(category_ids))
    entries = _entries(detections, category_ids, original_ids or {})
    for entry, score in zip(entries, detections.scores.tolist(), strict=True):
        entry["score"] = score
    write_text(path, json.dumps(entries))


def save_coco_annotations(
    path: str | Path, ground_truth: GroundTruthTable, file_names: Mapping[int, str] | None = None
) -> None:
    """Writes the table as a COCO annotation file; annotation ids count from 1.

    Difficult objects carry `"difficult": 1`, which `load_coco_annotations` reads and pycocotools
    does not. Image entries hold ids, and sizes and file names (by the table's ids) where known.
    """
    table, named = ground_truth, file_names or {}
    annotations = _entries(table, table.category_ids, table.original_ids)
    for row, annotation in enumerate(annotations):
        annotation |= {
            "id": row + 1,
            "area": float(table.area[row]),
            "iscrowd": int(table.is_crowd[row]),
            "difficult": int(table.is_difficult[row]),
        }
    sizes = dict(zip(table.image_ids.tolist(), _image_sizes(table, table.image_ids), strict=True))
    if table.masks is not None:
        sizes |= dict(zip(table.image_id.tolist(), table.masks.sizes, strict=True))
    images: list[dict[str, Any]] = [
        {"id": table.original_ids.get(image, image)}
        | ({"height": int(height), "width": int(width)} if height and width else {})
        | ({"file_name": named[image]} if image in named else {})
        for image, (height, width) in sizes.items()
    ]
    names = zip(table.category_ids, table.class_names, strict=True)
    categories = [{"id": int(category), "name": name} for category, name in names]
    if federation := table.federation:
        by_id = dict(zip(sizes, images, strict=True))
        for key, field in LISTS.items():
            for entry in images:
                entry[field] = []
            for image, label in getattr(federation, key).tolist():
                if image in by_id:
                    by_id[image][field].append(int(table.category_ids[label]))
        for category, frequency in zip(categories, federation.frequencies, strict=False):
            category["frequency"] = frequency
    content = {
        "info": {},  # without it some versions of pycocotools cannot load results
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    write_text(path, json.dumps(content))


def save_raw(path: Path, boxes: DetectionTable, category_ids: tuple[int, ...]) -> None:
    """Writes boxes as NumPy columns: a COCO results file of them would be several times larger."""
    category_id = np.array(category_ids, np.int64)[boxes.labels]
    columns = (boxes.image_id, boxes.boxes.astype(np.float32), boxes.scores, category_id)
    with replacing(path) as partial:
        np.savez_compressed(partial, **dict(zip(_RAW_COLUMNS, columns, strict=True)))


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
        image_id = _known_images(images.tolist(), truth, str(path))
        labels = _known_labels(categories, truth, str(path))
        return DetectionTable(image_id, boxes, scores, labels)
    except JsonFileError:  # of ids, and names the file
        raise
    except Exception as error:  # damaged archives raise anything, OSError as well
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a file of boxes before NMS: {reason}") from None


def _read_columns(path: Path) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        missing = [name for name in _RAW_COLUMNS if name not in archive.files]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        size = sum(archive.zip.getinfo(f"{name}.npy").file_size for name in _RAW_COLUMNS)
        if size > MOST_BYTES:
            raise ValueError(
                f"its columns are {size / 2**30:.1f} GiB; at most {MOST_BYTES >> 30} are read"
            )
        return [np.asarray(archive[name]) for name in _RAW_COLUMNS]


def _entries(
    table: DetectionTable | GroundTruthTable,
    category_ids: Sequence[int],
    original_ids: Mapping[int, Id],
) -> list[dict[str, Any]]:
    """What entries of both kinds of files have."""
    columns = zip(
        table.image_id.tolist(),
        np.asarray(category_ids, np.int64)[table.labels].tolist(),
        np.hstack([table.boxes[:, :2], box_sizes(table)]).tolist(),
        strict=True,
    )
    entries: list[dict[str, Any]] = [
        {"image_id": original_ids.get(image, image), "category_id": category, "bbox": xywh}
        for image, category, xywh in columns
    ]
    if table.masks is not None:
        for entry, rle in zip(entries, table.masks, strict=True):
            entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return entries


def _image_sizes(truth: GroundTruthTable, image_id: np.ndarray) -> np.ndarray:
    """Height and width of images, int [n, 2]; 0 where not known."""
    if truth.image_sizes is None:
        return np.zeros((len(image_id), 2), np.int32)
    order = np.argsort(truth.image_ids)
    return truth.image_sizes[order[np.searchsorted(truth.image_ids, image_id, sorter=order)]]


def _known_images(written: Sequence[Id], truth: GroundTruthTable, name: str) -> np.ndarray:
    """The image ids of entries as the table has them, int64 [n]; refuses others."""
    ids = np.array(written)
    if ids.dtype != np.int64:
        ids = np.array([as_int64(value) for value in written], np.int64)
    rows = np.flatnonzero(~np.isin(ids, truth.image_ids))
    if len(rows):
        known = {*truth.image_ids.tolist(), *truth.original_ids.values()}
        told = unknown(written[rows[0]], known, "the ground truth")
        raise JsonFileError(f"{name}[{rows[0]}]: image_id {told}")
    return ids


def _known_labels(
    category_ids: Sequence[int] | np.ndarray, truth: GroundTruthTable, name: str
) -> np.ndarray:
    """The labels of entries, 0..k-1 in the order of the table's classes; refuses others."""
    ids: np.ndarray = np.asarray(category_ids).astype(np.int64)
    known = np.array(truth.category_ids, np.int64)
    rows = np.flatnonzero(~np.isin(ids, known))
    if len(rows):
        raise JsonFileError(
            f"{name}[{rows[0]}]: category_id {ids[rows[0]]} is not in the ground truth, whose ids "
            f"are {shown(truth.category_ids)}"
        )
    order = np.argsort(known)
    labels: np.ndarray = order[np.searchsorted(known, ids, sorter=order)]
    return labels


def _detected_masks(
    segmentations: list[Any], rows: list[int], sizes: np.ndarray, name: str
) -> RleTable:
    """The masks of some rows of the entries, and of images of these sizes, 0 where not known."""
    for row, segmentation in zip(rows, segmentations, strict=True):
        if run_lengths(segmentation) is None:
            raise MaskError(
                f"{name}[{row}]: segmentation is {shown(segmentation)}; it must be "
                f"{run_lengths.__doc__}"
            )
    stated = np.array([s["size"] for s in segmentations], np.int64).reshape(-1, 2)
    expected = np.where((sizes == 0).any(axis=1, keepdims=True), stated, sizes)
    drawn, faults = encode_segmentations(segmentations, expected)
    if faults:
        row = rows[faults[0].row]
        raise MaskError(f"{name}[{row}]: segmentation: {faults[0].message}")
    return drawn
