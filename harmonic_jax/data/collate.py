"""Samples -> one batch of fixed shape."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonic_jax.data.geometry import FILL_COLOUR, pad_into
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.sample import Sample
from harmonic_jax.structures import Batch, GroundTruth


def collate(samples: Sequence[Sample], max_objects: int) -> tuple[Batch, list[DataReport]]:
    """Pads images to their bucket and objects to max_objects; keeps the reports beside."""
    size, bucket = len(samples), samples[0].bucket
    # Any: the structures' fields are annotated as device arrays; on the host they hold numpy's.
    images: Any = np.empty((size, *bucket, 3), np.uint8)
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
        if sample.image is None:
            images[row] = FILL_COLOUR
        else:
            pad_into(images[row], sample.image)
            image_size[row] = sample.image.shape[:2]
    batch = Batch(
        images=images,
        image_size=image_size,
        scale=scale,
        record_index=record_index,
        is_real=is_real,
        ground_truth=GroundTruth(boxes=boxes, labels=labels, valid=valid),
    )
    return batch, [sample.report for sample in samples]
