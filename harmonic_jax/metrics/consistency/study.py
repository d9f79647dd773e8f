"""What is known of one set of detections: what the report and its pictures are made of."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from harmonic_jax.metrics.matching import (
    IouType,
    Matching,
    Overlaps,
    Positives,
    best_objects,
    find_overlaps,
    match_detections,
)
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, take_rows

AREA_NAMES = ("small", "medium", "large")
AREA_BORDERS = (32.0**2, 96.0**2)  # square pixels
IGNORED_FROM = 0.5
LOST_FROM = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Each detection that counts beside the object of its class that it overlaps most.

    Several detections of one object are all joined with it: the question is whether each score
    tells how good its box is. A detection that overlaps no counted object by an IoU of .5 and an
    ignored one of its class by .5 or more is left out, as COCO's AP at IoU .5 does; so is one of a
    class that its image was not searched for (LVIS).

    Attributes:
      score, iou: float64 [n], as the detector gave it; with the object, 0 where there is none.
      object, detection: int64 [n], their rows in the tables; no object: -1.
      image, label: int64 [n], the position in `GroundTruthTable.image_ids`; 0..k-1.
      area_range: int64 [n], 0 small, 1 medium, 2 large (`AREA_NAMES`): of the object's area,
        where there is none of the detection's own.
      num_ignored: detections left out because they lie on an ignored object, or are not judged.
      num_over_limit: detections left out because 100 of their image and class score higher.
    """

    score: np.ndarray
    iou: np.ndarray
    object: np.ndarray
    detection: np.ndarray
    image: np.ndarray
    label: np.ndarray
    area_range: np.ndarray
    num_ignored: int
    num_over_limit: int

    def __len__(self) -> int:
        return len(self.score)


class BestBoxes(NamedTuple):
    """Of every object to find, the best IoU of a box of its class before NMS and after.

    Attributes:
      object: int64 [n], rows of the ground truth table: neither crowd nor difficult.
      before, after: float64 [n]; 0 where no box overlaps the object. Boxes that are kept count as
        having been there before, as the list of raw boxes may have been cut off.
    """

    object: np.ndarray
    before: np.ndarray
    after: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """Detections beside the ground truth; what is asked for is matched, once.

    Attributes:
      truth: the annotated images.
      found: the detections, after NMS, of these images and classes.
      raw: the boxes before NMS, where they are at hand; with "segm" they need masks too.
      iou_type: every IoU and the detections' areas are of boxes ("bbox") or of masks ("segm").
    """

    truth: GroundTruthTable
    found: DetectionTable
    raw: DetectionTable | None = None
    iou_type: IouType = "bbox"

    @functools.cached_property
    def overlaps(self) -> Overlaps:
        """Of `found` with `truth`.

        Raises:
          ValueError: a detection of an image or a class that the ground truth does not have;
            "segm" without masks, or with one that is not of its image's size.
        """
        return find_overlaps(self.truth, self.found, iou_type=self.iou_type)

    @functools.cached_property
    def raw_overlaps(self) -> Overlaps | None:
        raw = self.raw
        return None if raw is None else find_overlaps(self.truth, raw, iou_type=self.iou_type)

    @functools.cached_property
    def pairs(self) -> Pairs:
        """Each detection beside its best object."""
        return _pairs(self.overlaps, limit=self.overlaps.max_detections)

    @functools.cached_property
    def raw_pairs(self) -> Pairs | None:
        """Each raw box beside its best object."""
        return None if self.raw_overlaps is None else _pairs(self.raw_overlaps, limit=None)

    @functools.cached_property
    def matching(self) -> Matching:
        """One-to-one, at COCO's IoU thresholds."""
        return match_detections(self.overlaps)

    @functools.cached_property
    def matching_any(self) -> Matching:
        """One-to-one, at any IoU above 0."""
        return match_detections(self.overlaps, (0.0,))

    @functools.cached_property
    def positives(self) -> Positives:
        """True and false positives at IoU .5."""
        return self.matching.positives()

    @functools.cached_property
    def is_found(self) -> np.ndarray:
        """Of every object whether a detection takes it at IoU .5, bool [g]."""
        found = np.zeros(len(self.truth.labels), bool)
        found[self.positives.object[self.positives.is_true]] = True
        return found

    @functools.cached_property
    def best_boxes(self) -> BestBoxes | None:
        """What NMS left of each object; None where the boxes before it are not known."""
        if self.raw_overlaps is None:
            return None
        objects = np.flatnonzero(~self.overlaps.is_ignored_object)
        within = self.overlaps.rank[self.overlaps.detection] < self.overlaps.max_detections
        after = _best_ious(self.overlaps, within)[objects]
        before = _best_ious(self.raw_overlaps, np.ones(len(self.raw_overlaps.iou), bool))[objects]
        return BestBoxes(object=objects, before=np.maximum(before, after), after=after)


def area_ranges(area: np.ndarray) -> np.ndarray:
    """0 small, 1 medium, 2 large; a border belongs to the smaller range."""
    return np.searchsorted(AREA_BORDERS, area, side="left")


def ranked_by_iou(overlaps: Overlaps) -> DetectionTable:
    """The detections with their scores replaced by the IoU with their best counted object.

    Only the best 100 of an image and class by their own scores are kept, as COCO counts them:
    the boxes stay the same, their order alone changes.
    """
    best, _ = best_objects(overlaps, overlaps.of_own_class)
    rows = np.flatnonzero(overlaps.rank < overlaps.max_detections)
    return _rescored(overlaps.found, rows, best[rows])


def best_of_each_object(overlaps: Overlaps) -> DetectionTable:
    """Of each counted object the box that overlaps it most, scored by that IoU; nothing else.

    Its AP is what a perfect choice among these boxes would reach: given the boxes before NMS, an
    NMS and scores that know the truth. A box that is the best of two objects is there twice.
    """
    use = overlaps.of_own_class
    row, obj, iou = overlaps.detection[use], overlaps.object[use], overlaps.iou[use]
    order = np.lexsort((row, -iou, obj))
    first = order[np.flatnonzero(np.diff(obj[order], prepend=-1))]
    return _rescored(overlaps.found, row[first], iou[first])


def _rescored(table: DetectionTable, rows: np.ndarray, scores: np.ndarray) -> DetectionTable:
    return dataclasses.replace(take_rows(table, rows), scores=scores)


def _pairs(overlaps: Overlaps, *, limit: int | None) -> Pairs:
    truth, found = overlaps.truth, overlaps.found
    best, obj = best_objects(overlaps, overlaps.of_own_class)
    on_ignored, _ = best_objects(overlaps, overlaps.same_class & ~overlaps.of_own_class)
    is_ignored = (on_ignored >= IGNORED_FROM) | overlaps.is_unjudged
    is_ignored &= best < IGNORED_FROM
    is_over = np.zeros(len(best), bool) if limit is None else overlaps.rank >= limit
    rows = np.flatnonzero(~is_ignored & ~is_over)
    # Row -1 of the longer array is a stand-in for detections without an object.
    area = np.where(obj >= 0, np.append(truth.area, 0.0)[obj], overlaps.area)[rows]
    return Pairs(
        score=found.scores[rows],
        iou=best[rows],
        object=obj[rows],
        detection=rows,
        image=overlaps.image[rows],
        label=found.labels[rows].astype(np.int64),
        area_range=area_ranges(area),
        num_ignored=int((is_ignored & ~is_over).sum()),
        num_over_limit=int(is_over.sum()),
    )


def _best_ious(overlaps: Overlaps, use: np.ndarray) -> np.ndarray:
    """The largest IoU of each object with a box of its class, [g]."""
    use = use & overlaps.same_class
    best = np.zeros(len(overlaps.object_image))
    np.maximum.at(best, overlaps.object[use], overlaps.iou[use])
    return best
