"""Masks in files of COCO format: `segmentation` of annotations and of results."""

from typing import Any

import numpy as np

from harmonic_jax.masks import RleTable, encode_segmentations
from harmonic_jax.metrics.json_fields import column, integer


def segmentations_of(masks: RleTable) -> list[dict[str, Any]]:
    """What JSON can hold: compressed run lengths as text."""
    return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in masks]


def annotated_masks(annotations: list[Any], images: list[Any], name: str) -> RleTable | None:
    """Draws the segmentations of annotations; None where no annotation has one.

    Raises:
      ValueError: an image with objects has no size; some segmentations are usable, some are not.
    """
    segmentations = [annotation.get("segmentation") for annotation in annotations]
    if not any(segmentations):
        return None
    size_of = {image["id"]: (image.get("height"), image.get("width")) for image in images}
    sizes = [size_of[annotation["image_id"]] for annotation in annotations]
    for annotation, size in zip(annotations, sizes, strict=True):
        if not all(map(is_side, size)):
            owner = annotation["image_id"]
            raise ValueError(f"{name}: image {owner} has no height and width; its masks need them")
    masks, faults = encode_segmentations(segmentations, np.array(sizes))
    if faults:
        first = faults[0]
        raise ValueError(f"{name}: annotations[{first.row}] has no usable mask: {first.message}")
    return masks


def detected_masks(entries: list[Any], name: str) -> RleTable | None:
    """The masks of results; None where no entry has a segmentation.

    Raises:
      ValueError: some entries have no mask, or one that is not compressed run lengths.
    """
    if not any("segmentation" in entry for entry in entries):
        return None
    rles = column(entries, "segmentation", _compressed, name)
    rows = [rle["counts"].encode("latin-1", errors="replace") for rle in rles]
    try:
        return RleTable.from_bytes(rows, np.array([rle["size"] for rle in rles]))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _compressed(value: Any) -> bool:
    """compressed run lengths: {"size": [height, width], "counts": text}."""
    if type(value) is not dict or type(value.get("counts")) is not str:
        return False
    size = value.get("size")
    return type(size) is list and len(size) == 2 and all(map(is_side, size))


def is_side(value: Any) -> bool:
    """a side of an image in pixels."""
    return integer(value) and 0 < value < 2**31
