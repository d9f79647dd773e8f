"""One slot of a batch: read, decode, augment, resize; bad images become blank slots."""

import dataclasses
import math

import numpy as np

from harmonic_jax.data.decode import NOTES, ImageError, decode_image
from harmonic_jax.data.geometry import fill_around, fit_size, resize_image
from harmonic_jax.data.mask_grids import mask_grids
from harmonic_jax.data.plan import is_trainable
from harmonic_jax.data.reasons import Reason
from harmonic_jax.data.records import DataError, DetectionSource, Record
from harmonic_jax.data.report import DataReport, Finding
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.data.transforms import Augmented, augment

UNREADABLE_IMAGE = "unreadable_image"
LEFT_BLANK = "slot left blank: not trained on, nothing detected"
CROPPED_AWAY = "cropped_away"
OBJECT_RULES = {
    CROPPED_AWAY: "not in the crop, this time",
    Reason.TOO_MANY_OBJECTS: Reason.TOO_MANY_OBJECTS.outcome,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """An image at network size, not yet padded, with the objects that are trained on.

    Attributes:
      image: uint8 [h, w, 3], a part of the canvas where there is one; None in a blank slot.
      bucket: the padded (height, width) it will get.
      boxes: float32 [n, 4], xyxy in its pixels, n <= max_objects.
      labels: int32 [n].
      masks: uint8 [n, m, m], the coverage of a grid over each frame; None where masks are off.
      frames: float32 [n, 4], xyxy: the objects' whole boxes, what a crop cut off included.
      scale: float32 [2], network size over original size, y and x.
      index: position of its record; -1 where there is none.
      report: what was remarkable about it.
    """

    image: np.ndarray | None
    bucket: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    frames: np.ndarray
    scale: np.ndarray
    index: int
    report: DataReport


def blank_sample(
    bucket: tuple[int, int], index: int, report: DataReport, *, mask_size: int | None
) -> Sample:
    """A slot that only fills the batch; with grids of masks of no objects where they are loaded."""
    return Sample(
        image=None,
        bucket=bucket,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        masks=None if mask_size is None else np.zeros((0, mask_size, mask_size), np.uint8),
        frames=np.zeros((0, 4), np.float32),
        scale=np.ones(2, np.float32),
        index=index,
        report=report,
    )


def is_blank(finding: Finding) -> bool:
    """Whether a rule left slots blank: images that could not be read or decoded."""
    return finding.outcome == LEFT_BLANK


def num_blank(report: DataReport) -> int:
    """Slots that were left blank."""
    return sum(finding.count for finding in report.findings.values() if is_blank(finding))


def load_sample(
    source: DetectionSource,
    index: int,
    config: DataConfig,
    *,
    bucket: tuple[int, int],
    short_side: int,
    rng: np.random.Generator | None,
    canvas: np.ndarray | None = None,
) -> Sample:
    """Loads records[index] for the network.

    Args:
      source: where the image and its record come from.
      index: position in the records; -1 gives a blank slot.
      config: how images are decoded, changed and resized.
      bucket: the padded (height, width) of the batch.
      short_side: the size to resize to.
      rng: for the augmentations; None: none of them, and no masks (evaluation).
      canvas: uint8 [*bucket, 3], this slot's place in its batch: the image is resized into it and
        padded. None: the image gets an array of its own.

    Returns:
      The sample; a blank one, with the reason in its report, where the image is unusable.
    """
    report = DataReport()
    mask_size = config.mask_size if config.masks and rng is not None else None
    image = None if index < 0 else _decode(source, index, config, report)
    if image is None:
        if canvas is not None:
            fill_around(canvas, (0, 0))
        return blank_sample(bucket, index, report, mask_size=mask_size)

    record = source.records[index]
    rows = np.flatnonzero(is_trainable(record, use_difficult=config.use_difficult))
    changed = _augment(image, record.boxes[rows], config, rng)
    _count_lost(report, CROPPED_AWAY, record, len(rows) - len(changed.kept))
    rows = rows[changed.kept]
    largest = largest_boxes(changed.boxes, config.max_objects)
    if rng is not None:  # an evaluation counts all of them
        _count_lost(report, Reason.TOO_MANY_OBJECTS, record, len(rows) - len(largest))

    height, width = changed.image.shape[:2]
    size = network_size(height, width, config, bucket=bucket, short_side=short_side)
    scale = np.array([size[0] / height, size[1] / width], np.float32)
    scale_xyxy = scale[[1, 0, 1, 0]]
    return Sample(
        image=_resize(changed.image, size, config, canvas),
        bucket=bucket,
        boxes=changed.boxes[largest] * scale_xyxy,
        labels=record.labels[rows[largest]],
        masks=None if mask_size is None else _masks(record, rows[largest], changed, mask_size),
        frames=changed.frames[largest] * scale_xyxy,
        scale=scale,
        index=index,
        report=report,
    )


def _resize(
    image: np.ndarray, size: tuple[int, int], config: DataConfig, canvas: np.ndarray | None
) -> np.ndarray:
    """The resized image; on a canvas at its top left, with the mean colour around it."""
    place = None if canvas is None else canvas[: size[0], : size[1]]
    if canvas is not None:
        fill_around(canvas, size)
    averages_areas = config.resizing != "torchvision"
    return resize_image(image, size, averages_areas=averages_areas, out=place)


def _augment(
    image: np.ndarray, boxes: np.ndarray, config: DataConfig, rng: np.random.Generator | None
) -> Augmented:
    if rng is None:
        return Augmented(image, boxes, np.arange(len(boxes)), boxes, False, False)
    return augment(image, boxes, rng, config=config.augment, max_pixels=config.max_pixels)


def _masks(record: Record, rows: np.ndarray, changed: Augmented, size: int) -> np.ndarray:
    """The grids of some objects, uint8 [n, size, size], flipped as the image was."""
    if record.masks is None:
        raise DataError("data.masks is True, but the source was opened without masks")
    grids = mask_grids(record.masks.take(rows), record.boxes[rows], size=size)
    if changed.is_mirrored:
        grids = grids[:, :, ::-1]
    return grids[:, ::-1] if changed.is_upside_down else grids


def largest_boxes(boxes: np.ndarray, number: int) -> np.ndarray:
    """Rows of the `number` boxes of largest area, in their old order; ties go to the first.

    >>> largest_boxes(np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 3, 3]]), 2)
    array([0, 2])
    """
    if len(boxes) <= number:
        return np.arange(len(boxes))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.sort(np.argsort(-areas, kind="stable")[:number])


def network_size(
    height: int, width: int, config: DataConfig, *, bucket: tuple[int, int], short_side: int
) -> tuple[int, int]:
    """(height, width) that an image is resized to, before it is padded to its bucket."""
    if config.resize == "warp":
        return short_side, short_side
    return fit_size(
        height,
        width,
        short_side=short_side,
        max_side=config.max_side,
        bounds=bucket,
        whole=math.floor if config.resizing == "torchvision" else round,
    )


def _decode(
    source: DetectionSource, index: int, config: DataConfig, report: DataReport
) -> np.ndarray | None:
    """Pixels of records[index]; None where there are none, with the reason in the report."""
    record = source.records[index]
    try:
        decoded = decode_image(
            source.image_bytes(index),
            max_pixels=config.max_pixels,
            annotated_size=(record.height, record.width),
        )
    except (ImageError, OSError) as error:
        report.add(_rule(error), [f"{record.file_name}: {error}"], outcome=LEFT_BLANK)
        return None
    for note in decoded.notes:
        report.add(note, [record.file_name], outcome=NOTES[note])
    return decoded.image


def _rule(error: ImageError | OSError) -> str:
    if isinstance(error, ImageError):
        return error.reason
    return str(Reason.MISSING_IMAGE) if isinstance(error, FileNotFoundError) else UNREADABLE_IMAGE


def _count_lost(report: DataReport, rule: str, record: Record, number: int) -> None:
    if number:
        example = f"{record.file_name}: {number} objects"
        report.add(rule, [example], count=number, outcome=OBJECT_RULES[rule])
