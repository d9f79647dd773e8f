"""The folders of checkpoints on the disk: which are complete, and how one becomes so.

    checkpoints/
      step_00001000/            complete: manifest.json, and arrays/ as orbax writes them
      step_00002000/
      .saving_00003000/         being written; whoever opens the store next ignores it
      .lock                     held by the process that writes

A step appears under its name by one rename, after all its bytes are on the disk, and disappears
by another, before the first of them is deleted. So every folder named `step_*` is complete, and
all that can be wrong with it is decay. `manifest.json` tells: it is written last, lists every file
with its SHA-256, and covers itself, as its first entry is the digest of all the bytes behind it.

Nobody waits for a reader: the one whose step is dropped meanwhile sees that its folder is gone, and
takes the newer one.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, TypedDict

import msgspec

from harmonic_jax.files import flush_folder

_LOG = logging.getLogger(__name__)
LOCK = ".lock"
MANIFEST = "manifest.json"
_HEAD = b'{"sha256": "'
_HEX_DIGITS = 64
_MOST_BYTES = 2**26  # a hundred times what the manifest of the largest detector has
_STEP_FOLDER = re.compile(r"step_(\d{8,})(\.\d+)?")  # .1: a step saved again, in the past
_Size = Annotated[int, msgspec.Meta(ge=0)]


class DamagedError(Exception):
    """A file of a checkpoint is missing or not what it was when it was written."""


class _Leaf(msgspec.Struct):
    shape: list[_Size]
    dtype: str


class _File(msgspec.Struct):
    bytes: _Size
    sha256: str


class _Manifest(msgspec.Struct):
    step: int
    metadata: dict[str, Any]
    leaves: dict[str, _Leaf]
    files: dict[str, _File]


class Choice(TypedDict):
    """The newest step that passed a check; JSON, so that one process can tell the others."""

    folder: str | None  # its name; None where no step passed
    document: dict[str, Any]  # its manifest
    skipped: list[tuple[int, str]]  # steps before it that did not pass, and what is wrong


class StepFolders:
    """The newest `keep` steps in one folder; one process writes, any number read.

    Looking changes nothing on the disk. All methods raise OSError where the disk does.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = directory
        self._keep = keep
        self._lock: IO[bytes] | None = None

    def steps(self) -> tuple[int, ...]:
        """The complete steps, oldest first."""
        return tuple(sorted({step for step, _ in self._entries()}))

    def choose(self, *, all_files: bool = True) -> Choice:
        """Finds the newest step that is not damaged; unless `all_files`, by its manifest alone."""
        skipped: list[tuple[int, str]] = []
        for step, folder in self._entries():
            try:
                document = read_manifest(folder, all_files=all_files)
                if document["step"] != step:
                    raise DamagedError(f"its manifest is of step {document['step']}")
            except (DamagedError, OSError) as error:
                if not folder.exists():  # dropped since: there is a newer one
                    return self.choose(all_files=all_files)
                skipped.append((step, str(error)))
            else:
                return Choice(folder=folder.name, document=document, skipped=skipped)
        return Choice(folder=None, document={}, skipped=skipped)

    def claim(self) -> None:
        """Makes the folder, takes the right to write, and clears what a killed writer left.

        OSError if another process writes to it.
        """
        if self._lock is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.directory)
        for leftover in (*self.directory.glob(".saving_*"), *self.directory.glob(".trash_*")):
            _remove(leftover)

    def release(self) -> None:
        """Gives up the right to write; safe to call again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def temporary(self, step: int) -> Path:
        """Where a step is written before it is complete."""
        return self.directory / f".saving_{step:08d}"

    def begin(self, step: int) -> None:
        """Makes the temporary folder of a step, empty."""
        self.discard(step)
        self.temporary(step).mkdir()

    def discard(self, step: int) -> None:
        """Deletes the temporary folder of a step."""
        shutil.rmtree(self.temporary(step), ignore_errors=True)

    def publish(self, step: int, document: dict[str, Any]) -> None:
        """Seals the temporary folder, makes it the newest step, and drops what is not kept.

        A step is saved again only where it was damaged: the old one goes first.
        """
        temporary = self.temporary(step)
        seal(temporary, document)
        for _, folder in [entry for entry in self._entries() if entry[0] == step]:
            _drop(folder)
        temporary.rename(self.directory / f"step_{step:08d}")
        flush_folder(self.directory)
        kept = [number for number in self.steps() if number <= step][-self._keep :]
        for number, folder in self._entries():
            if number not in kept:
                _drop(folder)

    def _entries(self) -> list[tuple[int, Path]]:
        """Complete steps and their folders, newest first."""
        try:
            folders = list(self.directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        matches = [(_STEP_FOLDER.fullmatch(folder.name), folder) for folder in folders]
        return sorted(((int(match[1]), folder) for match, folder in matches if match), reverse=True)


def take_lock(folder: Path) -> IO[bytes]:
    """Takes the right to write to a folder; closing what is returned, or dying, gives it up.

    That is what POSIX record locks do; those of flock would live on in forked data workers. On a
    file system without locks it goes on without, and says so.

    Raises:
      OSError: another process has it, or the lock is a link: what that points to is not touched.
    """
    path = folder / LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise OSError(error.errno, "another process is writing there", str(folder)) from error
    except OSError as error:
        _LOG.warning("%s cannot be locked: %s", path, error.strerror)
    return file


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
    text = b'", ' + json.dumps({**document, "files": files}, allow_nan=False).encode()[1:]
    with (folder / MANIFEST).open("wb") as file:
        file.write(_HEAD + hashlib.sha256(text).hexdigest().encode() + text)
        file.flush()
        os.fsync(file.fileno())
    flush_folder(folder)


def read_manifest(folder: Path, *, all_files: bool) -> dict[str, Any]:
    """Returns the document of a sealed folder, after checking its digest, and that of all files.

    Bytes that nobody changed may still have been made by hand: `step`, `metadata`, `leaves` and
    `files` are of the types that `CheckpointStore` writes, and no file lies outside of the folder.

    Raises:
      DamagedError: the manifest is missing, its bytes have changed, or it was made by other means;
        or names the first file that is missing or has changed.
    """
    path = folder / MANIFEST
    if not os.path.isfile(path) or path.stat().st_size > _MOST_BYTES:
        raise DamagedError(f"{MANIFEST} is missing")
    raw = path.read_bytes()
    start = len(_HEAD) + _HEX_DIGITS
    if raw[:start] != _HEAD + hashlib.sha256(raw[start:]).hexdigest().encode():
        raise DamagedError(f"{MANIFEST} does not match its own SHA-256")
    try:
        manifest = msgspec.json.decode(raw, type=_Manifest)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is not what a training writes: {error}") from error
    for name, expected in manifest.files.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise DamagedError(f"{MANIFEST}: file {name!r:.80} does not lie in the step's folder")
        if not all_files:
            continue
        path = folder / relative
        if not os.path.isfile(path):
            raise DamagedError(f"{name!r:.80} is missing")
        if path.stat().st_size != expected.bytes or _digest(path) != expected.sha256:
            raise DamagedError(f"{name} does not match its size or its SHA-256")
    document: dict[str, Any] = msgspec.to_builtins(manifest)
    return document


def _digest(path: Path, *, flush: bool = False) -> str:
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _drop(folder: Path) -> None:
    """Deletes a step: first its name, so that readers see that it is gone."""
    trash = folder.with_name(f".trash_{folder.name}")
    folder.rename(trash)
    _remove(trash)


def _remove(path: Path) -> None:
    """Deletes a folder, or what somebody put in its place; not what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
