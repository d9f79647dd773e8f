"""What a checkpoint step consists of: a list of its files, each with its SHA-256.

`manifest.json` is written last, into a folder that nobody reads yet, and covers itself: its
first entry is the digest of all the bytes behind it. So a flipped bit anywhere in the step is
found, in the manifest too.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from harmonic_jax.files import flush_folder
from harmonic_jax.json_file import JsonFileError, parse_json

FILE_NAME = "manifest.json"
_HEAD = b'{"sha256": "'
_HEX_DIGITS = 64
_MOST_BYTES = 2**26  # a hundred times what the largest detector has


class DamagedError(Exception):
    """A file of a checkpoint is missing or not what it was when it was written."""


def seal(folder: Path, document: dict[str, Any]) -> None:
    """Writes the manifest of `folder`: the document and the digest of every file in it.

    Everything is flushed to the disk first, so that a manifest never outlives what it lists.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
        else:
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": _digest(path, flush=True)}
    rest = json.dumps({**document, "files": files}, allow_nan=False).encode()[1:]
    rest = b'", ' + rest
    raw = _HEAD + hashlib.sha256(rest).hexdigest().encode() + rest
    with (folder / FILE_NAME).open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    flush_folder(folder)


def read(folder: Path) -> dict[str, Any]:
    """Returns the document of a sealed folder, after checking the manifest's own digest.

    Its `step`, `metadata`, `leaves` and `files` are of the types that `CheckpointStore` writes,
    and no file lies outside of the folder.

    Raises:
      DamagedError: the manifest is missing, its bytes have changed, or it was made by other means.
    """
    try:
        _check_is_file(folder / FILE_NAME, FILE_NAME, most=_MOST_BYTES)
        raw = (folder / FILE_NAME).read_bytes()
    except OSError as error:
        raise DamagedError(f"{FILE_NAME}: {error.strerror}") from error
    start = len(_HEAD) + _HEX_DIGITS
    digest = hashlib.sha256(raw[start:]).hexdigest().encode()
    if raw[:start] != _HEAD + digest:
        raise DamagedError(f"{FILE_NAME} does not match its own SHA-256")
    try:
        document = parse_json(raw, FILE_NAME)
    except JsonFileError as error:
        raise DamagedError(str(error)) from None
    problem = next(_problems(document), None)
    if problem is not None:
        raise DamagedError(f"{FILE_NAME}: {problem}")
    return document


def verify(folder: Path) -> dict[str, Any]:
    """Returns the document of a sealed folder, after checking every file it lists.

    Raises:
      DamagedError: names the first file that is missing or has changed.
    """
    document = read(folder)
    for name, expected in document["files"].items():
        path = folder / name
        try:
            size = _check_is_file(path, name)
            if size != expected["bytes"]:
                raise DamagedError(f"{name} has {size} bytes instead of {expected['bytes']}")
            if _digest(path) != expected["sha256"]:
                raise DamagedError(f"{name} does not match its SHA-256")
        except OSError as error:
            raise DamagedError(f"{name:.80}: {error.strerror}") from error
        except ValueError as error:  # no name that the system knows
            raise DamagedError(f"{name!r:.80}: {error}") from error
    return document


def _problems(document: dict[str, Any]) -> Iterator[str]:
    """What no store writes: bytes that nobody changed may still have been made by hand."""
    if type(document.get("step")) is not int:
        yield "step must be a whole number"
    for part in ("metadata", "leaves", "files"):
        if not isinstance(document.get(part), dict):
            yield f"{part} must be an object"
            return
    for name, leaf in document["leaves"].items():
        if not _is_leaf(leaf):
            yield f"leaf {name!r:.80} must have a shape and a dtype"
    for name, file in document["files"].items():
        if not _is_inside(name):
            yield f"file {name!r:.80} does not lie in the folder of the step"
        if not _is_file_entry(file):
            yield f"file {name!r:.80} must have bytes and sha256"


def _is_leaf(leaf: Any) -> bool:
    if not isinstance(leaf, dict) or not isinstance(leaf.get("shape"), list):
        return False
    is_shape = all(type(size) is int and size >= 0 for size in leaf["shape"])
    return is_shape and isinstance(leaf.get("dtype"), str)


def _is_file_entry(file: Any) -> bool:
    return (
        isinstance(file, dict)
        and type(file.get("bytes")) is int
        and isinstance(file.get("sha256"), str)
    )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _check_is_file(path: Path, name: str, *, most: int | None = None) -> int:
    """Returns the bytes of a file, and lets no pipe or device be read for ever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{name} is not a file")
    if most is not None and status.st_size > most:
        raise DamagedError(f"{name} has {status.st_size} bytes; it is no manifest")
    return status.st_size


def _digest(path: Path, *, flush: bool = False) -> str:
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
