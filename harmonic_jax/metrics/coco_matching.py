"""Which detection finds which object, by COCO's greedy rule, for a whole data set at once.

Detections of one image and class choose in the order of their scores. Each takes, among the
objects still free that it overlaps enough, the one of the largest IoU, the last of equals; objects
that count come before ignored ones, however large the overlap. A crowd region is never used up.

The choice is made for every IoU threshold and every area range at once: a match mask is an int64
in which bit a * 10 + t stands for area range a and threshold t. Only pairs that overlap by at
least the lowest threshold can match, and they are few; the first choices of all groups are
settled together, then the second ones, and so on.
"""

import dataclasses
from typing import Literal

import numpy as np

from harmonic_jax.metrics.columns import check_labels
from harmonic_jax.metrics.mask_overlaps import overlapping_masks
from harmonic_jax.metrics.tables import (
    DetectionTable,
    GroundTruthTable,
    box_sizes,
    known_masks,
)

IouType = Literal["bbox", "segm"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Square pixels; both ends belong to the range.
AREA_RANGES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
MAX_DETECTIONS = 100

_T = len(IOU_THRESHOLDS)
_BITS = np.arange(len(AREA_RANGES) * _T)
_FIRST_OF_AREA = 1 << _BITS[::_T]
_ALL_OF_AREA = _FIRST_OF_AREA * ((1 << _T) - 1)


@dataclasses.dataclass(frozen=True)
class Matching:
    """Detections that count, ordered by class, then by falling score, then by image.

    Attributes:
      label: [d].
      rank: [d], 0 for the best detection of its image and class; the first 100 are here.
      is_sized: bool [d, areas], whether the detection's own area lies in the range.
      matched: int64 [d], the thresholds and area ranges at which it takes an object.
      ignored: int64 [d], those of `matched` at which that object is an ignored one.
      is_counted: bool [g, areas], the objects to find, in the order of the table.
    """

    label: np.ndarray
    rank: np.ndarray
    is_sized: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    is_counted: np.ndarray


def match_detections(truth: GroundTruthTable, found: DetectionTable, iou_type: IouType) -> Matching:
    """Matches the best 100 detections of each image and class, by their boxes or their masks.

    Raises:
      ValueError: A detection of an image or a class that the ground truth does not have; "segm"
        without masks, or with one that is not of its image's size.
    """
    num_classes = len(truth.class_names)
    check_labels("detection", found.image_id, found.labels, num_classes)
    images = np.sort(truth.image_ids)
    image = _position(images, found.image_id)
    by_group, to_class = _orders(image, found)
    group = (image * num_classes + found.labels)[by_group]  # rising
    rank = _rank_in_run(group)
    truth_group = np.searchsorted(images, truth.image_id) * num_classes + truth.labels
    row, gt = _pairs(group, rank, truth_group)

    if iou_type == "segm":
        masks = known_masks(found, "detection").take(by_group)
        truth_masks = known_masks(truth, "ground truth")
        row, gt, iou = overlapping_masks(
            row, gt, group, masks, truth_masks, truth.is_crowd, least=IOU_THRESHOLDS[0]
        )
        area = masks.areas()
    else:
        boxes = np.hstack([found.boxes[:, :2], box_sizes(found)])[by_group]
        truth_boxes = np.hstack([truth.boxes[:, :2], box_sizes(truth)])
        row, gt, iou = _overlapping_boxes(row, gt, boxes, truth_boxes, truth.is_crowd)
        area = boxes[:, 2] * boxes[:, 3]
    is_counted = _in_ranges(truth.area) & ~(truth.is_crowd | truth.is_difficult)[:, None]
    matched, ignored = _choose(row, gt, iou, group, is_counted, truth.is_crowd)

    to_class = to_class[rank[to_class] < MAX_DETECTIONS]
    return Matching(
        label=found.labels[by_group][to_class],
        rank=rank[to_class],
        is_sized=_in_ranges(area)[to_class],
        matched=matched[to_class],
        ignored=ignored[to_class],
        is_counted=is_counted,
    )


def unpack(masks: np.ndarray) -> np.ndarray:
    """The bits of match masks [n], as bool [n, areas * thresholds]."""
    return (masks[:, None] >> _BITS & 1).astype(bool)


def _position(images: np.ndarray, image_id: np.ndarray) -> np.ndarray:
    position = np.searchsorted(images, image_id)
    known = np.append(images, 0)[position] == image_id
    known &= position < len(images)
    if not known.all():
        row = int(np.argmin(known))
        raise ValueError(
            f"detection {row} is of image {image_id[row]}, which the ground truth does not have"
        )
    return position


def _orders(image: np.ndarray, found: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows by image, class, score; and of that order the positions by class, score, image.

    Equal scores stay in the order of the table.
    """
    by_image = _stable_argsort(image)
    by_score = by_image[np.argsort(-found.scores[by_image], kind="stable")]
    by_class = by_score[_stable_argsort(found.labels[by_score])]
    to_group = _stable_argsort(image[by_class])
    to_class = np.empty_like(to_group)
    to_class[to_group] = np.arange(len(to_group))
    return by_class[to_group], to_class


def _stable_argsort(values: np.ndarray) -> np.ndarray:
    """Small types are sorted by radix, ten times faster than int64."""
    dtype = np.min_scalar_type(int(values.max())) if values.size else np.uint8
    return np.argsort(values.astype(dtype), kind="stable")


def _rank_in_run(values: np.ndarray) -> np.ndarray:
    """0, 1, 2, .. within each run of equal values."""
    place = np.arange(len(values))
    goes_on = np.zeros(len(values), bool)
    goes_on[1:] = values[1:] == values[:-1]
    return place - np.maximum.accumulate(np.where(goes_on, 0, place))


def _pairs(
    group: np.ndarray, rank: np.ndarray, truth_group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Every (detection, object) of the same image and class, by detection."""
    gt_order = np.argsort(truth_group, kind="stable")
    first = np.searchsorted(truth_group[gt_order], group, side="left")
    count = np.searchsorted(truth_group[gt_order], group, side="right") - first
    rows = np.flatnonzero((count > 0) & (rank < MAX_DETECTIONS))
    first, count = first[rows], count[rows]
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(rows, count), gt_order[np.repeat(first, count) + offset]


def _overlapping_boxes(
    row: np.ndarray, gt: np.ndarray, found: np.ndarray, truth: np.ndarray, is_crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs that can match, with their IoU; boxes are x, y, width, height.

    The IoU with a crowd region is the share of the detection inside it.
    """
    inter = np.ones(len(row))
    for axis in (0, 1):  # x alone separates most boxes
        start, size = found[:, axis], found[:, axis + 2]
        truth_start, truth_size = truth[:, axis], truth[:, axis + 2]
        end = np.minimum((start + size)[row], (truth_start + truth_size)[gt])
        side = end - np.maximum(start[row], truth_start[gt])
        meets = side > 0
        row, gt, inter = row[meets], gt[meets], (inter * side)[meets]
    area, truth_area = found[:, 2] * found[:, 3], truth[:, 2] * truth[:, 3]
    union = np.where(is_crowd[gt], area[row], area[row] + truth_area[gt] - inter)
    iou = inter / union
    can = iou >= IOU_THRESHOLDS[0]
    return row[can], gt[can], iou[can]


def _choose(
    row: np.ndarray,
    gt: np.ndarray,
    iou: np.ndarray,
    group: np.ndarray,
    is_counted: np.ndarray,
    is_crowd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of what each detection takes: `matched` and, of that, `ignored`."""
    reached = (1 << np.searchsorted(IOU_THRESHOLDS, iou, side="right")) - 1
    reached = reached * _FIRST_OF_AREA.sum()
    counted = is_counted @ _ALL_OF_AREA
    order = np.lexsort((-gt, -iou, row))
    row, gt, reached = row[order], gt[order], reached[order]
    # Each detection asks for the objects that count, then for the ignored ones.
    offer = np.concatenate([reached & counted[gt], reached & ~counted[gt]])
    is_second = np.repeat([0, -1], len(row))
    row, gt = np.tile(row, 2), np.tile(gt, 2)
    order = np.argsort(row, kind="stable")
    order = order[offer[order] != 0]
    turn = _rank_in_run(group[row[order]])
    order = order[np.argsort(turn, kind="stable")]

    matched = np.zeros(len(group), np.int64)
    ignored = np.zeros(len(group), np.int64)
    taken = np.zeros(len(is_crowd), np.int64)
    used_up = np.where(is_crowd, 0, -1)
    for now in np.split(order, np.cumsum(np.bincount(turn))[:-1]):  # one choice of each group
        r, g = row[now], gt[now]
        takes = offer[now] & ~matched[r] & ~taken[g]
        matched[r] |= takes
        ignored[r] |= takes & is_second[now]
        taken[g] |= takes & used_up[g]
    return matched, ignored


def _in_ranges(area: np.ndarray) -> np.ndarray:
    low, high = np.array(list(AREA_RANGES.values())).T
    return (area[:, None] >= low) & (area[:, None] <= high)
