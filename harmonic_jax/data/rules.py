"""What happens to bad annotations: one rule each, counted and named (docs/data.md has the table).

A source reads its files into `Annotations`, dropping by itself what it cannot express in them
(an unknown class, an absent image); `apply_rules` does the rest for all of them alike.
"""

from collections.abc import Callable, Iterator

import numpy as np

from harmonic_jax.coco_format.values import LARGEST_AREA
from harmonic_jax.data.records import Annotations, RecordTable, is_trainable
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.masks import RleTable, encode_segmentations

# Coordinates this close to the border, in pixels, are on it: COCO rounds to 0.01, TFDS to float32.
ROUNDING = 0.01
_MASK_FAULTS = {
    "missing": Reason.NO_MASK,
    "malformed": Reason.MALFORMED_MASK,
    "size": Reason.MASK_OF_OTHER_SIZE,
    "part": Reason.MALFORMED_POLYGON,
}


def apply_rules(
    raw: Annotations,
    config: DataConfig,
    *,
    class_names: tuple[str, ...],
    report: DataReport,
    one_based: bool = False,
) -> RecordTable:
    """Drops, clips, marks and counts; afterwards every box is a real box inside its image.

    Images stay, in their order. Of more than `config.max_objects` trainable objects in an image,
    the surplus is counted. `one_based` boxes count pixels from 1 and hold the last, as VOC's do.
    """

    def count(reason: Reason, found: np.ndarray) -> None:
        count_rows(reason, np.flatnonzero(found))

    def count_rows(reason: Reason, rows: np.ndarray) -> None:
        if len(rows):
            examples = (_describe(raw, row, class_names) for row in rows.tolist())
            report.add(reason, examples, count=len(rows))

    report.doubts += _doubts(raw)
    boxes, kept = _check_boxes(raw, one_based, count)
    count(Reason.DUPLICATE_OBJECT, kept & _repeats(raw))
    count(Reason.CROWD, kept & raw.is_crowd)
    count(Reason.DIFFICULT, kept & raw.is_difficult)
    _count_per_image(raw, kept & is_trainable(raw, config), config.max_objects, report)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    has_area = (raw.area >= 0) & (raw.area < LARGEST_AREA)
    masks, faults = _encode_masks(raw, np.flatnonzero(kept))
    for reason, rows in faults.items():
        count_rows(reason, np.array(rows))
    return RecordTable(
        image_ids=raw.image_ids.astype(np.int64),
        file_names=raw.file_names,
        sizes=raw.sizes.astype(np.int32),
        owners=raw.owners[kept],
        boxes=boxes[kept].astype(np.float32),
        labels=raw.labels[kept].astype(np.int32),
        is_crowd=raw.is_crowd[kept].astype(bool),
        is_difficult=raw.is_difficult[kept].astype(bool),
        area=np.where(has_area, raw.area, width * height)[kept].astype(np.float32),
        masks=masks,
        original_ids=raw.original_ids,
    )


def _check_boxes(
    raw: Annotations, one_based: bool, count: Callable[[Reason, np.ndarray], None]
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes inside their images [n, 4], and which of them are usable [n]; counts the rest.

    Of several faults of a box the first counts. A VOC box whose corners coincide would span one
    pixel when read as inclusive; no annotator meant that, so the corners are compared as written.
    """
    kept = np.isfinite(raw.boxes).all(axis=1)
    count(Reason.NOT_FINITE, ~kept)
    boxes = np.where(kept[:, None], raw.boxes, 0.0)
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    touching = (boxes[:, 2:] == boxes[:, :2]).any(axis=1)
    if one_based:
        boxes = boxes - np.array([1.0, 1.0, 0.0, 0.0])
    height, width = raw.sizes[raw.owners].astype(np.float64).T
    limits = np.stack([width, height, width, height], axis=1)
    inside = np.clip(boxes, 0.0, limits)
    # What counts is the box the training sees: in float32 a sliver may have no width left.
    x1, y1, x2, y2 = inside.astype(np.float32).T
    low, high = boxes[:, :2], boxes[:, 2:]
    tests = (
        (Reason.INVERTED, inverted),
        (Reason.ZERO_SIZE, touching),
        (Reason.OUTSIDE, ((low >= limits[:, :2]) | (high <= 0)).any(axis=1)),
        (Reason.ZERO_SIZE, (x2 <= x1) | (y2 <= y1)),
    )
    for reason, found in tests:
        count(reason, kept & found)
        kept = kept & ~found
    count(Reason.CLIPPED, kept & (np.abs(inside - boxes) > ROUNDING).any(axis=1))
    return inside, kept


def _doubts(raw: Annotations) -> Iterator[str]:
    """Whether the boxes of a split, all together, are corners or fractions of the image instead."""
    is_finite = np.isfinite(raw.boxes).all(axis=1)
    low, high = np.split(raw.boxes[is_finite], 2, axis=1)
    limits = raw.sizes[raw.owners[is_finite]][:, ::-1] + 1.0
    if len(low) < 20:
        return
    inside = ((low >= 0) & (high - low > low) & (high - low <= limits)).all(axis=1).mean()
    outside, tiny = (high > limits).any(axis=1).mean(), (high <= 2).all(axis=1).mean()
    if inside >= 0.95 and outside >= 0.2:
        yield (
            f"{outside:.0%} of the boxes leave their image as x y width height, {inside:.0%} are "
            "inside as x1 y1 x2 y2: wrong boxes are learned; write x1, y1, x2 - x1, y2 - y1"
        )
    if tiny >= 0.99 and limits.min() > 20:
        yield "the boxes are fractions of the image, not pixels: nothing is learned; write pixels"


def _encode_masks(
    raw: Annotations, rows: np.ndarray
) -> tuple[RleTable | None, dict[Reason, list[int]]]:
    """The masks of some objects, compressed; and the objects of each fault, each in one.

    An object keeps its box whatever its mask is. A mask that cannot be used is stored empty. Empty
    means unknown: training takes no mask loss from the object, the evaluation of masks ignores it.
    """
    if raw.masks is None:
        return None, {}
    segmentations = (raw.masks[row] for row in rows.tolist())
    masks, faults = encode_segmentations(segmentations, raw.sizes[raw.owners[rows]])
    reasons = {fault.row: _MASK_FAULTS[fault.kind] for fault in faults}
    for row in np.flatnonzero(masks.areas() == 0).tolist():
        if reasons.get(row, Reason.MALFORMED_POLYGON) is Reason.MALFORMED_POLYGON:
            reasons[row] = Reason.EMPTY_MASK
    found: dict[Reason, list[int]] = {}
    for row in sorted(reasons):
        found.setdefault(reasons[row], []).append(int(rows[row]))
    return masks, found


def _repeats(raw: Annotations) -> np.ndarray:
    """Which objects equal an earlier one in image, class and box [n]."""
    columns = (*raw.boxes.T, raw.labels, raw.owners)
    order = np.lexsort(columns)
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    repeats = np.zeros(len(order), bool)
    repeats[order[1:][same]] = True  # lexsort is stable: the first of equals stays False
    return repeats


def _count_per_image(
    raw: Annotations, trained: np.ndarray, max_objects: int, report: DataReport
) -> None:
    trainable = np.bincount(raw.owners[trained], minlength=len(raw.file_names))
    surplus = np.maximum(trainable - max_objects, 0)
    if surplus.any():
        crowded = np.flatnonzero(surplus)
        examples = (f"{raw.file_names[i]}: {surplus[i]} of {trainable[i]} objects" for i in crowded)
        report.add(Reason.TOO_MANY_OBJECTS, examples, count=int(surplus.sum()))
    empty = np.flatnonzero(trainable == 0)
    if len(empty):
        names = (raw.file_names[i] for i in empty)
        report.add(Reason.EMPTY_IMAGE, names, count=len(empty))


def _describe(raw: Annotations, row: int, class_names: tuple[str, ...]) -> str:
    corners = ", ".join(f"{value:.6g}" for value in raw.boxes[row])
    return f"{raw.file_names[raw.owners[row]]}: {class_names[raw.labels[row]]} ({corners})"
