"""Whatever a user has for an image -> uint8 RGB pixels -> the batch that the network takes."""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from harmonic_jax.config import ConfigError, DataConfig
from harmonic_jax.data.decode import ImageError, decode_image, rgb_pixels
from harmonic_jax.data.image_file import read_image_file
from harmonic_jax.data.sample import empty_batch, write_image
from harmonic_jax.structures import Batch

_LOG = logging.getLogger(__name__)
ImageLike = Any
"""A path, a PIL image, or an array: numpy's, or what `numpy.asarray` takes."""


def read_image(image: ImageLike, *, max_pixels: int, upright: bool = True) -> np.ndarray:
    """The pixels of an image, uint8 RGB [h, w, 3].

    Args:
      image: the path of a file; a PIL image; or an array [h, w], [h, w, 1], [h, w, 3] (RGB) or
        [h, w, 4] (RGBA, whose alpha is dropped), of uint8, or of floats in [0, 1].
      max_pixels: larger files and PIL images are refused before they are decoded.
      upright: turn a file as its EXIF orientation says, as viewers do. PIL images and arrays are
        taken as they are.

    Raises:
      ImageError: the file or the PIL image cannot be decoded.
      OSError: the file cannot be read.
      TypeError: not an image.
      ValueError: an array whose meaning is not certain; the message says what to do.

    >>> read_image(np.full((2, 3), 0.5), max_pixels=100)[0, 0].tolist()
    [128, 128, 128]
    """
    if isinstance(image, str | os.PathLike):
        return read_file(Path(image), max_pixels=max_pixels, upright=upright)
    if isinstance(image, Image.Image):
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                "too_large", f"{height} x {width} pixels are more than max_pixels = {max_pixels}"
            )
        return np.ascontiguousarray(rgb_pixels(image))
    return _from_array(np.asarray(image))


def read_file(path: Path, *, max_pixels: int, upright: bool = True) -> np.ndarray:
    """The pixels of an image file; see `read_image`. Errors name the file."""
    data = read_image_file(path)
    try:
        decoded = decode_image(data, max_pixels=max_pixels, upright=upright)
    except ImageError as error:
        detail = str(error).removeprefix(f"{error.reason}: ")
        raise ImageError(error.reason, f"{path}: {detail}") from error
    if "many_frames" in decoded.notes:
        _tell_of_frames(path.suffix.lower())
    return decoded.image


@functools.cache
def _tell_of_frames(suffix: str) -> None:
    """Says once what becomes of animations and pages."""
    _LOG.warning("of a %s file with several frames the first is looked at", suffix)


def _from_array(array: np.ndarray) -> np.ndarray:
    shape, kind = array.shape, array.dtype.kind
    if kind not in "uifb":
        raise TypeError(f"an array of {array.dtype} is no image; give uint8, or floats in [0, 1]")
    is_image = array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))
    if not is_image or not array.size:
        raise ValueError(
            f"the array has shape {shape}; an image is [h, w] or [h, w, 1, 3 or 4]; channels come "
            "last (array.transpose(1, 2, 0)), and several images are a list of them"
        )
    if kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # True for NaN too
            raise ValueError(
                f"the array holds floats from {low:g} to {high:g}; they must lie in [0, 1]. For "
                "values 0..255 give array.astype('uint8'); normalised images must be turned back"
            )
        array = np.round(np.asarray(array, np.float64) * 255.0).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(
            f"the array is {array.dtype}, whose range is not certain; give uint8 "
            "(array.astype('uint8') where the values are 0..255), or floats in [0, 1]"
        )
    pixels = array.reshape(*shape[:2], -1)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def shapes_at(
    data: DataConfig, bucket: tuple[int, int], scale: float
) -> tuple[DataConfig, tuple[int, int]]:
    """How images of a bucket reach the network with all sides times a factor.

    Returns:
      The sizes to which they are resized, and their padded height and width; for 1 those of
      evaluation.

    >>> shapes_at(DataConfig(short_sides=(800,)), (800, 1344), 0.5)[1]
    (416, 672)
    """
    if scale == 1.0:
        return data, bucket
    try:
        scaled = dataclasses.replace(
            data,
            short_sides=tuple(round(side * scale) for side in data.short_sides),
            max_side=round(data.max_side * scale),
        )
    except ConfigError as error:
        raise ConfigError(f"the scale {scale:g} does not fit this run: {error}") from None
    height, width = (math.ceil(round(side * scale) / data.stride) * data.stride for side in bucket)
    return scaled, (height, width)


def make_batch(
    images: Sequence[np.ndarray], data: DataConfig, bucket: tuple[int, int], *, batch_size: int
) -> Batch:
    """Resizes and pads images as in evaluation; rows without an image are blank.

    Args:
      images: at most `batch_size`, uint8 RGB [h, w, 3] of any size.
      data: the last of `short_sides` counts.
      bucket: the padded height and width.

    Returns:
      numpy arrays; `record_index` is the row, -1 in blank rows.
    """
    batch: Any = empty_batch(batch_size, bucket, data)
    batch.record_index[: len(images)] = np.arange(len(images))
    for row in range(batch_size):
        image = images[row] if row < len(images) else None
        write_image(batch, row, image, data, short_side=data.short_sides[-1])
    return cast(Batch, batch)
