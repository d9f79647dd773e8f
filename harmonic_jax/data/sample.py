"""One row of a batch: read, decode, augment, resize; a bad one becomes a padding image."""

from collections import Counter
from typing import Any

import numpy as np

from harmonic_jax.data.augment import Sample, augment
from harmonic_jax.data.decode import NOTES, ImageError, decode_record
from harmonic_jax.data.mix import Mixer
from harmonic_jax.data.records import DataError, DetectionSource, is_trainable
from harmonic_jax.data.report import DataReport, Finding, Reason
from harmonic_jax.data.resize import fill_around, network_size, resize_image
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.masks import RleTable
from harmonic_jax.structures import Batch, GroundTruth, ObjectMasks

PADDING_IMAGE = "padding image in its place: not trained on, nothing detected"
LOST = {
    "cropped_away": "not in the crop, this time",
    "pasted_over": "hidden by pasted objects, this time",
}


def empty_batch(
    size: int, bucket: tuple[int, int], config: DataConfig, *, masks: bool = False
) -> Batch:
    """A batch without images and objects, numpy arrays, to be written row by row.

    It has `size` rows of the padded (height, width) `bucket`, whose pixels are not set here.
    """

    # Any: the structures' fields are annotated as device arrays; on the host they hold numpy's.
    def full(value: float, *shape: int, dtype: type = np.float32) -> Any:
        return np.full((size, *shape), value, dtype)

    pixels: Any = np.empty((size, *bucket, 3), np.uint8)
    objects, side, grids = config.max_objects, config.mask_size, None
    if masks:
        grids = ObjectMasks(full(0, objects, side, side, dtype=np.uint8), full(0, objects, 4))
    return Batch(
        images=pixels,
        image_size=full(1, 2) * np.array(bucket, np.float32),
        scale=full(1, 2),
        record_index=full(-1, dtype=np.int32),
        is_real=full(False, dtype=bool),
        ground_truth=GroundTruth(
            boxes=full(0, objects, 4),
            labels=full(0, objects, dtype=np.int32),
            valid=full(False, objects, dtype=bool),
            masks=grids,
        ),
    )


def write_image(
    batch: Any, row: int, image: np.ndarray | None, config: DataConfig, *, short_side: int
) -> None:
    """Resizes an image into a row of an `empty_batch` and pads it with the mean colour.

    The image is uint8 RGB [h, w, 3] of any size; None leaves the row blank.
    """
    canvas = batch.images[row]
    if image is None:
        fill_around(canvas, (0, 0))
        return
    height, width = image.shape[:2]
    bucket = (canvas.shape[0], canvas.shape[1])
    size = network_size(height, width, config, bucket=bucket, short_side=short_side)
    fill_around(canvas, size)
    averages_areas = config.resizing != "torchvision"
    place = canvas[: size[0], : size[1]]
    resize_image(image, size, averages_areas=averages_areas, out=place)
    batch.image_size[row] = size
    batch.scale[row] = size[0] / height, size[1] / width
    batch.is_real[row] = True


def load_sample(
    source: DetectionSource,
    index: int,
    config: DataConfig,
    batch: Any,
    row: int,
    *,
    short_side: int,
    rng: np.random.Generator | None,
    partners: np.ndarray | None = None,
) -> DataReport:
    """Loads records[index] into a row of a batch.

    Args:
      index: position in the records; -1 gives a blank row.
      batch: from `empty_batch`; its ground truth gets masks where it has a place for them.
      rng: for the augmentations; None: none of them (evaluation).
      partners: int [m], the records that may be mixed into the image; None: only its own.

    Returns:
      What was remarkable; the reason where the image is unusable and the row left blank.
    """
    report, truth = DataReport(), batch.ground_truth
    lost: Counter[str] = Counter()
    batch.record_index[row] = index
    masks = truth.masks is not None
    sample = None if index < 0 else _read(source, index, config, report, masks=masks)
    if sample is None:
        write_image(batch, row, None, config, short_side=short_side)
        return report

    if rng is not None:

        def read_partner() -> Sample | None:
            partner = index if partners is None else int(rng.choice(partners))
            return _read(source, partner, config, report, masks=masks, is_partner=True)

        (height, width), bucket = sample.image.shape[:2], batch.images.shape[1:3]
        size = network_size(height, width, config, bucket=bucket, short_side=short_side)
        sample = Mixer(np.array(size), config, rng, lost).mix(sample, read_partner)
        number, sample = len(sample.boxes), augment(sample, rng, config)
        lost["cropped_away"] += number - len(sample.boxes)
    largest = largest_boxes(sample.boxes, config.max_objects)
    if rng is not None:  # an evaluation counts all of them
        lost[Reason.TOO_MANY_OBJECTS] = len(sample.boxes) - len(largest)
    name = source.records[index].file_name
    for rule, number in lost.items():
        if number:
            example = f"{name}: {number} objects"
            report.add(rule, [example], count=number, outcome=LOST.get(rule, ""))

    write_image(batch, row, sample.image, config, short_side=short_side)
    sample, number = sample.take(largest), len(largest)
    scale_xyxy = batch.scale[row][[1, 0, 1, 0]]
    truth.boxes[row, :number] = sample.boxes * scale_xyxy
    truth.labels[row, :number] = sample.labels
    truth.valid[row, :number] = True
    if sample.masks is not None:
        grids = mask_grids(sample.masks, sample.cuts, size=config.mask_size)
        axes = tuple(1 + axis for axis in sample.flipped_axes)
        truth.masks.values[row, :number] = np.flip(grids, axes)
        truth.masks.frames[row, :number] = sample.frames * scale_xyxy
    return report


def is_blank(finding: Finding) -> bool:
    """Whether a rule left rows blank: images that could not be read or decoded."""
    return finding.outcome == PADDING_IMAGE


def num_blank(report: DataReport) -> int:
    """Rows that were left blank."""
    return sum(finding.count for finding in report.findings.values() if is_blank(finding))


def largest_boxes(boxes: np.ndarray, number: int) -> np.ndarray:
    """Rows of the `number` boxes of largest area, in their old order; ties go to the first.

    >>> largest_boxes(np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 3, 3]]), 2)
    array([0, 2])
    """
    if len(boxes) <= number:
        return np.arange(len(boxes))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.sort(np.argsort(-areas, kind="stable")[:number])


def mask_grids(masks: RleTable, boxes: np.ndarray, *, size: int) -> np.ndarray:
    """How much of each cell of a size x size grid over each object's box its mask covers.

    The number of mask pixels before a place, counted column after column as run lengths are, is
    piecewise linear within a column. Its values at the cells' borders give exact averages over
    cells of any size and place, so no mask is ever drawn.

    Args:
      boxes: float [n, 4], xyxy in pixels of each one's image, inside of it, of positive size.

    Returns:
      uint8 [n, size, size]: 0 where no pixel of the cell is the object's, 255 where all are.

    Example:
      >>> from harmonic_jax.masks import encode_masks
      >>> corner = encode_masks(np.array([[[1, 0, 0, 0], [0, 0, 0, 0]]]))
      >>> mask_grids(corner, np.array([[0.0, 0.0, 4.0, 2.0]]), size=2).tolist()
      [[[128, 0], [0, 0]]]
    """
    grids = np.zeros((len(masks), size, size), np.uint8)
    runs, bounds = masks.runs()
    for row, box in enumerate(boxes.astype(np.float64).tolist()):
        own = runs[bounds[row] : bounds[row + 1]]
        if len(own) > 1:  # else no pixel is set
            grids[row] = _coverage(own, int(masks.sizes[row, 0]), box, size)
    return grids


def _coverage(runs: np.ndarray, height: int, box: list[float], size: int) -> np.ndarray:
    x1, y1, x2, y2 = box
    ends = np.cumsum(runs)
    pixels = runs.copy()
    pixels[::2] = 0  # runs of background
    first = int(x1)
    columns = np.arange(first, int(np.ceil(x2)))
    borders = (columns * height)[:, None] + np.linspace(y1, y2, size + 1)
    before = np.interp(borders, np.append(0, ends), np.append(0, np.cumsum(pixels)))
    in_columns = np.diff(before, axis=1)  # [columns, size]
    # The same along the other axis: pixels left of each border, linear within a column.
    total = np.concatenate([np.zeros((1, size)), np.cumsum(in_columns, axis=0)])
    place = np.linspace(x1, x2, size + 1) - first
    column = np.minimum(place.astype(np.int64), len(columns) - 1)
    left = total[column] + (place - column)[:, None] * in_columns[column]
    cell = (x2 - x1) * (y2 - y1) / size**2
    coverage = np.diff(left, axis=0).T * (255.0 / cell)
    return np.clip(np.rint(coverage), 0, 255).astype(np.uint8)


def _read(
    source: DetectionSource,
    index: int,
    config: DataConfig,
    report: DataReport,
    *,
    masks: bool,
    is_partner: bool = False,
) -> Sample | None:
    """Pixels and objects of records[index]; None where there are no pixels, with the reason in the
    report. A partner that is unreadable blanks no row and has a rule of its own."""
    record = source.records[index]
    try:
        decoded = decode_record(source, index, max_pixels=config.max_pixels)
    except (ImageError, OSError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        rule = getattr(error, "reason", "missing_image" if is_missing else "unreadable_image")
        outcome = PADDING_IMAGE
        if is_partner:
            rule, outcome = "unreadable_partner", "its part of a mixed image left out"
        report.add(rule, [f"{record.file_name}: {error}"], outcome=outcome)
        return None
    for note in decoded.notes:
        report.add(note, [record.file_name], outcome=NOTES[note])
    rows = np.flatnonzero(is_trainable(record, config))
    boxes, table = record.boxes[rows], None
    if masks:
        if record.masks is None:
            raise DataError("data.masks is True, but the source was opened without masks")
        table = record.masks.take(rows)
    return Sample(decoded.image, boxes, record.labels[rows], boxes, table, boxes)
