"""The worst single cases: boxes whose scores and IoUs are furthest apart, and missed objects."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from harmonic_jax.metrics.consistency.study import LOST_FROM, Study
from harmonic_jax.metrics.matching import MAX_DETECTIONS, Overlaps, best_objects

NUM_CASES = 16  # of a group
MOST_OF_IMAGE = 2  # of a group, so that one bad image does not fill it
MARGIN = 0.2
TOUCHES = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """A box to draw: a true object, the detection in question, or another box beside it."""

    box: np.ndarray
    kind: Literal["truth", "found", "other"]
    label: int
    score: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One picture of the page.

    Attributes:
      image_id: as in the ground truth.
      label: its class.
      text: what is seen, in words.
      outlines: what to draw; a true object first where there is one.
    """

    image_id: int
    label: int
    text: str
    outlines: tuple[Outline, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class CaseGroup:
    """Cases of one kind, worst first; `total` counts those not shown too."""

    title: str
    reading: str
    total: int
    cases: tuple[Case, ...]


def worst_cases(study: Study) -> tuple[CaseGroup, ...]:
    """Picks the cases; groups without any are left out.

    At most 16 of a group and 2 of a group's image.
    """
    pairs, describe = study.pairs, _Describer(study)
    gap = pairs.score - pairs.iou
    is_true = study.positives.is_true[pairs.detection]
    touches = pairs.iou >= TOUCHES
    object_image, missed = study.overlaps.object_image, study.missed
    groups = [
        _group(
            "Sure, but badly placed",
            "High score, low IoU with an object of the class: such a box beats better ones in NMS.",
            _ranked(gap, touches & (gap > MARGIN)), pairs.image, describe.detection,
        ),
        _group(
            "Sure, but no such object there",
            f"High score, IoU under {TOUCHES} with every object of the class. Some may show an "
            "object that the annotations lack.",
            _ranked(pairs.score, ~touches & (gap > MARGIN)), pairs.image, describe.detection,
        ),
        _group(
            "Well placed, but unsure",
            "High IoU, low score, and the best that its object has: first to go where scores are "
            "cut off.",
            _ranked(-gap, is_true & (-gap > MARGIN)), pairs.image, describe.detection,
        ),
        _group(
            "Missed objects",
            "No detection takes them at IoU .5. Largest first.",
            missed[np.argsort(-study.truth.area[missed], kind="stable")],
            object_image, describe.missed,
        ),
    ]  # fmt: skip
    best = study.best_boxes
    if best is not None:
        lost = best.before - best.after
        groups.append(
            _group(
                "Better boxes lost in NMS",
                "The best box of an object before NMS, and the best that was kept.",
                best.object[_ranked(lost, lost > LOST_FROM)], object_image, describe.lost,
            )
        )  # fmt: skip
    return tuple(group for group in groups if group.total)


def _ranked(values: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Rows in use, largest value first."""
    rows = np.flatnonzero(use)
    return rows[np.argsort(-values[rows], kind="stable")]


def _group(
    title: str, reading: str, rows: np.ndarray, image: np.ndarray, describe: Callable[[int], Case]
) -> CaseGroup:
    chosen = first_of_images(zip(rows.tolist(), image[rows].tolist(), strict=True))
    return CaseGroup(title, reading, len(rows), tuple(describe(row) for row in chosen))


def first_of_images(rows: Iterable[tuple[int, int]]) -> list[int]:
    """The first rows of (row, image), at most `NUM_CASES`, and `MOST_OF_IMAGE` of an image.

    Example:
      >>> first_of_images([(5, 0), (3, 0), (9, 0), (1, 2)])
      [5, 3, 1]
    """
    chosen: list[int] = []
    seen: dict[int, int] = {}
    for row, image in rows:
        seen[image] = seen.get(image, 0) + 1
        if seen[image] <= MOST_OF_IMAGE:
            chosen.append(row)
        if len(chosen) == NUM_CASES:
            break
    return chosen


class _Describer:
    """Turns rows into cases."""

    def __init__(self, study: Study) -> None:
        self._study = study
        overlaps = study.overlaps
        counted = ~overlaps.is_ignored_object[overlaps.object]
        self._other_iou, self._other = best_objects(overlaps, counted & ~overlaps.same_class)

    def detection(self, row: int) -> Case:
        """Of a row of `Pairs`."""
        study, pairs = self._study, self._study.pairs
        detection, obj = int(pairs.detection[row]), int(pairs.object[row])
        found = self._found(detection)
        text = f"{self._name(found)}: {_numbers(found, pairs.iou[row])}"
        outlines = [found]
        if obj >= 0:
            outlines.insert(0, self._truth(obj))
        other, other_iou = int(self._other[detection]), self._other_iou[detection]
        if other >= 0 and other_iou > max(0.5, pairs.iou[row]):
            outlines.insert(0, self._truth(other))
            text += f"; it overlaps an object of class {self._name(outlines[0])} by {other_iou:.2f}"
        image_id = int(study.truth.image_ids[pairs.image[row]])
        return Case(image_id, found.label, text, tuple(outlines))

    def missed(self, obj: int) -> Case:
        """Of a row of the ground truth."""
        outlines = [self._truth(obj)]
        text = "missed; no box touches it"
        nearest = _best_detection(self._study.overlaps, obj, same_class=False)
        if nearest is not None:
            row, iou = nearest
            outlines.append(self._found(row))
            text = f"missed; the nearest box is of class {self._name(outlines[1])}: "
            text += _numbers(outlines[1], iou)
        return self._of_object(obj, text, outlines)

    def lost(self, obj: int) -> Case:
        """Of a row of the ground truth whose best box was suppressed."""
        study = self._study
        outlines = [self._truth(obj)]
        text = "no box was kept"
        kept = _best_detection(study.overlaps, obj, same_class=True)
        if kept is not None:
            outlines.append(self._found(kept[0]))
            text = f"kept: {_numbers(outlines[1], kept[1])}"
        assert study.raw is not None
        assert study.raw_overlaps is not None
        best = _best_detection(study.raw_overlaps, obj, same_class=True, limit=None)
        assert best is not None  # it lost something
        row, iou = best
        raw = Outline(
            study.raw.boxes[row], "other", outlines[0].label, float(study.raw.scores[row])
        )
        text += f"; before NMS: {_numbers(raw, iou)}"
        return self._of_object(obj, text, [*outlines, raw])

    def _of_object(self, obj: int, text: str, outlines: list[Outline]) -> Case:
        image_id = int(self._study.truth.image_id[obj])
        text = f"{self._name(outlines[0])}: {text}"
        return Case(image_id, outlines[0].label, text, tuple(outlines))

    def _name(self, outline: Outline) -> str:
        return self._study.truth.class_names[outline.label]

    def _truth(self, obj: int) -> Outline:
        truth = self._study.truth
        return Outline(truth.boxes[obj], "truth", int(truth.labels[obj]))

    def _found(self, row: int) -> Outline:
        found = self._study.found
        return Outline(found.boxes[row], "found", int(found.labels[row]), float(found.scores[row]))


def _numbers(outline: Outline, iou: float) -> str:
    return f"score {outline.score:.2f}, IoU {iou:.2f}"


def _best_detection(
    overlaps: Overlaps, obj: int, *, same_class: bool, limit: int | None = MAX_DETECTIONS
) -> tuple[int, float] | None:
    """The row and the IoU of the detection that overlaps an object most."""
    use = overlaps.object == obj
    if same_class:
        use &= overlaps.same_class
    if limit is not None:
        use &= overlaps.rank[overlaps.detection] < limit
    places = np.flatnonzero(use)
    if places.size == 0:
        return None
    best = places[np.argmax(overlaps.iou[places])]
    return int(overlaps.detection[best]), float(overlaps.iou[best])
