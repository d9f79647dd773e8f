"""What a checkpoint step consists of: a list of its files, each with its SHA-256.

`manifest.json` is written last, into a folder that nobody reads yet, and covers itself: its
first entry is the digest of all the bytes behind it. So a flipped bit anywhere in the step is
found, in the manifest too.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FILE_NAME = "manifest.json"
_HEAD = b'{"sha256": "'
_HEX_DIGITS = 64


class DamagedError(Exception):
    """A file of a checkpoint is missing or not what it was when it was written."""


def seal(folder: Path, document: dict[str, Any]) -> None:
    """Writes the manifest of `folder`: the document and the digest of every file in it.

    Everything is flushed to the disk first, so that a manifest never outlives what it lists.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _digest(path, flush=True)}
    rest = json.dumps({**document, "files": files}, allow_nan=False).encode()[1:]
    rest = b'", ' + rest
    raw = _HEAD + hashlib.sha256(rest).hexdigest().encode() + rest
    with (folder / FILE_NAME).open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Any]:
    """Returns the document of a sealed folder, after checking the manifest's own digest.

    Raises:
      DamagedError: the manifest is missing or its bytes have changed.
    """
    try:
        raw = (folder / FILE_NAME).read_bytes()
    except OSError as error:
        raise DamagedError(f"{FILE_NAME}: {error.strerror}") from error
    start = len(_HEAD) + _HEX_DIGITS
    digest = hashlib.sha256(raw[start:]).hexdigest().encode()
    if raw[:start] != _HEAD + digest:
        raise DamagedError(f"{FILE_NAME} does not match its own SHA-256")
    return json.loads(raw)


def verify(folder: Path) -> dict[str, Any]:
    """Returns the document of a sealed folder, after checking every file it lists.

    Raises:
      DamagedError: names the first file that is missing or has changed.
    """
    document = read(folder)
    for name, expected in document["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise DamagedError(f"{name} has {size} bytes instead of {expected['bytes']}")
            if _digest(path) != expected["sha256"]:
                raise DamagedError(f"{name} does not match its SHA-256")
        except OSError as error:
            raise DamagedError(f"{name}: {error.strerror}") from error
    return document


def _digest(path: Path, *, flush: bool = False) -> str:
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
