"""What a value of a COCO file means; None where it means nothing.

The docstring of each function from `identity` on is what messages call its legal values.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Container
from typing import Any

from harmonic_jax.json_file import JsonFileError, shown

Id = int | str
Box = tuple[float, float, float, float]

_FLAGS = {0: False, 1: True, "0": False, "1": True}
_LARGEST = 1e300  # beyond it a product of two is infinite
LARGEST_AREA = 1e38  # records hold float32


class FieldError(JsonFileError):
    """A field of an entry that is absent, or not what it should be."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def read_field(entry: Any, field: str, legal: Callable[[Any], Any]) -> Any:
    """A field's value, by the function that knows what is legal.

    Raises:
      FieldError: the entry is no object, has no such field, or another value.
    """
    value = legal(entry.get(field)) if isinstance(entry, dict) else None
    if value is None:
        raise FieldError(field, problem(entry, field, legal))
    return value


def problem(entry: Any, field: str, legal: Callable[[Any], Any]) -> str:
    """What is wrong with a field of an entry, in words."""
    if not isinstance(entry, dict):
        return f"{shown(entry)} must be an object with {field}"
    if field not in entry:
        return f"no {field}; its keys are {', '.join(map(shown, list(entry)[:8])) or 'none'}"
    return f"{field} is {shown(entry[field])}; it must be {legal.__doc__}"


def unknown(value: Id, known: Container[Id], where: str) -> str:
    """Words for an id that `where` does not have; a text of digits and a number are two ids."""
    is_number = isinstance(value, str) and value.isdecimal() and len(value) < 40
    other: Id = int(value) if is_number else str(value)
    hint = f", but {other!r} is" if other != value and other in known else ""
    return f"{shown(value)} is not in {where}{hint}"


def as_int64(identity: Id) -> int:
    """An id as the tables hold it: itself where 64 bits are enough, else a hash of it.

    The hash is the same in every file, and at least 2^62, where few ids are.

    Example:
      >>> as_int64(7), as_int64("7") == as_int64(7), as_int64(2**64) >= 2**62
      (7, False, True)
    """
    if type(identity) is int and -(2**63) <= identity < 2**63:
        return identity
    digest = hashlib.sha256(repr(identity).encode()).digest()
    return int.from_bytes(digest[:8]) >> 2 | 2**62


def clean_name(text: str) -> str:
    """A class name as it is compared: one space for any run of them, none around, in form NFC.

    Example:
      >>> clean_name(" traffic\\n light ")
      'traffic light'
    """
    return unicodedata.normalize("NFC", " ".join(text.split()))


def identity(value: Any) -> Id | None:
    """a whole number, or a text"""
    if type(value) is int or (type(value) is str and value):
        return value
    # A larger float has lost digits: it may have been another id.
    is_whole = type(value) is float and abs(value) < 2**53 and value.is_integer()
    return int(value) if is_whole else None


def class_id(value: Any) -> int | None:
    """a whole number of 64 bits"""
    number = identity(value)
    return number if isinstance(number, int) and -(2**63) <= number < 2**63 else None


def side(value: Any) -> int | None:
    """a number of pixels"""
    number = identity(value)
    return number if isinstance(number, int) and 0 < number < 2**31 else None


def number(value: Any) -> float | None:
    """a number"""
    # A float may be NaN or infinite, which has its own rule; an int too large for a float may not.
    if type(value) is float or (type(value) is int and -_LARGEST < value < _LARGEST):
        return float(value)
    return None


def flag(value: Any) -> bool | None:
    """0 or 1"""
    if value is None:
        return False
    return _FLAGS.get(value) if isinstance(value, int | float | str) else None


def text(value: Any) -> str | None:
    """a text"""
    return value if type(value) is str else None


def class_name(value: Any) -> str | None:
    """a text that is not empty, and has no half of a character"""
    is_whole = type(value) is str and not any(0xD800 <= ord(letter) < 0xE000 for letter in value)
    return clean_name(value) or None if is_whole else None


def box(value: Any) -> Box | None:
    """four numbers: x, y, width, height"""
    if type(value) is not list or len(value) != 4:
        return None
    x, y, width, height = map(number, value)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height


def area(value: Any) -> float | None:
    """a number of square pixels"""
    pixels = number(value)
    return pixels if pixels is not None and 0 <= pixels < LARGEST_AREA else None


def entries(value: Any) -> list[Any] | None:
    """a list"""
    return value if isinstance(value, list) else None


def run_lengths(value: Any) -> dict[str, Any] | None:
    """compressed run lengths: {"size": [height, width], "counts": text}"""
    if type(value) is not dict or type(value.get("counts")) is not str:
        return None
    size = value.get("size")
    is_size = type(size) is list and len(size) == 2 and all(map(side, size))
    return value if is_size else None
