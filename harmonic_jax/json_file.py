"""JSON from a file: its value, or one line that names the file and says why it has none."""

import json
import reprlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harmonic_jax.file_kinds import kind_of

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 3

ObjectHook = Callable[[dict[str, Any]], Any]


class JsonFileError(ValueError):
    """A file that is not what it should be; one line that names the file, the place, the value."""


def shown(value: Any) -> str:
    """A value for messages, of whatever size and depth."""
    return _short.repr(value)


def read_json(
    path: str | Path,
    *,
    most_bytes: int | None = None,
    unique_keys: bool = False,
    object_hook: ObjectHook | None = None,
) -> Any:
    """Reads a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    `most_bytes` refuses a larger file, and what is no regular file; the rest is as in `parse_json`.

    Raises:
      JsonFileError: it is not JSON, too large, nested too deeply, or repeats a key.
    """
    path = Path(path)
    if most_bytes is not None:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise JsonFileError(f"{path} is no file")
        if status.st_size > most_bytes:
            raise JsonFileError(
                f"{path}: its size is {status.st_size} bytes; it must be at most {most_bytes}"
            )
    return parse_json(path.read_bytes(), path, unique_keys=unique_keys, object_hook=object_hook)


def parse_json(
    data: bytes | str,
    name: object,
    *,
    unique_keys: bool = False,
    object_hook: ObjectHook | None = None,
) -> Any:
    """The value of JSON that is in memory, in any of its encodings; messages call it `name`.

    Args:
      unique_keys: refuse an object in which a key has two different values; else the last counts.
      object_hook: makes something else of each object, innermost first.

    Raises:
      JsonFileError: it is not JSON, nested too deeply, or repeats a key.

    Example:
      >>> parse_json('{"a": 1, "a": 2}', "x.json", unique_keys=True)
      Traceback (most recent call last):
      harmonic_jax.json_file.JsonFileError: x.json: 'a' is there twice in one object, as 1 and as 2
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        values = dict(pairs)
        if len(values) < len(pairs):
            for key, value in pairs:
                if value is not values[key] and repr(value) != repr(values[key]):
                    both = f"as {shown(value)} and as {shown(values[key])}"
                    raise JsonFileError(
                        f"{name}: {shown(key)} is there twice in one object, {both}"
                    )
        return values if object_hook is None else object_hook(values)

    try:
        if unique_keys:
            return json.loads(data, object_pairs_hook=unique)
        return json.loads(data, object_hook=object_hook)
    except RecursionError:
        raise JsonFileError(f"{name}: its lists or objects are nested too deeply") from None
    except JsonFileError:
        raise
    except ValueError as error:
        raise JsonFileError(f"{name} is not JSON: {_reason(data, error)}") from None


def _reason(data: bytes | str, error: ValueError) -> str:
    if not data.strip():
        return "it is empty"
    kind = kind_of(data) if isinstance(data, bytes) else None
    if kind is not None:
        return f"it is {kind}"
    if isinstance(error, json.JSONDecodeError):
        after = error.doc[error.pos :].strip()
        is_cut = not after or error.msg.startswith("Unterminated")
        where = "it ends early, a file that was cut" if is_cut else f"at {shown(after[:40])}"
        return f"{where} ({error.msg}, line {error.lineno}, column {error.colno})"
    return str(error).partition(";")[0]
