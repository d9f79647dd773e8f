"""Samples -> one batch of fixed shape."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonic_jax.data.geometry import fill_around, pad_into
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.sample import Sample
from harmonic_jax.structures import Batch, GroundTruth, ObjectMasks


def collate(
    samples: Sequence[Sample], max_objects: int, *, canvas: np.ndarray | None = None
) -> tuple[Batch, list[DataReport]]:
    """Pads images to their bucket and objects to max_objects; keeps the reports beside.

    Args:
      samples: of one bucket.
      max_objects: rows of the ground truth.
      canvas: uint8 [b, *bucket, 3], the images in their places; None: they are copied there.
    """
    size, bucket = len(samples), samples[0].bucket
    # Any: the structures' fields are annotated as device arrays; on the host they hold numpy's.
    images: Any = _paste(samples) if canvas is None else canvas
    image_size: Any = np.full((size, 2), bucket, np.float32)
    scale: Any = np.stack([sample.scale for sample in samples])
    record_index: Any = np.array([sample.index for sample in samples], np.int32)
    is_real: Any = np.array([sample.image is not None for sample in samples])
    boxes: Any = np.zeros((size, max_objects, 4), np.float32)
    labels: Any = np.zeros((size, max_objects), np.int32)
    valid: Any = np.zeros((size, max_objects), bool)
    for row, sample in enumerate(samples):
        number = len(sample.labels)
        boxes[row, :number] = sample.boxes
        labels[row, :number] = sample.labels
        valid[row, :number] = True
        if sample.image is not None:
            image_size[row] = sample.image.shape[:2]
    batch = Batch(
        images=images,
        image_size=image_size,
        scale=scale,
        record_index=record_index,
        is_real=is_real,
        ground_truth=GroundTruth(
            boxes=boxes, labels=labels, valid=valid, masks=_masks(samples, max_objects)
        ),
    )
    return batch, [sample.report for sample in samples]


def _paste(samples: Sequence[Sample]) -> np.ndarray:
    images = np.empty((len(samples), *samples[0].bucket, 3), np.uint8)
    for canvas, sample in zip(images, samples, strict=True):
        if sample.image is None:
            fill_around(canvas, (0, 0))
        else:
            pad_into(canvas, sample.image)
    return images


def _masks(samples: Sequence[Sample], max_objects: int) -> ObjectMasks | None:
    """The objects' masks, padded with zeros; None where the samples have none."""
    grids = [sample.masks for sample in samples if sample.masks is not None]
    if not grids:
        return None
    values: Any = np.zeros((len(samples), max_objects, *grids[0].shape[1:]), np.uint8)
    frames: Any = np.zeros((len(samples), max_objects, 4), np.float32)
    for row, (sample, grid) in enumerate(zip(samples, grids, strict=True)):
        values[row, : len(grid)] = grid
        frames[row, : len(grid)] = sample.frames
    return ObjectMasks(values=values, frames=frames)
