"""Encoded bytes -> uint8 RGB pixels, by written rules; what no rule covers is refused.

JPEG goes through libjpeg-turbo (simplejpeg), twice as fast as Pillow and without its lock;
everything else through Pillow, which unlike OpenCV refuses a file that ends early.
"""

import dataclasses
import io

import numpy as np
import simplejpeg
from PIL import Image

# Named, so that Pillow never starts an external program for a file that claims to be PostScript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""How names of such files end, in lower case. What a file is, its first bytes say."""
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_EXIF_ORIENTATION = 0x0112
# libjpeg only warns when it had to invent pixels; these are the warnings that say so.
_INVENTED_PIXELS = ("premature end", "bad huffman", "bad arithmetic", "resync")


REFUSALS = {
    "empty": "the file has no bytes",
    "not_an_image": "no known image format",
    "truncated": "the file ends early",
    "corrupt": "the header or pixels are damaged",
    "too_large": "more pixels than data.max_pixels",
    "size_mismatch": "not the size that its annotation states",
    "unsupported": "32-bit pixels, which have no fixed range",
}
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


class ImageError(ValueError):
    """An image that cannot be used; `reason` is a key of REFUSALS."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


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
    """Decodes an image file to uint8 RGB.

    Annotation tools of VOC and COCO count stored pixels, so stored pixels are used as they are
    and an EXIF orientation is ignored, unless the annotated size is the stored size swapped and
    the orientation swaps it: then the image is rotated as EXIF says. Both are noted. Gray is
    repeated, CMYK converted, of 16 bits the upper 8 kept, alpha dropped, the first frame taken.
    A JPEG of which libjpeg had to invent pixels is refused, where libjpeg itself only warns.

    Args:
      data: the whole file.
      max_pixels: larger images are refused, by their header, before any pixel is decoded.
      annotated_size: (height, width) according to the annotation; an image of another size is
        refused, because its boxes cannot be trusted. None: any size.
      upright: turn the image as EXIF says in any case, as viewers do: for photos without
        annotations.

    Returns:
      The pixels, and notes for the report.

    Raises:
      ImageError: with a reason and one line of detail.

    >>> buffer = io.BytesIO()
    >>> Image.new("L", (4, 2), 200).save(buffer, "PNG")
    >>> decoded = decode_image(buffer.getvalue(), max_pixels=1000)
    >>> decoded.image.shape, decoded.notes
    ((2, 4, 3), ('grayscale',))
    """
    with _open(data) as header:
        width, height = header.size
        if height * width > max_pixels:
            raise ImageError(
                "too_large", f"{height} x {width} pixels are more than max_pixels = {max_pixels}"
            )
        orientation = _orientation(header)
        rotate = upright or _must_rotate((height, width), annotated_size, orientation)
        notes = _notes(header, data)
        if orientation != 1:
            notes.append("exif_rotated" if rotate else "exif_ignored")
        if header.format in ("JPEG", "MPO") and header.mode in ("L", "RGB"):
            image = _decode_jpeg(header, data, notes)
        else:
            image = rgb_pixels(header)
    if rotate:
        image = _turned(image, orientation)
    return DecodedImage(np.ascontiguousarray(image), tuple(notes))


def _open(data: bytes) -> Image.Image:
    """Reads the header; pixels stay encoded."""
    if not data:
        raise ImageError("empty", "the file has no bytes")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_large", str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types on malformed bytes
        if "truncated" in str(error).lower():
            raise ImageError("truncated", "the header ends early") from error
        if data.startswith(_SIGNATURES):
            raise ImageError("corrupt", "the header is damaged or ends early") from error
        raise ImageError("not_an_image", f"none of {', '.join(FORMATS)}") from error


def _orientation(header: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none or it is unreadable."""
    if header.format == "TIFF":  # Pillow has turned it already, in its size too
        return 1
    if header.format == "PNG" and "exif" not in header.info:  # Pillow would decode to look for it
        return 1
    try:
        value = header.getexif().get(_EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return value if value in range(1, 9) else 1


def _must_rotate(
    stored: tuple[int, int], annotated: tuple[int, int] | None, orientation: int
) -> bool:
    """Whether the annotation counts rotated pixels; refuses a size that fits neither way."""
    if annotated is None or annotated == stored:
        return False
    if annotated == stored[::-1] and orientation >= 5:
        return True
    raise ImageError(
        "size_mismatch",
        f"the file has {stored[0]} x {stored[1]} pixels, its annotation says "
        f"{annotated[0]} x {annotated[1]}",
    )


def _notes(header: Image.Image, data: bytes) -> list[str]:
    """What conversion to 8-bit RGB will do."""
    mode = header.mode
    is_16bit_png = header.format == "PNG" and data[24:25] == b"\x10"  # bit depth in IHDR
    found = {
        "grayscale": mode in ("1", "L", "LA", "F") or mode.startswith("I"),
        "cmyk": mode == "CMYK",
        "16bit": mode.startswith("I") or is_16bit_png,
        "palette": mode in ("P", "PA"),
        "alpha": mode in ("LA", "PA", "RGBA") or "transparency" in header.info,
        "many_frames": header.format != "MPO" and getattr(header, "is_animated", False),
    }
    return [note for note, is_there in found.items() if is_there]


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
    """Pixels of an image that Pillow has opened, by the rules of `decode_image`.

    Raises:
      ImageError: they are damaged, or of a kind without a fixed range.
    """
    try:
        header.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types on malformed bytes
        words = str(error).lower()
        is_short = "truncated" in words or isinstance(error, EOFError)
        raise ImageError("truncated" if is_short else "corrupt", str(error)) from error
    mode = header.mode
    if mode.startswith("I;16") or (mode == "I" and header.format in ("PNG", "PPM")):
        # convert("RGB") would clip at 255 instead of scaling.
        gray = (np.asarray(header) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if mode in ("I", "F"):
        raise ImageError("unsupported", f"{mode} pixels (32 bits) have no fixed range")
    if mode in ("P", "PA") or "transparency" in header.info:
        # Straight to RGB Pillow warns, and turns some palettes' transparency into colour.
        return np.asarray(header.convert("RGBA"))[..., :3]
    return np.asarray(header.convert("RGB"))


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation; those from 5 on swap height and width."""
    transposed = image.transpose(1, 0, 2)
    match orientation:
        case 1:
            return image
        case 2:
            return image[:, ::-1]
        case 3:
            return image[::-1, ::-1]
        case 4:
            return image[::-1]
        case 5:
            return transposed
        case 6:
            return transposed[:, ::-1]
        case 7:
            return transposed[::-1, ::-1]
        case 8:
            return transposed[::-1]
    raise AssertionError(orientation)
