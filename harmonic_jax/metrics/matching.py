"""Which detection finds which object, by COCO's greedy rule, for a whole data set at once.

Detections of one image and class choose in the order of their scores. Each takes, among the
objects still free that it overlaps enough, the one of the largest IoU, the last of equals; objects
that count come before ignored ones, however large the overlap. A crowd region is never used up.

The choice is made for every IoU threshold and every area range at once: of T thresholds, bit
a * T + t of an int64 stands for area range a and threshold t. Only pairs that overlap can match,
and they are few; the first choices of all groups (an image and class) are settled together, then
the second ones, and so on.

Source: pycocotools.cocoeval, whose behaviour defines COCO's evaluation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from harmonic_jax.masks.rle import RleTable
from harmonic_jax.metrics.tables import (
    DetectionTable,
    GroundTruthTable,
    box_sizes,
    image_places,
    image_ranks,
    known_masks,
)

IouType = Literal["bbox", "segm"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
LEAST_OF_IGNORED = 0.5  # a detection must not vanish because it touches a crowd
# Square pixels; both ends belong to the range.
AREA_RANGES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
MOST_BITS = 62  # of a matching
_PAIRS_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs of a detection and an object of one image that share some area, by their rows.

    Images are named by their positions in `GroundTruthTable.image_ids`.

    Attributes:
      detection: int64 [p].
      object: int64 [p].
      iou: float64 [p], > 0; with a crowd region the share of the detection that lies inside.
      same_class: bool [p].
      image: int64 [d], the image of every detection.
      object_image: int64 [g], the image of every object.
      rank: int64 [d], 0 for the best detection of its image and class; federated: of its image.
      max_detections: how many of each are matched, the best ones.
      order: int64 [m], those: by class, then by falling score, then by the data set's own image id,
        then by row.
    """

    truth: GroundTruthTable
    found: DetectionTable
    iou_type: IouType
    detection: np.ndarray
    object: np.ndarray
    iou: np.ndarray
    same_class: np.ndarray
    image: np.ndarray
    object_image: np.ndarray
    rank: np.ndarray
    max_detections: int
    order: np.ndarray

    @functools.cached_property
    def is_ignored_object(self) -> np.ndarray:
        """Crowd regions and difficult objects, bool [g]."""
        return self.truth.is_crowd | self.truth.is_difficult

    @functools.cached_property
    def area(self) -> np.ndarray:
        """Of every detection its box's or its mask's, [d], square pixels."""
        if self.iou_type == "segm":
            return known_masks(self.found, "detection").areas()
        return box_sizes(self.found).prod(axis=1)

    @functools.cached_property
    def is_unjudged(self) -> np.ndarray:
        """Detections that are no false positives, whatever they overlap (LVIS), bool [d]."""
        if self.truth.federation is None:
            return np.zeros(len(self.image), bool)
        tables = self.found, self.truth
        found, objects = (np.column_stack([t.image_id, t.labels]) for t in tables)
        return ~self.truth.federation.is_judged(found, objects) | (self.area <= 0)

    @functools.cached_property
    def of_own_class(self) -> np.ndarray:
        """The pairs of a detection with an object of its class that counts, bool [p]."""
        return self.same_class & ~self.is_ignored_object[self.object]


@dataclasses.dataclass(frozen=True, eq=False)
class Positives:
    """True and false positives at one IoU threshold, in one area range.

    Attributes:
      object, iou: int64 and float64 [d], the object a true positive takes, -1 for all others; 0.
      is_true, is_false: bool [d]. What is neither is left out: on an ignored object, of another
        range, or beyond the best `max_detections` of image and class.
      is_counted: bool [g], the objects to find.
    """

    object: np.ndarray
    iou: np.ndarray
    is_true: np.ndarray
    is_false: np.ndarray
    is_counted: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """What each detection takes, at T thresholds in each of A area ranges.

    Attributes:
      num_thresholds: T.
      matched: int64 [d], the bits at which a detection takes an object.
      ignored: int64 [d], those of `matched` at which that object is an ignored one.
      is_sized: bool [d, areas], whether the detection's own area lies in the range; not unjudged.
      is_counted: bool [g, areas], the objects to find.
      taken: the choices of objects that count, detection, object, IoU and bits: [c] each.
    """

    overlaps: Overlaps
    num_thresholds: int
    matched: np.ndarray
    ignored: np.ndarray
    is_sized: np.ndarray
    is_counted: np.ndarray
    taken: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

    def unpack(self, bits: np.ndarray, area: int) -> np.ndarray:
        """The bits [n] of one area range, as bool [n, T]."""
        places = np.arange(self.num_thresholds) + area * self.num_thresholds
        return (bits[:, None] >> places & 1).astype(bool)

    def positives(self, threshold: int = 0, area: int = 0) -> Positives:
        """Those at one of the thresholds, by its index, in one of the area ranges."""
        bit = area * self.num_thresholds + threshold
        here = self.taken[3] >> bit & 1 > 0
        detection, obj, iou = (column[here] for column in self.taken[:3])
        objects, ious = np.full(len(self.matched), -1, np.int64), np.zeros(len(self.matched))
        objects[detection], ious[detection] = obj, iou
        is_best = self.overlaps.rank < self.overlaps.max_detections
        is_free = (self.matched >> bit & 1) == 0
        return Positives(
            object=objects,
            iou=ious,
            is_true=objects >= 0,
            is_false=is_free & self.is_sized[:, area] & is_best,
            is_counted=self.is_counted[:, area],
        )


def find_overlaps(
    truth: GroundTruthTable,
    found: DetectionTable,
    *,
    own_class: bool = False,
    limit: int | None = None,
    least: float = 0.0,
    iou_type: IouType = "bbox",
) -> Overlaps:
    """Compares every detection with the objects of its image.

    Args:
      own_class: only with objects of its class.
      limit: only the best detections of each image and class, so many; None: all, of which the
        best 100 are matched. Of each image, and 300, where the ground truth is federated.
      least: the smallest IoU of a pair; 0: any that share area.

    Raises:
      ValueError: a detection of an image or a class that the ground truth does not have; "segm"
        without masks, or with one that is not of its image's size.
    """
    num_classes = len(truth.class_names)
    by_id, place = np.argsort(truth.image_ids), image_places(truth, found)
    image = by_id[place]
    object_image = by_id[np.searchsorted(truth.image_ids, truth.image_id, sorter=by_id)]
    by_score, by_class = _orders(image_ranks(truth)[place], found)
    group = image * num_classes + found.labels
    ranked, key = (by_class, group) if truth.federation is None else (by_score, image)
    ranked = ranked[_stable_argsort(place[ranked])]
    rank = np.empty(len(group), np.int64)
    rank[ranked] = rank_in_runs(key[ranked])
    most = limit or truth.max_detections
    rows = np.arange(len(rank)) if limit is None else np.flatnonzero(rank < limit)
    if own_class:
        pairs = _pairs(rows, group, object_image * num_classes + truth.labels)
    else:
        pairs = _pairs(rows, image, object_image)
    if iou_type == "segm":
        masks = known_masks(found, "detection"), known_masks(truth, "ground truth")
        detection, obj, iou = _mask_overlaps(pairs, group, *masks, truth.is_crowd, least)
    else:
        detection, obj, iou = _box_overlaps(pairs, truth, found, least=least)
    return Overlaps(
        truth=truth,
        found=found,
        iou_type=iou_type,
        detection=detection,
        object=obj,
        iou=iou,
        same_class=found.labels[detection] == truth.labels[obj],
        image=image,
        object_image=object_image,
        rank=rank,
        max_detections=most,
        order=by_class[rank[by_class] < most],
    )


def match_detections(
    overlaps: Overlaps,
    thresholds: Sequence[float] | np.ndarray = IOU_THRESHOLDS,
    areas: Iterable[tuple[float, float]] = AREA_RANGES.values(),
) -> Matching:
    """Matches the best detections of each image and class, by their boxes or their masks.

    Args:
      thresholds: the least IoUs, rising; at 0 any shared area will do, but an ignored object
        (crowd, difficult, of another area range) then needs at least .5.
      areas: the area ranges; with the thresholds at most `MOST_BITS` combinations.
    """
    truth, found = overlaps.truth, overlaps.found
    ranges = np.array(list(areas))
    is_counted = _in_ranges(truth.area, ranges) & ~overlaps.is_ignored_object[:, None]
    use = overlaps.same_class & (overlaps.iou >= thresholds[0])
    use &= overlaps.rank[overlaps.detection] < overlaps.max_detections
    row, obj, iou = overlaps.detection[use], overlaps.object[use], overlaps.iou[use]
    group = overlaps.image * len(truth.class_names) + found.labels

    # Each detection asks for the objects that count, then for the ignored ones.
    order = np.lexsort((-obj, -iou, group[row] * overlaps.max_detections + overlaps.rank[row]))
    row, obj, iou = row[order], obj[order], iou[order]
    first_bits = 1 << np.arange(len(ranges)) * len(thresholds)
    reached = (1 << np.searchsorted(thresholds, iou, side="right")) - 1
    reached = reached * first_bits.sum()
    counted = is_counted @ (first_bits * ((1 << len(thresholds)) - 1))
    is_near = iou >= (0 if thresholds[0] else LEAST_OF_IGNORED)
    offer = np.concatenate([reached & counted[obj], np.where(is_near, reached & ~counted[obj], 0)])
    order = np.argsort(np.tile(np.arange(len(row)) - rank_in_runs(row), 2), kind="stable")
    order = order[offer[order] != 0]
    is_second = np.repeat([0, -1], len(row))
    row, obj, iou = np.tile(row, 2), np.tile(obj, 2), np.tile(iou, 2)
    turn = rank_in_runs(group[row[order]])
    order = order[np.argsort(turn, kind="stable")]

    matched, ignored = np.zeros((2, len(group)), np.int64)
    used_up, unused = np.zeros(len(truth.area), np.int64), np.where(truth.is_crowd, 0, -1)
    takes = np.zeros(len(offer), np.int64)
    for now in np.split(order, np.cumsum(np.bincount(turn))[:-1]):  # one choice of each group
        r, g = row[now], obj[now]
        takes[now] = offer[now] & ~matched[r] & ~used_up[g]
        matched[r] |= takes[now]
        ignored[r] |= takes[now] & is_second[now]
        used_up[g] |= takes[now] & unused[g]
    chosen = np.flatnonzero(takes[: len(row) // 2])
    return Matching(
        overlaps=overlaps,
        num_thresholds=len(thresholds),
        matched=matched,
        ignored=ignored,
        is_sized=_in_ranges(overlaps.area, ranges) & ~overlaps.is_unjudged[:, None],
        is_counted=is_counted,
        taken=(row[chosen], obj[chosen], iou[chosen], takes[chosen]),
    )


def best_objects(overlaps: Overlaps, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every detection the largest IoU among the pairs in use, and the object or -1.

    Of objects that overlap equally, the first in the table.
    """
    row, obj, iou = overlaps.detection[use], overlaps.object[use], overlaps.iou[use]
    best = np.zeros(len(overlaps.image))
    best_object = np.full(len(overlaps.image), -1, np.int64)
    order = np.lexsort((obj, -iou, row))
    first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
    best[row[first]], best_object[row[first]] = iou[first], obj[first]
    return best, best_object


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


def _orders(image: np.ndarray, found: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows by score, image; and by class, score, image; equals stay in their order."""
    by_image = _stable_argsort(image)
    by_score = by_image[np.argsort(-found.scores[by_image], kind="stable")]
    return by_score, by_score[_stable_argsort(found.labels[by_score])]


def _stable_argsort(values: np.ndarray) -> np.ndarray:
    """Small types are sorted by radix, ten times faster than int64."""
    dtype = np.min_scalar_type(int(values.max())) if values.size else np.uint8
    return np.argsort(values.astype(dtype), kind="stable")


def _pairs(rows: np.ndarray, key: np.ndarray, truth_key: np.ndarray) -> list[np.ndarray]:
    """Every (detection, object) of equal keys, in parts [2, p]: the list of all may be huge."""
    by_key = np.argsort(truth_key, kind="stable")
    first = np.searchsorted(truth_key[by_key], key[rows], side="left")
    count = np.searchsorted(truth_key[by_key], key[rows], side="right") - first
    some = np.flatnonzero(count)
    rows, first, count = rows[some], first[some], count[some]
    ends = np.cumsum(count)
    parts = []
    for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(ends // _PAIRS_AT_ONCE)) + 1):
        n = count[part]
        offset = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        parts.append(
            np.stack([np.repeat(rows[part], n), by_key[np.repeat(first[part], n) + offset]])
        )
    return parts


def _box_overlaps(
    pairs: list[np.ndarray], truth: GroundTruthTable, found: DetectionTable, *, least: float
) -> tuple[np.ndarray, ...]:
    """The pairs that share area, with an IoU of at least `least`: detection, object, IoU."""
    boxes = [np.hstack([table.boxes[:, :2], box_sizes(table)]) for table in (found, truth)]
    area, truth_area = (xywh[:, 2] * xywh[:, 3] for xywh in boxes)
    parts = []
    for row, obj in pairs:
        inter = np.ones(len(row))
        for axis in (0, 1):  # x alone separates most boxes
            (start, truth_start), (size, truth_size) = (
                [xywh[:, column] for xywh in boxes] for column in (axis, axis + 2)
            )
            end = np.minimum((start + size)[row], (truth_start + truth_size)[obj])
            side = end - np.maximum(start[row], truth_start[obj])
            meets = side > 0
            row, obj, inter = row[meets], obj[meets], (inter * side)[meets]
        union = np.where(truth.is_crowd[obj], area[row], area[row] + truth_area[obj] - inter)
        iou = inter / union
        near = iou >= least
        parts.append((row[near], obj[near], iou[near]))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _mask_overlaps(
    pairs: list[np.ndarray],
    group: np.ndarray,
    found: RleTable,
    truth: RleTable,
    is_crowd: np.ndarray,
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs whose masks share area, with an IoU of at least `least`: detection, object, IoU.

    Areas and tight boxes bound the IoU from above; the pixels are compared only where the bound
    leaves it open, and one call of pycocotools serves all pairs of an image and class.
    """
    import pycocotools.mask

    row, obj = np.concatenate(pairs, axis=1)
    wrong = (found.sizes[row] != truth.sizes[obj]).any(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"a detection's mask has the size {found.sizes[row[first]].tolist()} and its image "
            f"{truth.sizes[obj[first]].tolist()} (height, width)"
        )
    area, truth_area = found.areas()[row], truth.areas()[obj]
    box, truth_box = found.boxes()[row], truth.boxes()[obj]
    sides = np.minimum(box[:, 2:], truth_box[:, 2:]) - np.maximum(box[:, :2], truth_box[:, :2])
    inter = np.minimum(np.minimum(area, truth_area), sides.clip(0).prod(axis=1))
    union = np.where(is_crowd[obj], area, area + truth_area - inter)
    can = (inter > 0) & (inter >= least * (1 - 1e-9) * union)  # the product is rounded
    row, obj = row[can], obj[can]
    by_group = np.argsort(group[row], kind="stable")
    row, obj = row[by_group], obj[by_group]
    iou = np.zeros(len(row))
    starts = np.flatnonzero(np.diff(group[row], prepend=-1))
    for start, stop in itertools.pairwise([*starts, len(row)]):
        here = slice(start, stop)
        rows, r = np.unique(row[here], return_inverse=True)
        objects, g = np.unique(obj[here], return_inverse=True)
        crowd = is_crowd[objects].astype(np.uint8).tolist()
        table = pycocotools.mask.iou([found[i] for i in rows], [truth[i] for i in objects], crowd)
        iou[here] = table[r, g]
    near = (iou > 0) & (iou >= least)
    return row[near], obj[near], iou[near]


def _in_ranges(area: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Which of the ranges [a, 2] an area lies in, bool [n, a]; both ends belong to a range."""
    low, high = ranges.T
    return (area[:, None] >= low) & (area[:, None] <= high)
