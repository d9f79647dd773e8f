"""A JSON file -> its value; or one line that says why it is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harmonic_jax.coco_format.values import shown
from harmonic_jax.file_kinds import kind_of

_PYTHON = ("'", "None", "True", "False", "nan", "inf", "array(", "tensor(", "(")


class CocoFileError(ValueError):
    """A file that is not what it should be; one line that names the file, the entry, the value."""


def read_json(
    path: str | Path, *, hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Reads a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
      path: the file.
      hook: makes each object of its pairs of key and value; by default a dict, in which the last
        of equal keys counts.

    Raises:
      OSError: the file cannot be read.
      CocoFileError: it is not JSON, or nested too deeply.
    """
    data = Path(path).read_bytes()
    try:
        return json.loads(data, object_pairs_hook=hook)
    except RecursionError:
        raise CocoFileError(f"{path}: its lists or objects are nested too deeply") from None
    except CocoFileError as error:
        raise CocoFileError(f"{path}: {error}") from None
    except ValueError as error:
        raise CocoFileError(f"{path} is not JSON: {_why(data, error)}") from None


def _why(data: bytes, error: ValueError) -> str:
    if not data.strip():
        return "it holds white space alone" if data else "it is empty"
    kind = kind_of(data)
    if kind is not None:
        return f"it is {kind}"
    if isinstance(error, UnicodeDecodeError):
        what = f"byte {error.start} is no {error.encoding.upper()}"
        return f"{what}; JSON is UTF-8, UTF-16 or UTF-32 text"
    if isinstance(error, json.JSONDecodeError):
        return f"{_hint(error)} ({error.msg}, line {error.lineno}, column {error.colno})"
    return "it has a whole number of thousands of digits" if "digits" in str(error) else str(error)


def _hint(error: json.JSONDecodeError) -> str:
    text, rest = error.doc, error.doc[error.pos :]
    if error.msg == "Extra data":
        if text[: error.pos].lstrip().startswith("{") and rest.startswith("{"):
            return "it holds one JSON object a line; join them into one list"
        return f"after the value comes {shown(rest[:40])}"
    if not rest.strip() or error.msg.startswith("Unterminated"):
        return "it ends early, a file that was cut"
    if rest.startswith(_PYTHON):
        return f"{shown(rest[:20])} is Python's way of writing; write the file with json.dump"
    return f"at {shown(rest[:40])}"
