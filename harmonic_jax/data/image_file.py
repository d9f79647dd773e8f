"""An image file before its pixels are decoded: its bytes, format and size, and how it is turned."""

import contextlib
import errno
import io
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from harmonic_jax.file_kinds import kind_of

MAX_FILE_BYTES = 2**30  # what is larger has more pixels than anyone trains on, or is no image
FORMATS = "JPEG, PNG, BMP, GIF, WebP, TIFF and PPM"
REFUSALS = {
    "empty": "the file has no bytes",
    "not_an_image": "no known image format",
    "truncated": "the file ends early",
    "corrupt": "the header or pixels are damaged",
    "too_large": "more pixels than data.max_pixels",
    "size_mismatch": "not the size that its annotation states",
    "unsupported": "pixels without a fixed range, or of a kind that is not read",
}

# Each opened by its own class: Image.open would ask every plugin, even those that start programs.
_READERS = (
    ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
    ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    (tuple(b"P%c" % c for c in b"123456fF"), PpmImagePlugin.PpmImageFile),
)
# In what Pillow says: the reason.
_COMPLAINTS = {
    "truncated": "truncated",
    "not enough image data": "truncated",
    "unpack": "truncated",
    "decompression bomb": "too_large",
    "cannot handle": "unsupported",
    "support": "unsupported",
    "unknown pixel mode": "unsupported",
    "unknown data organization": "unsupported",
    "samples per pixel": "unsupported",
}
_ORIENTATION, _XMP = 0x0112, 700  # Pillow looks for an orientation in XMP as well
_UNUSED = b"\xfd\xfd"  # a tag of those that TIFF leaves to everyone
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q"}  # types of a tag's value
_DAMAGE = (KeyError, struct.error, OverflowError)  # of a directory of tags that is not whole
_number = int.from_bytes


class ImageError(ValueError):
    """An image that cannot be used; `reason` is a key of REFUSALS."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def read_image_file(path: str | Path, *, start: int | None = None) -> bytes:
    """The bytes of a regular file, or the first `start` of them.

    An OSError for a pipe or a device, which may never end, and for more than MAX_FILE_BYTES.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            data = file.read(MAX_FILE_BYTES + 1 if start is None else start)
    except ValueError as error:  # a name that no file can have
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES} bytes", str(path))
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_image(data: bytes) -> tuple[Image.Image, int]:
    """Reads the header of an image file; a damaged one or an unknown format is an ImageError.

    The orientation is that of EXIF (JPEG, PNG, WebP), or TIFF's tag of the same number; XMP is not
    asked. Where it is absent or nonsense, the image is upright. Of a PNG, text, colour profiles
    and the like are left out before Pillow sees them: it refuses those that are large.

    Returns:
      The image, its pixels still encoded, of the size in which they are stored; and EXIF's number
      of 1 to 8 for what a viewer makes of it, 1 for upright.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    reader = _reader(data)
    exif, orientation, is_animated = b"", 1, False
    if reader is PngImagePlugin.PngImageFile:
        data, exif, is_animated = _plain_png(data)
    elif reader is TiffImagePlugin.TiffImageFile:
        try:
            orientation, data = _stored_tiff(data)
        except _DAMAGE as error:
            raise ImageError("truncated", "its directory lies beyond the file's end") from error
    try:
        header = reader(io.BytesIO(data))
    except Exception as error:  # Pillow raises many types on malformed bytes
        if reader is WebPImagePlugin.WebPImageFile and len(data) < 8 + _number(data[4:8], "little"):
            raise ImageError("truncated", "the file is shorter than its header says") from error
        raise refusal(error) from error
    header.info["is_animated"] = is_animated  # Pillow's own field would have it look for frames
    exif = exif or header.info.get("exif", b"")
    if exif and header.format != "TIFF":
        with contextlib.suppress(*_DAMAGE):  # it says nothing about the pixels
            orientation = _orientation(_tags(exif.removeprefix(b"Exif\0\0")))
    return header, orientation


def refusal(error: Exception) -> ImageError:
    """What Pillow's complaint about a file means; MemoryError stays what it is."""
    if isinstance(error, MemoryError):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    reason = "truncated" if isinstance(error, EOFError) else "corrupt"
    found = (reason for words, reason in _COMPLAINTS.items() if words in text.lower())
    return ImageError(next(found, reason), text)


def _reader(data: bytes) -> type[ImageFile.ImageFile]:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    for signatures, reader in _READERS:
        if data.startswith(signatures):
            return reader
    kind = kind_of(data)
    what = f"is {kind}" if kind else f"begins with {data[:8]!r}"
    raise ImageError("not_an_image", f"the file {what}; {FORMATS} are read")


def _plain_png(data: bytes) -> tuple[bytes, bytes, bool]:
    """A PNG of nothing but the pixels of its first frame; its EXIF; whether it has more frames."""
    view = memoryview(data)
    kept, exif, is_animated, at, kind = [view[:8]], b"", False, 8, b""
    while at < len(data) and kind != b"IEND":
        length, kind = _number(data[at : at + 4], "big"), data[at + 4 : at + 8]
        start, at = at, at + 12 + length
        if kind == b"eXIf":
            exif = data[start + 8 : at - 4]
        elif kind[:1].isupper() or kind == b"tRNS":  # capitals: what no reader may skip
            kept.append(view[start:at])
        is_whole = kind == b"IDAT" and at <= len(data)  # Pillow looks at other parts' checksums
        if is_whole and zlib.crc32(view[start + 4 : at - 4]) != _number(view[at - 4 : at], "big"):
            raise ImageError("corrupt", "the checksum of the pixels is wrong")
        is_animated |= kind == b"acTL"
    return b"".join(kept), exif, is_animated


def _stored_tiff(data: bytes) -> tuple[int, bytes]:
    """The orientation of a TIFF, and the file without it: Pillow would turn the pixels."""
    tags = _tags(data)
    changed = bytearray(data)
    for at, tag, _ in tags:
        if tag in (_ORIENTATION, _XMP):
            changed[at : at + 2] = _UNUSED
    return _orientation(tags), bytes(changed)


def _orientation(tags: Sequence[tuple[int, int, int]]) -> int:
    value = next((value for _, tag, value in tags if tag == _ORIENTATION), 1)
    return value if value in range(1, 9) else 1


def _tags(tiff: bytes) -> list[tuple[int, int, int]]:
    """(place, tag, value) in the first directory of TIFF or EXIF data; 0 where it is no integer."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    is_big = struct.unpack_from(order + "H", tiff, 2)[0] == 43
    offset, number, size, value_at = ("Q", "Q", 20, 12) if is_big else ("I", "H", 12, 8)
    (place,) = struct.unpack_from(order + offset, tiff, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + number, tiff, place)
    first = place + struct.calcsize(order + number)
    struct.unpack_from("B", tiff, first + count * size - 1)
    tags = []
    for at in range(first, first + count * size, size):
        tag, kind = struct.unpack_from(order + "HH", tiff, at)
        letter = _INTEGERS.get(kind)
        value = struct.unpack_from(order + letter, tiff, at + value_at)[0] if letter else 0
        tags.append((at, tag, value))
    return tags
