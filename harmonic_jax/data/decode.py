"""Encoded bytes -> uint8 RGB pixels, by written rules; what no rule covers is refused.

JPEG goes through libjpeg-turbo (simplejpeg), twice as fast as Pillow and without its lock;
everything else through Pillow, which unlike OpenCV refuses a file that ends early.
"""

import dataclasses
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from harmonic_jax.data.image_file import REFUSALS, ImageError, open_image, refusal
from harmonic_jax.data.records import DetectionSource

__all__ = [
    "NOTES", "REFUSALS", "SUFFIXES", "DecodedImage", "ImageError", "decode_image", "decode_record",
]  # fmt: skip

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""How names of such files end, in lower case. What a file is, its first bytes say."""
# Pillow's names; "I" and "F" have 32 bits.
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
# libjpeg only warns when it had to invent pixels; these are the warnings that say so.
_INVENTED_PIXELS = ("premature end", "bad huffman", "bad arithmetic", "resync")
NOTES = {
    "grayscale": "gray repeated in all channels",
    "cmyk": "converted to RGB",
    "16bit": "the upper 8 bits taken",
    "palette": "colours looked up",
    "alpha": "transparency dropped",
    "many_frames": "the first frame taken",
    "exif_rotated": "rotated, as its annotation is",
    "exif_ignored": "not rotated, as its annotation is not",
    "jpeg_warning": "kept; stray bytes or markers",
}


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """Pixels, and what had to be done to get them.

    Attributes:
      image: uint8 RGB [h, w, 3], contiguous.
      notes: keys of NOTES.
    """

    image: np.ndarray
    notes: tuple[str, ...] = ()


def decode_image(
    data: bytes,
    *,
    max_pixels: int,
    annotated_size: tuple[int, int] | None = None,
    upright: bool = False,
) -> DecodedImage:
    """Decodes an image file to uint8 RGB; what is refused raises an ImageError.

    Annotations of VOC and COCO count stored pixels, so pixels are used as they are stored, in every
    format, and an orientation (EXIF's, or TIFF's tag) is ignored; unless the annotated size is
    the stored size swapped and the orientation swaps it: then the image is turned as it says.
    Both are noted. Gray is repeated, CMYK converted, of 16 bits the upper 8 kept, alpha dropped,
    the first frame taken.
    A JPEG of which libjpeg had to invent pixels is refused, where libjpeg itself only warns.

    Args:
      max_pixels: larger images are refused, by their header, before any pixel is decoded.
      annotated_size: (height, width) according to the annotation; an image of another size is
        refused, because its boxes cannot be trusted. None: any size.
      upright: turn the image as its orientation says in any case, as viewers do: for photos without
        annotations, and for annotations of the turned image.

    >>> import io
    >>> buffer = io.BytesIO()
    >>> Image.new("L", (4, 2), 200).save(buffer, "PNG")
    >>> decoded = decode_image(buffer.getvalue(), max_pixels=1000)
    >>> decoded.image.shape, decoded.notes
    ((2, 4, 3), ('grayscale',))
    """
    opened, orientation = open_image(data)
    width, height = opened.size
    if height * width > max_pixels:
        raise ImageError(
            "too_large", f"{height} x {width} pixels are more than max_pixels = {max_pixels}"
        )
    rotate = upright or annotated_size not in (None, (height, width))
    _check_size((height, width), annotated_size, swapped=rotate and orientation >= 5)
    with opened as header:
        notes = _notes(header)
        if header.format == "JPEG" and header.mode in ("L", "RGB"):
            image = _decode_jpeg(header, data, notes)
        else:
            image = rgb_pixels(header)
        if _has_more_frames(header):
            notes.append("many_frames")
    if orientation != 1:
        notes.append("exif_rotated" if rotate else "exif_ignored")
    if rotate:
        image = _turned(image, orientation)
    return DecodedImage(np.ascontiguousarray(image), tuple(notes))


def decode_record(source: DetectionSource, index: int, *, max_pixels: int) -> DecodedImage:
    """The image of records[index], by `decode_image`; an OSError says why it cannot be read."""
    record = source.records[index]
    return decode_image(
        source.image_bytes(index),
        max_pixels=max_pixels,
        annotated_size=(record.height, record.width),
        upright=source.upright,
    )


def _check_size(stored: tuple[int, int], annotated: tuple[int, int] | None, swapped: bool) -> None:
    """Refuses an annotated size that is not the stored one, its sides swapped or not."""
    if annotated and annotated != (stored[::-1] if swapped else stored):
        raise ImageError(
            "size_mismatch",
            f"the file has {stored[0]} x {stored[1]} pixels, its annotation says "
            f"{annotated[0]} x {annotated[1]}",
        )


def _notes(header: Image.Image) -> list[str]:
    """What conversion to 8-bit RGB will do."""
    mode = header.mode
    found = {
        "grayscale": mode in ("1", "L", "LA", "La", "F") or mode.startswith("I"),
        "cmyk": mode == "CMYK",
        "16bit": mode.startswith("I") or _is_deep(header),
        "palette": mode in ("P", "PA"),
        "alpha": mode in ("LA", "La", "PA", "RGBA") or "transparency" in header.info,
    }
    return [note for note, is_there in found.items() if is_there]


def _is_deep(header: Image.Image) -> bool:
    """Whether colours have more than 8 bits in the file; Pillow keeps the upper ones."""
    for tile in getattr(header, "tile", ())[:1]:
        layout = (tile.args,) if isinstance(tile.args, str) else tuple(tile.args or ())
        highest = layout[-1] if header.format == "PPM" else 0
        return ";16" in str(layout) or (isinstance(highest, int) and highest > 255)
    return False


def _tiff_tag(image: Image.Image, tag: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(tag, default)


def _has_more_frames(header: Image.Image) -> bool:
    """Whether there are frames besides the one that was decoded; damage in them costs nothing."""
    try:
        return bool(header.info.get("is_animated") or getattr(header, "is_animated", False))
    except MemoryError:
        raise
    except Exception:
        return True


def _decode_jpeg(header: Image.Image, data: bytes, notes: list[str]) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        message = str(error)
    if "premature end of jpeg" in message.lower():
        raise ImageError("truncated", message)
    if any(words in message.lower() for words in _INVENTED_PIXELS):
        raise ImageError("corrupt", message)
    # Stray bytes between segments and the like: nothing is lost. Pillow still checks the length.
    notes.append("jpeg_warning")
    return rgb_pixels(header)


def rgb_pixels(header: Image.Image) -> np.ndarray:
    """Pixels of an image that Pillow has opened, by the rules of `decode_image`."""
    try:
        header.load()
    except Exception as error:  # Pillow raises many types on malformed bytes
        raise refusal(error) from error
    mode = header.mode
    if mode.startswith("I;16") or (mode == "I" and header.format in ("PNG", "PPM")):
        # convert("RGB") would clip at 255 instead of scaling.
        bits, is_negative = _tiff_tag(header, 258, (16,))[0], _tiff_tag(header, 262, 1) == 0
        gray = (np.asarray(header) >> (bits - 8)).astype(np.uint8)
        return np.repeat((255 - gray if is_negative else gray)[..., None], 3, axis=2)
    if mode not in _MODES:
        raise ImageError("unsupported", f"no rule for pixels of Pillow's mode {mode}")
    if mode in ("P", "PA", "La", "RGBa") or "transparency" in header.info:
        # Straight to RGB Pillow warns, and turns some palettes' transparency into colour.
        return np.asarray(header.convert("LA" if mode == "La" else "RGBA").convert("RGB"))
    return np.asarray(header.convert("RGB"))


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation; those from 5 on swap height and width."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    return image[::rows, ::columns]
