"""The worst single cases, boxes whose scores and IoUs are furthest apart and missed objects, and
pictures of them: the part of the image around the boxes, small."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from harmonic_jax.metrics.consistency.study import LOST_FROM, Study
from harmonic_jax.metrics.matching import Overlaps
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
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


@dataclasses.dataclass(eq=False)
class Case:
    """One picture of the page.

    Attributes:
      boxes: "truth": true objects; "found": the detection in question; "raw": one before NMS.
      window: x1, y1, x2, y2 of the picture in pixels of the image.
      pixels: uint8 RGB of the window, made smaller where it is large; None: not at hand.
    """

    image_id: int
    label: int
    text: str
    boxes: dict[str, LabelledBoxes]
    window: tuple[int, int, int, int] = (0, 0, 1, 1)
    pixels: np.ndarray | None = None


class CaseGroup(NamedTuple):
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
    pairs, best, image = study.pairs, study.best_boxes, study.overlaps.object_image
    gap, touches = pairs.score - pairs.iou, pairs.iou >= TOUCHES
    is_true = study.positives.is_true[pairs.detection]
    missed = study.positives.is_counted & ~study.is_found
    rows = {
        "misplaced": _ranked(gap, touches & (gap > MARGIN)),
        "background": _ranked(pairs.score, ~touches & (gap > MARGIN)),
        "unsure": _ranked(-gap, is_true & (-gap > MARGIN)),
    }
    groups = [_group(study, kind, of_kind, pairs.image, _pair) for kind, of_kind in rows.items()]
    groups.append(_group(study, "missed", _ranked(study.truth.area, missed), image, _missed))
    if best is not None:
        lost = best.before - best.after
        objects = best.object[_ranked(lost, lost > LOST_FROM)]
        groups.append(_group(study, "lost", objects, image, _lost))
    return [group for group in groups if group.total]


def _ranked(values: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Rows in use, largest value first."""
    rows = np.flatnonzero(use)
    return rows[np.argsort(-values[rows], kind="stable")]


def _group(
    study: Study,
    kind: str,
    rows: np.ndarray,
    image: np.ndarray,
    describe: Callable[[Study, int], Case],
) -> CaseGroup:
    chosen = first_of_images(zip(rows.tolist(), image[rows].tolist(), strict=True))
    return CaseGroup(kind, len(rows), [describe(study, row) for row in chosen])


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


def _pair(study: Study, row: int) -> Case:
    """Of a row of `Pairs`."""
    pairs, overlaps = study.pairs, study.overlaps
    detection, obj, iou = int(pairs.detection[row]), int(pairs.object[row]), float(pairs.iou[row])
    text, objects = _numbers(study.found, detection, iou), [obj] if obj >= 0 else []
    is_other = ~overlaps.is_ignored_object[overlaps.object] & ~overlaps.same_class
    other = _nearest(overlaps, is_other & (overlaps.detection == detection))
    if other is not None and other[2] > max(0.5, iou):
        objects.insert(0, other[1])
        name = _class_of(study, study.truth, other[1])
        text += f"; it overlaps an object of class {name} by {other[2]:.2f}"
    return _case(study, study.found, detection, text, objects, [detection])


def _missed(study: Study, obj: int) -> Case:
    """Of a row of the ground truth."""
    text, rows = "missed; no box touches it", []
    nearest = _nearest(study.overlaps, _within(study.overlaps, obj))
    if nearest is not None:
        row, _, iou = nearest
        name = _class_of(study, study.found, row)
        numbers = _numbers(study.found, row, iou)
        text, rows = f"missed; the nearest box is of class {name}: {numbers}", [row]
    return _case(study, study.truth, obj, text, [obj], rows)


def _lost(study: Study, obj: int) -> Case:
    """Of a row of the ground truth whose best box was suppressed."""
    overlaps, raw = study.overlaps, study.raw_overlaps
    assert study.raw is not None
    assert raw is not None
    text, rows = "no box was kept", []
    kept = _nearest(overlaps, _within(overlaps, obj) & overlaps.same_class)
    if kept is not None:
        text, rows = f"kept: {_numbers(study.found, kept[0], kept[2])}", [kept[0]]
    best = _nearest(raw, (raw.object == obj) & raw.same_class)
    assert best is not None  # it lost something
    text += f"; before NMS: {_numbers(study.raw, best[0], best[2])}"
    return _case(study, study.truth, obj, text, [obj], rows, [best[0]])


def _case(
    study: Study,
    table: GroundTruthTable | DetectionTable,
    row: int,
    text: str,
    objects: list[int],
    found: list[int],
    raw: Sequence[int] = (),
) -> Case:
    """Of a row of one of the tables, whose image and class it has."""
    boxes = {"truth": LabelledBoxes(study.truth.boxes[objects], study.truth.labels[objects])}
    for kind, rows, of_kind in (("found", found, study.found), ("raw", raw, study.raw)):
        of, at = of_kind or study.found, np.array(rows, int)
        boxes[kind] = LabelledBoxes(of.boxes[at], of.labels[at], of.scores[at])
    text = f"{_class_of(study, table, row)}: {text}"
    return Case(int(table.image_id[row]), int(table.labels[row]), text, boxes)


def _class_of(study: Study, table: GroundTruthTable | DetectionTable, row: int) -> str:
    return study.truth.class_names[table.labels[row]]


def _numbers(table: DetectionTable, row: int, iou: float) -> str:
    return f"score {table.scores[row]:.2f}, IoU {iou:.2f}"


def _within(overlaps: Overlaps, obj: int) -> np.ndarray:
    """The pairs of an object with detections that count."""
    return (overlaps.object == obj) & (overlaps.rank[overlaps.detection] < overlaps.max_detections)


def _nearest(overlaps: Overlaps, use: np.ndarray) -> tuple[int, int, float] | None:
    """Detection, object and IoU of the pair in use that overlaps most."""
    places = np.flatnonzero(use)
    if places.size == 0:
        return None
    best = places[np.argmax(overlaps.iou[places])]
    return int(overlaps.detection[best]), int(overlaps.object[best]), float(overlaps.iou[best])


def add_pictures(groups: Sequence[CaseGroup], images: Images) -> None:
    """Cuts every case out of its image; each image is decoded once, one at a time."""
    cases = [case for group in groups for case in group.cases]
    cases.sort(key=lambda case: case.image_id)
    for image_id, of_image in itertools.groupby(cases, key=lambda case: case.image_id):
        pixels = None if images.pixels is None else images.pixels(image_id)
        size = images.sizes.get(image_id) if pixels is None else pixels.shape[:2]
        if pixels is not None and (
            pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size
        ):
            raise ValueError(
                f"image {image_id} is {pixels.dtype} {pixels.shape}; pixels must be uint8 [h, w, 3]"
            )
        for case in of_image:
            boxes = np.concatenate([part.boxes for part in case.boxes.values()])
            x1, y1, x2, y2 = case.window = window_around(boxes, size)
            if pixels is not None:
                case.pixels = _made_smaller(np.ascontiguousarray(pixels[y1:y2, x1:x2]))


def _made_smaller(pixels: np.ndarray) -> np.ndarray:
    scale = LONG_SIDE / max(pixels.shape[:2])
    if scale >= 1.0:
        return pixels
    size = [max(round(side * scale), 1) for side in (pixels.shape[1], pixels.shape[0])]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


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
    pictures, truths, predictions = [], [], []
    for case in cases:
        if case.pixels is not None:
            x1, y1, x2, _ = case.window
            scale = case.pixels.shape[1] / (x2 - x1)
            truth, found, raw = (
                dataclasses.replace(part, boxes=(part.boxes - [x1, y1, x1, y1]) * scale)
                for part in case.boxes.values()
            )
            columns = ((part.boxes, part.labels, part.scores) for part in (found, raw))
            boxes, labels, scores = map(np.concatenate, zip(*columns, strict=True))
            pictures.append(case.pixels)
            truths.append(truth)
            predictions.append(LabelledBoxes(boxes, labels, scores))
    save_png(path, detection_grid(pictures, truths, predictions, class_names, cell=420))
