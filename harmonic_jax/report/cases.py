"""The worst single cases, boxes whose scores and IoUs are furthest apart and missed objects, and
pictures of them: the part of the image around the boxes, small."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from harmonic_jax.metrics.consistency.study import LOST_FROM, Study
from harmonic_jax.metrics.matching import MAX_DETECTIONS, Overlaps, best_objects
from harmonic_jax.metrics.tables import DetectionTable
from harmonic_jax.report.boxes import LabelledBoxes, detection_grid, save_png

NUM_CASES = 16  # of a group
MOST_OF_IMAGE = 2  # of a group, so that one bad image does not fill it
MARGIN = 0.2
TOUCHES = 0.1
LONG_SIDE = 400  # pixels of a picture at most
_LEAST_SIDE, _AIR, _SHAPE = 96.0, 0.45, 4 / 3


@dataclasses.dataclass(frozen=True)
class Images:
    """Where pictures come from; whatever is missing, the page does without.

    Attributes:
      pixels: uint8 RGB [h, w, 3] of an image id, or None where it cannot be had.
      names: of image ids, a file for instance.
      sizes: height and width of image ids, for boxes without pixels.
    """

    pixels: Callable[[int], np.ndarray | None] | None = None
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    sizes: Mapping[int, tuple[int, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One picture of the page.

    Attributes:
      image_id: as in the ground truth.
      label: its class.
      text: what is seen, in words.
      truth: true objects.
      found: the detection in question.
      raw: another box, before NMS.
      window: x1, y1, x2, y2 of the picture in pixels of the image.
      pixels: uint8 RGB of the window, made smaller where it is large; None: not at hand.
    """

    image_id: int
    label: int
    text: str
    truth: LabelledBoxes
    found: LabelledBoxes
    raw: LabelledBoxes
    window: tuple[int, int, int, int] = (0, 0, 1, 1)
    pixels: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class CaseGroup:
    """Cases of one kind, worst first; `total` counts those not shown too."""

    kind: str
    total: int
    cases: list[Case]


def worst_cases(study: Study) -> list[CaseGroup]:
    """Picks the cases, without pictures; groups without any are left out.

    misplaced: high score, low IoU with an object of the class.
    background: high score, IoU under .1 with every object of the class.
    unsure: high IoU, low score, and the best that its object has.
    missed: no detection takes the object at IoU .5; largest first.
    lost: the best box of an object before NMS, and the best that was kept.

    At most 16 of a group and 2 of a group's image.
    """
    pairs, describe = study.pairs, _Describer(study)
    missed = np.flatnonzero(study.positives.is_counted & ~study.is_found)
    gap = pairs.score - pairs.iou
    is_true = study.positives.is_true[pairs.detection]
    touches = pairs.iou >= TOUCHES
    missed = missed[np.argsort(-study.truth.area[missed], kind="stable")]
    detections = {
        "misplaced": _ranked(gap, touches & (gap > MARGIN)),
        "background": _ranked(pairs.score, ~touches & (gap > MARGIN)),
        "unsure": _ranked(-gap, is_true & (-gap > MARGIN)),
    }
    groups = [
        _group(kind, rows, pairs.image, describe.detection) for kind, rows in detections.items()
    ]
    object_image = study.overlaps.object_image
    groups.append(_group("missed", missed, object_image, describe.missed))
    best = study.best_boxes
    if best is not None:
        lost = best.before - best.after
        rows = best.object[_ranked(lost, lost > LOST_FROM)]
        groups.append(_group("lost", rows, object_image, describe.lost))
    return [group for group in groups if group.total]


def _ranked(values: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Rows in use, largest value first."""
    rows = np.flatnonzero(use)
    return rows[np.argsort(-values[rows], kind="stable")]


def _group(
    kind: str, rows: np.ndarray, image: np.ndarray, describe: Callable[[int], Case]
) -> CaseGroup:
    chosen = first_of_images(zip(rows.tolist(), image[rows].tolist(), strict=True))
    return CaseGroup(kind, len(rows), [describe(row) for row in chosen])


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
        detection, obj, iou = int(pairs.detection[row]), int(pairs.object[row]), pairs.iou[row]
        text = _numbers(study.found, detection, iou)
        other, other_iou = int(self._other[detection]), self._other_iou[detection]
        objects = [obj] if obj >= 0 else []
        if other >= 0 and other_iou > max(0.5, iou):
            objects.insert(0, other)
            name = self._name(study.truth.labels[other])
            text += f"; it overlaps an object of class {name} by {other_iou:.2f}"
        image_id = int(study.truth.image_ids[pairs.image[row]])
        return self._case(image_id, study.found.labels[detection], text, objects, [detection])

    def missed(self, obj: int) -> Case:
        """Of a row of the ground truth."""
        text, rows = "missed; no box touches it", []
        nearest = _best_detection(self._study.overlaps, obj, same_class=False)
        if nearest is not None:
            found, rows = self._study.found, [nearest[0]]
            name = self._name(found.labels[nearest[0]])
            text = f"missed; the nearest box is of class {name}: {_numbers(found, *nearest)}"
        return self._of_object(obj, text, rows)

    def lost(self, obj: int) -> Case:
        """Of a row of the ground truth whose best box was suppressed."""
        study = self._study
        assert study.raw is not None
        assert study.raw_overlaps is not None
        text, rows = "no box was kept", []
        kept = _best_detection(study.overlaps, obj, same_class=True)
        if kept is not None:
            text, rows = f"kept: {_numbers(study.found, *kept)}", [kept[0]]
        best = _best_detection(study.raw_overlaps, obj, same_class=True, limit=None)
        assert best is not None  # it lost something
        text += f"; before NMS: {_numbers(study.raw, *best)}"
        return self._of_object(obj, text, rows, [best[0]])

    def _of_object(self, obj: int, text: str, found: list[int], raw: Sequence[int] = ()) -> Case:
        truth = self._study.truth
        return self._case(int(truth.image_id[obj]), truth.labels[obj], text, [obj], found, raw)

    def _case(
        self,
        image_id: int,
        label: int,
        text: str,
        objects: list[int],
        found: list[int],
        raw: Sequence[int] = (),
    ) -> Case:
        study = self._study
        return Case(
            image_id,
            int(label),
            f"{self._name(label)}: {text}",
            LabelledBoxes(study.truth.boxes[objects], study.truth.labels[objects]),
            _rows_of(study.found, found),
            _rows_of(study.raw or study.found, raw),
        )

    def _name(self, label: int) -> str:
        return self._study.truth.class_names[label]


def _rows_of(table: DetectionTable, rows: Sequence[int]) -> LabelledBoxes:
    index = np.array(rows, int)
    return LabelledBoxes(table.boxes[index], table.labels[index], table.scores[index])


def _numbers(table: DetectionTable, row: int, iou: float) -> str:
    return f"score {table.scores[row]:.2f}, IoU {iou:.2f}"


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


def add_pictures(groups: Sequence[CaseGroup], images: Images) -> None:
    """Cuts every case out of its image; each image is decoded once, one at a time.

    Raises:
      ValueError: `images.pixels` gives something that is no uint8 RGB image.
    """
    places = [(group.cases, i) for group in groups for i in range(len(group.cases))]
    places.sort(key=lambda place: place[0][place[1]].image_id)
    last_id, pixels = None, None
    for cases, i in places:
        image_id = cases[i].image_id
        if image_id != last_id:
            last_id, pixels = image_id, _pixels(images, image_id)
        cases[i] = _with_picture(cases[i], pixels, images.sizes.get(image_id))


def _pixels(images: Images, image_id: int) -> np.ndarray | None:
    pixels = None if images.pixels is None else images.pixels(image_id)
    if pixels is not None and (
        pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size
    ):
        raise ValueError(
            f"image {image_id} is {pixels.dtype} {pixels.shape}; pixels must be uint8 [h, w, 3]"
        )
    return pixels


def _with_picture(case: Case, pixels: np.ndarray | None, size: tuple[int, int] | None) -> Case:
    boxes = np.concatenate([case.truth.boxes, case.found.boxes, case.raw.boxes])
    if pixels is None:
        return dataclasses.replace(case, window=window_around(boxes, size))
    x1, y1, x2, y2 = window = window_around(boxes, (pixels.shape[0], pixels.shape[1]))
    part = np.ascontiguousarray(pixels[y1:y2, x1:x2])
    scale = LONG_SIDE / max(part.shape[:2])
    if scale < 1.0:
        to = (max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1))
        part = cv2.resize(part, to, interpolation=cv2.INTER_AREA)
    return dataclasses.replace(case, window=window, pixels=part)


def window_around(boxes: np.ndarray, size: tuple[int, int] | None) -> tuple[int, int, int, int]:
    """The part of an image that shows boxes with some surroundings, 4 : 3 where the image allows.

    Args:
      boxes: [n, 4], xyxy; what lies outside the image is cut off.
      size: height and width of the image, or None: without end.

    Returns:
      x1, y1, x2, y2, whole pixels inside the image, at least one wide and high.

    Example:
      >>> window_around(np.array([[100.0, 100.0, 200.0, 160.0]]), (1000, 1000))
      (55, 58, 245, 201)
      >>> window_around(np.array([[100.0, 100.0, 200.0, 160.0]]), (150, 220))
      (30, 7, 220, 150)
    """
    corners = boxes.reshape(-1, 2, 2)
    least, limit = (-np.inf, np.full(2, np.inf)) if size is None else (0.0, np.array(size[::-1]))
    low = np.clip(corners.min(axis=(0, 1)), least, limit)
    high = np.clip(corners.max(axis=(0, 1)), least, limit)
    width, height = np.maximum((high - low) * (1 + 2 * _AIR), [_LEAST_SIDE, _LEAST_SIDE / _SHAPE])
    side = np.minimum(np.ceil([max(width, height * _SHAPE), max(height, width / _SHAPE)]), limit)
    start = np.clip(np.round((low + high - side) / 2), least, limit - side)
    x1, y1, x2, y2 = (int(v) for v in (*start, *(start + side)))
    return x1, y1, x2, y2


def save_contact_sheet(path: Path, cases: Iterable[Case], class_names: Sequence[str]) -> None:
    """Writes the cases that have pixels as one PNG, boxes drawn in."""
    shown = [case for case in cases if case.pixels is not None]
    sheet = detection_grid(
        [case.pixels for case in shown if case.pixels is not None],
        [_in_picture(case, case.truth) for case in shown],
        [_in_picture(case, case.found, case.raw) for case in shown],
        class_names,
        cell=420,
    )
    save_png(path, sheet)


def _in_picture(case: Case, *parts: LabelledBoxes) -> LabelledBoxes:
    """Boxes of a case, together, in the pixels of its picture."""
    assert case.pixels is not None
    x1, y1, x2, _ = case.window
    boxes = np.concatenate([part.boxes for part in parts]) - [x1, y1, x1, y1]
    scores = [part.scores for part in parts if part.scores is not None]
    return LabelledBoxes(
        boxes * (case.pixels.shape[1] / (x2 - x1)),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(scores) if scores else None,
    )
