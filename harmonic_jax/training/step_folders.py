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

Whoever reads a step holds its manifest (flock), and the writer passes over steps that are held:
they are dropped with a later save.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, NamedTuple, TypedDict

import msgspec

from harmonic_jax.files import flush_folder

_LOG = logging.getLogger(__name__)
LOCK = ".lock"
MANIFEST = "manifest.json"
_HEAD = b'{"sha256": "'
_HEX_DIGITS = 64
_MOST_BYTES = 2**26  # a hundred times what the manifest of the largest detector has
_STEP_FOLDER = re.compile(r"step_(\d{8,})(?:\.(\d+))?")
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


class _Entry(NamedTuple):
    """One complete step. A step saved again gets the next attempt, so that it too needs but one
    rename; the attempts before it are then deleted."""

    step: int
    attempt: int
    folder: Path


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
        return tuple(sorted({entry.step for entry in self._entries()}))

    def choose(self, held: ExitStack, *, all_files: bool = True) -> Choice:
        """Finds the newest step that is not damaged.

        It is not dropped before `held` is closed. Unless `all_files`, its manifest alone is
        checked.
        """
        skipped: list[tuple[int, str]] = []
        for entry in self._entries():
            with ExitStack() as stack:
                _hold(entry.folder, fcntl.LOCK_SH, stack)
                try:
                    document = read_manifest(entry.folder, all_files=all_files)
                    if document["step"] != entry.step:
                        raise DamagedError(f"its manifest is of step {document['step']}")
                except DamagedError as error:
                    if not entry.folder.exists():  # dropped since: there is a newer one
                        return self.choose(held, all_files=all_files)
                    skipped.append((entry.step, str(error)))
                else:
                    held.push(stack.pop_all())
                    return Choice(folder=entry.folder.name, document=document, skipped=skipped)
        return Choice(folder=None, document={}, skipped=skipped)

    def claim(self) -> None:
        """Makes the folder, takes the right to write, and clears what a killed writer left.

        Raises:
          OSError: it cannot be written, or another process writes to it.
        """
        if self._lock is not None:
            return
        if self.directory.is_symlink() and not self.directory.exists():
            target = self.directory.readlink()
            raise FileNotFoundError(errno.ENOENT, f"is a link to {target}, which is not there")
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
        """Seals the temporary folder, makes it the newest step, and drops what is not kept."""
        temporary = self.temporary(step)
        seal(temporary, document)
        attempts = [entry.attempt for entry in self._entries() if entry.step == step]
        suffix = f".{max(attempts) + 1}" if attempts else ""
        temporary.rename(self.directory / f"step_{step:08d}{suffix}")
        flush_folder(self.directory)
        kept: set[int] = set()
        for entry in self._entries():
            if entry.step <= step and entry.step not in kept and len(kept) < self._keep:
                kept.add(entry.step)
            else:
                _drop(entry.folder, even_if_read=entry.step > step)

    def _entries(self) -> list[_Entry]:
        """Complete steps, newest first."""
        try:
            folders = list(self.directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        matches = [(_STEP_FOLDER.fullmatch(folder.name), folder) for folder in folders]
        return sorted(
            (_Entry(int(m[1]), int(m[2] or 0), folder) for m, folder in matches if m), reverse=True
        )


def take_lock(folder: Path) -> IO[bytes]:
    """Takes the right to write to a folder; closing what is returned, or dying, gives it up.

    That is what POSIX record locks do; those of flock would live on in forked data workers. On a
    file system without locks it goes on without, and says so.

    Raises:
      OSError: another process has it, or the lock is a link: what that points to is not touched.
    """
    path = folder / LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, f"its {LOCK} is a link; remove it", str(folder)) from error
        raise
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
    try:
        _check_is_file(folder / MANIFEST, MANIFEST, most=_MOST_BYTES)
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise DamagedError(f"{MANIFEST}: {error.strerror}") from error
    start = len(_HEAD) + _HEX_DIGITS
    if raw[:start] != _HEAD + hashlib.sha256(raw[start:]).hexdigest().encode():
        raise DamagedError(f"{MANIFEST} does not match its own SHA-256")
    try:
        manifest = msgspec.json.decode(raw, type=_Manifest)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is not what a training writes: {error}") from error
    for name in manifest.files:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise DamagedError(f"{MANIFEST}: file {name!r:.80} does not lie in the step's folder")
    for name, expected in manifest.files.items() if all_files else ():
        try:
            size = _check_is_file(folder / name, name)
            if size != expected.bytes:
                raise DamagedError(f"{name} has {size} bytes instead of {expected.bytes}")
            if _digest(folder / name) != expected.sha256:
                raise DamagedError(f"{name} does not match its SHA-256")
        except (OSError, ValueError) as error:  # ValueError: no name that the system knows
            raise DamagedError(f"{name!r:.80}: {getattr(error, 'strerror', error)}") from error
    document: dict[str, Any] = msgspec.to_builtins(manifest)
    return document


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


def _drop(folder: Path, *, even_if_read: bool) -> None:
    """Deletes a step, unless somebody reads it."""
    with ExitStack() as stack:
        try:
            _hold(folder, fcntl.LOCK_EX | fcntl.LOCK_NB, stack)
        except BlockingIOError:
            if not even_if_read:
                return
        trash = folder.with_name(f".trash_{folder.name}")
        folder.rename(trash)
    # Who waited for the lock finds now that the folder is gone.
    _remove(trash)


def _remove(path: Path) -> None:
    """Deletes a folder, or what somebody put in its place; not what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _hold(folder: Path, how: int, stack: ExitStack) -> None:
    """Locks the manifest of a step until `stack` closes, where it has one and the disk has locks.

    Raises:
      BlockingIOError: somebody else holds it, and `how` is not to wait.
    """
    try:
        # Without waiting for who writes to a pipe that somebody put there.
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError:
        return
