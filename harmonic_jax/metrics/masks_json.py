"""Masks in files of COCO format: `segmentation` of annotations and of results."""

import logging
from typing import Any

import numpy as np

from harmonic_jax.coco_format.values import box, side
from harmonic_jax.json_file import JsonFileError, shown
from harmonic_jax.masks import RleTable, encode_segmentations
from harmonic_jax.metrics.result_entries import wrong
from harmonic_jax.metrics.tables import GroundTruthTable

_LOG = logging.getLogger(__name__)


class MaskError(JsonFileError):
    """A file whose boxes may be good, and whose masks are not."""


def segmentations_of(masks: RleTable) -> list[dict[str, Any]]:
    """What JSON can hold: compressed run lengths as text."""
    return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in masks]


def annotated_masks(segmentations: list[Any], truth: GroundTruthTable, name: str) -> RleTable:
    """Draws the segmentations of all annotations.

    Raises:
      ValueError: an image with objects has no size, or a segmentation is not usable.
    """
    sizes = image_sizes(truth, truth.image_id)
    unknown = np.flatnonzero((sizes == 0).any(axis=1))
    if len(unknown):
        key = int(truth.image_id[unknown[0]])
        owner = shown(truth.original_ids.get(key, key))
        raise MaskError(f"{name}: image {owner} has no height and width; its masks need them")
    masks, faults = encode_segmentations(segmentations, sizes)
    if faults:
        first = faults[0]
        raise MaskError(f"{name}: annotations[{first.row}] has no usable mask: {first.message}")
    return masks


def image_sizes(truth: GroundTruthTable, image_id: np.ndarray) -> np.ndarray:
    """Height and width of images, int [n, 2]; 0 where not known."""
    if truth.image_sizes is None:
        return np.zeros((len(image_id), 2), np.int32)
    order = np.argsort(truth.image_ids)
    return truth.image_sizes[order[np.searchsorted(truth.image_ids, image_id, sorter=order)]]


def boxes_and_masks(
    entries: list[dict[str, Any]],
    sizes: np.ndarray,
    name: str,
    *,
    masks: bool | None,
) -> tuple[np.ndarray, RleTable | None]:
    """The boxes of results, float64 [n, 4], x, y, width, height, and their masks.

    Args:
      entries: n results; one with a mask may leave out its box, which is then the mask's.
      sizes: int [n, 2], height and width of the image of each, 0 where not known.
      name: of the file.
      masks: see `load_coco_results`.

    Raises:
      ValueError: an entry has neither, or one that is not what it should be.
    """
    boxes = [box(entry.get("bbox")) for entry in entries]
    boxless = [row for row, found in enumerate(boxes) if found is None]
    is_masked = [_says_mask(entry) for entry in entries]
    for row in boxless:
        # As in pycocotools' loadRes, [] is no box.
        if entries[row].get("bbox") not in (None, []) or not is_masked[row]:
            raise JsonFileError(f"{name}[{row}]: {wrong(entries[row], 'bbox', box)}")
    if not all(is_masked):
        row = is_masked.index(False)
        if masks:
            raise MaskError(f"{name}[{row}]: {wrong(entries[row], 'segmentation', run_lengths)}")
        if masks is None and any(is_masked):
            _LOG.warning("%s[%d] has no mask, others have: masks are left out", name, row)
        masks = False
    rows = boxless if masks is False else list(range(len(entries)))
    drawn = _detected_masks(entries, rows, sizes[rows], name)
    for row in boxless:
        boxes[row] = (0.0, 0.0, 0.0, 0.0)
    xywh = np.array(boxes, np.float64).reshape(-1, 4)
    tight = drawn.boxes()[np.searchsorted(rows, boxless)]
    xywh[boxless] = np.hstack([tight[:, :2], tight[:, 2:] - tight[:, :2]])
    return xywh, drawn if masks or (rows and masks is None) else None


def _says_mask(entry: dict[str, Any]) -> bool:
    """Whether there is a segmentation that is neither null nor empty."""
    return entry.get("segmentation") not in (None, [], {}, "")


def _detected_masks(
    entries: list[dict[str, Any]], rows: list[int], sizes: np.ndarray, name: str
) -> RleTable:
    """The masks of some rows of the entries, and of images of these sizes."""
    segmentations = [entries[row]["segmentation"] for row in rows]
    for row, segmentation in zip(rows, segmentations, strict=True):
        if run_lengths(segmentation) is None:
            raise MaskError(f"{name}[{row}]: {wrong(entries[row], 'segmentation', run_lengths)}")
    stated = np.array([s["size"] for s in segmentations], np.int64).reshape(-1, 2)
    expected = np.where((sizes == 0).any(axis=1, keepdims=True), stated, sizes)
    drawn, faults = encode_segmentations(segmentations, expected)
    if faults:
        row, counts = rows[faults[0].row], segmentations[faults[0].row]["counts"]
        is_bytes = counts.startswith(("b'", 'b"'))
        hint = "; they are the text of Python bytes: write counts.decode()" if is_bytes else ""
        raise MaskError(f"{name}[{row}]: segmentation: {faults[0].message}{hint}")
    return drawn


def run_lengths(value: Any) -> dict[str, Any] | None:
    """compressed run lengths: {"size": [height, width], "counts": text}"""
    if type(value) is not dict or type(value.get("counts")) is not str:
        return None
    size = value.get("size")
    is_size = type(size) is list and len(size) == 2 and all(map(side, size))
    return value if is_size else None
