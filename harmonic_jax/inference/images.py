"""Whatever a user has for an image -> uint8 RGB pixels; what is ambiguous is refused."""

import functools
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harmonic_jax.data.decode import ImageError, decode_image, rgb_pixels
from harmonic_jax.data.image_file import read_image_file

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
    if isinstance(image, bytes):
        raise TypeError(
            "the image is bytes; give a path, PIL.Image.open(io.BytesIO(data)), or pixels"
        )
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
    if array.dtype == object or array.dtype.kind not in "uifb":
        raise TypeError(f"an array of {array.dtype} is no image; give uint8, or floats in [0, 1]")
    if array.ndim == 4:
        raise ValueError(
            f"the array has shape {array.shape}; for several images give a list: list(array)"
        )
    is_flat = array.ndim == 2
    if not (is_flat or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: array.transpose(1, 2, 0)"
        raise ValueError(
            f"the array has shape {array.shape}; an image is [h, w] or [h, w, 1, 3 or 4]{hint}"
        )
    if array.size == 0:
        raise ValueError(f"the array has shape {array.shape}; an image needs a pixel")
    pixels = _to_uint8(array)
    if is_flat:
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(
            f"the array is {array.dtype}, whose range is not certain; give uint8 "
            "(array.astype('uint8') where the values are 0..255), or floats in [0, 1]"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # True for NaN too
        raise ValueError(
            f"the array holds floats from {low:g} to {high:g}; they must lie in [0, 1]. For values "
            "0..255 give array.astype('uint8'); normalised images must be turned back"
        )
    return np.round(np.asarray(array, np.float64) * 255.0).astype(np.uint8)
