"""Fields of JSON files, checked: a wrong one is named with its file, place and value."""

from collections.abc import Callable, Mapping
from typing import Any


def entries_of(content: Any, key: str, name: str) -> list[Any]:
    entries = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError(f"{name}: must hold a list of {key}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{name}: {key}[{i}] is {str(entry)[:60]}; it must be an object")
    return entries


def column(
    entries: list[Any], field: str, is_legal: Callable[[Any], bool], where: str
) -> list[Any]:
    values = [entry.get(field) for entry in entries]
    for i, value in enumerate(values):
        if not is_legal(value):
            legal = (is_legal.__doc__ or "").rstrip(".")
            found = f"{field} is {str(value)[:60]!r}" if field in entries[i] else f"no {field}"
            raise ValueError(f"{where}[{i}]: {found}; it must be {legal}")
    return values


def integer(value: Any) -> bool:
    """an integer."""
    return type(value) is int


def number(value: Any) -> bool:
    """a number."""
    return type(value) is float or type(value) is int


def flag(value: Any) -> bool:
    """0 or 1."""
    return value in (0, 1)


def text(value: Any) -> bool:
    """a text."""
    return type(value) is str


def box(value: Any) -> bool:
    """four numbers: x, y, width, height."""
    return type(value) is list and len(value) == 4 and all(map(number, value))
