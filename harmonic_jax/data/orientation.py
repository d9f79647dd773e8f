"""How an image is turned: EXIF's number of 1 to 8, which is a tag of TIFF's, in either."""

import struct
from collections.abc import Sequence

_ORIENTATION, _XMP = 0x0112, 700  # Pillow looks for an orientation in XMP as well
_UNUSED = b"\xfd\xfd"  # a tag of those that TIFF leaves to everyone
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q"}  # types of a tag's value
DAMAGE = (KeyError, struct.error, OverflowError)
"""What a directory that is not whole makes the functions here raise."""


def stored_tiff(data: bytes) -> tuple[int, bytes]:
    """The orientation of a TIFF, and the file without it: Pillow would turn the pixels.

    Raises:
      one of DAMAGE: its directory is not there, or not all of it.
    """
    tags = _tags(data)
    hidden = [at for at, tag, _ in tags if tag in (_ORIENTATION, _XMP)]
    if hidden:
        changed = bytearray(data)
        for at in hidden:
            changed[at : at + 2] = _UNUSED
        data = bytes(changed)
    return _orientation_among(tags), data


def orientation_of(exif: bytes) -> int:
    """The orientation in EXIF's data; 1 where they say nothing, or are damaged."""
    try:
        return _orientation_among(_tags(exif))
    except DAMAGE:  # it says nothing about the pixels
        return 1


def _orientation_among(tags: Sequence[tuple[int, int, int]]) -> int:
    value = next((value for _, tag, value in tags if tag == _ORIENTATION), 1)
    return value if value in range(1, 9) else 1


def _tags(tiff: bytes) -> list[tuple[int, int, int]]:
    """(place, tag, value) in the first directory of TIFF or EXIF data; 0 where it is no integer.

    Raises:
      one of DAMAGE: there is no directory, or not all of it.
    """
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
