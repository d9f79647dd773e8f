"""Images -> the batches that the network takes, the same way as in evaluation."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from harmonic_jax.config import ConfigError, DataConfig
from harmonic_jax.data.sample import empty_batch, write_image
from harmonic_jax.structures import Batch


@dataclasses.dataclass(frozen=True)
class Shapes:
    """How images reach the network at one scale.

    Attributes:
      data: sizes to which images are resized; the last of `short_sides` counts.
      bucket: the padded height and width.
    """

    data: DataConfig
    bucket: tuple[int, int]


def shapes_at(data: DataConfig, bucket: tuple[int, int], scale: float) -> Shapes:
    """The shapes of a bucket with all sides times a factor; 1 leaves them as in evaluation.

    Raises:
      ConfigError: sides that are too small or too large.

    >>> shapes_at(DataConfig(short_sides=(800,)), (800, 1344), 0.5).bucket
    (416, 672)
    """
    if scale == 1.0:
        return Shapes(data, bucket)
    try:
        scaled = dataclasses.replace(
            data,
            short_sides=tuple(round(side * scale) for side in data.short_sides),
            max_side=round(data.max_side * scale),
        )
    except ConfigError as error:
        raise ConfigError(f"the scale {scale:g} does not fit this run: {error}") from None
    height, width = (math.ceil(round(side * scale) / data.stride) * data.stride for side in bucket)
    return Shapes(scaled, (height, width))


def make_batch(images: Sequence[np.ndarray], shapes: Shapes, *, batch_size: int) -> Batch:
    """Resizes and pads images; rows without an image are blank.

    Args:
      images: at most `batch_size`, uint8 RGB [h, w, 3] of any size.
      shapes: the sizes.
      batch_size: rows of the batch.

    Returns:
      numpy arrays; `record_index` is the row, -1 in blank rows.
    """
    data = shapes.data
    batch: Any = empty_batch(batch_size, shapes.bucket, data)
    batch.record_index[: len(images)] = np.arange(len(images))
    for row in range(batch_size):
        image = images[row] if row < len(images) else None
        write_image(batch, row, image, data, short_side=data.short_sides[-1])
    return cast(Batch, batch)
