"""Which detections overlap which objects of their image, and by how much, as a sparse list.

Everything in this package starts from this list: the best object of each detection, one-to-one
matchings, the kinds of errors, and the best detection of each object.
"""

import dataclasses

import numpy as np

from harmonic_jax.metrics.columns import check_labels
from harmonic_jax.metrics.tables import (
    DetectionTable,
    GroundTruthTable,
    box_sizes,
)

MAX_DETECTIONS = 100  # of an image and class, as in COCO
_PAIRS_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs of a detection and an object of one image that share some area, of any classes.

    Detections are named by their rows in `DetectionTable`, objects by those in
    `GroundTruthTable`, images by their positions in `GroundTruthTable.image_ids`.

    Attributes:
      detection: int64 [p], rising.
      object: int64 [p].
      iou: float64 [p], > 0; with a crowd region the share of the detection that lies inside.
      same_class: bool [p].
      image: int64 [d], the image of every detection.
      object_image: int64 [g], the image of every object.
      rank: int64 [d], 0 for the detection of the highest score of its image and class.
      is_ignored_object: bool [g], crowd regions and difficult objects.
    """

    detection: np.ndarray
    object: np.ndarray
    iou: np.ndarray
    same_class: np.ndarray
    image: np.ndarray
    object_image: np.ndarray
    rank: np.ndarray
    is_ignored_object: np.ndarray


def find_overlaps(truth: GroundTruthTable, found: DetectionTable) -> Overlaps:
    """Compares every detection with the objects of its image.

    Args:
      truth: the annotated images.
      found: of these images and classes.

    Raises:
      ValueError: a detection of an image or a class that the ground truth does not have.

    Example:
      >>> truth = GroundTruthTable(
      ...     image_ids=[7], image_id=[7], boxes=[[0, 0, 10, 10]], labels=[0], is_crowd=[False],
      ...     is_difficult=[False], area=[100.0], class_names=("cat",), category_ids=(17,),
      ... )
      >>> found = DetectionTable([7, 7], [[0, 0, 10, 8], [20, 0, 30, 8]], [0.9, 0.4], [0, 0])
      >>> overlaps = find_overlaps(truth, found)
      >>> overlaps.detection.tolist(), overlaps.object.tolist(), overlaps.iou.tolist()
      ([0], [0], [0.8])
    """
    check_labels("detection", found.image_id, found.labels, len(truth.class_names))
    image = image_positions(truth, found.image_id, "detection")
    object_image = image_positions(truth, truth.image_id, "object")
    rank = _ranks(image, found)
    detection, obj, iou = _overlapping(truth, found, image, object_image)
    return Overlaps(
        detection=detection,
        object=obj,
        iou=iou,
        same_class=found.labels[detection] == truth.labels[obj],
        image=image,
        object_image=object_image,
        rank=rank,
        is_ignored_object=truth.is_crowd | truth.is_difficult,
    )


def image_positions(truth: GroundTruthTable, image_id: np.ndarray, name: str) -> np.ndarray:
    """Positions in `truth.image_ids`; refuses an id that is not there."""
    order = np.argsort(truth.image_ids)
    place = np.searchsorted(truth.image_ids, image_id, sorter=order)
    known = np.append(truth.image_ids[order], 0)[place] == image_id
    known &= place < len(order)
    if not known.all():
        row = int(np.argmin(known))
        raise ValueError(
            f"{name} {row} is of image {image_id[row]}, which the ground truth does not have"
        )
    return order[place] if len(order) else np.zeros(0, np.int64)


def rank_in_runs(values: np.ndarray) -> np.ndarray:
    """0, 1, 2, .. within each run of equal values.

    Example:
      >>> rank_in_runs(np.array([4, 4, 4, 9, 9])).tolist()
      [0, 1, 2, 0, 1]
    """
    place = np.arange(len(values))
    goes_on = np.zeros(len(values), bool)
    goes_on[1:] = values[1:] == values[:-1]
    return place - np.maximum.accumulate(np.where(goes_on, 0, place))


def _ranks(image: np.ndarray, found: DetectionTable) -> np.ndarray:
    """Of equal scores the earlier row comes first."""
    group = image * (int(found.labels.max(initial=0)) + 1) + found.labels
    order = np.lexsort((-found.scores, group))
    rank = np.empty(len(order), np.int64)
    rank[order] = rank_in_runs(group[order])
    return rank


def _overlapping(
    truth: GroundTruthTable, found: DetectionTable, image: np.ndarray, object_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    by_image = np.argsort(object_image, kind="stable")
    first = np.searchsorted(object_image[by_image], image, side="left")
    count = np.searchsorted(object_image[by_image], image, side="right") - first
    boxes = np.hstack([found.boxes[:, :2], box_sizes(found)])
    truth_boxes = np.hstack([truth.boxes[:, :2], box_sizes(truth)])
    parts = []
    part_of_row = np.cumsum(count) // _PAIRS_AT_ONCE  # the list of all pairs may be huge
    for rows in np.split(np.arange(len(image)), np.flatnonzero(np.diff(part_of_row)) + 1):
        offset = np.arange(count[rows].sum())
        offset -= np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
        row = np.repeat(rows, count[rows])
        obj = by_image[np.repeat(first[rows], count[rows]) + offset]
        parts.append(_measure(row, obj, boxes, truth_boxes, truth.is_crowd))
    row, obj, iou = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return row, obj, iou


def _measure(
    row: np.ndarray, obj: np.ndarray, found: np.ndarray, truth: np.ndarray, is_crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs that share area, with their IoU; boxes are x, y, width, height."""
    inter = np.ones(len(row))
    for axis in (0, 1):  # x alone separates most boxes
        start, size = found[:, axis], found[:, axis + 2]
        truth_start, truth_size = truth[:, axis], truth[:, axis + 2]
        end = np.minimum((start + size)[row], (truth_start + truth_size)[obj])
        side = end - np.maximum(start[row], truth_start[obj])
        meets = side > 0
        row, obj, inter = row[meets], obj[meets], (inter * side)[meets]
    area, truth_area = found[:, 2] * found[:, 3], truth[:, 2] * truth[:, 3]
    union = np.where(is_crowd[obj], area[row], area[row] + truth_area[obj] - inter)
    return row, obj, inter / union
