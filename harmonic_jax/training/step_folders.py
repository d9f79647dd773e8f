"""The folders of checkpoints on the disk: which are complete, and how one becomes so.

    checkpoints/
      step_00001000/            complete: manifest.json, and arrays/ as orbax writes them
      step_00002000/
      .saving_00003000/         being written; whoever opens the store next ignores it
      .lock                     held by the process that writes

A step appears under its name by one rename, after all its bytes are on the disk, and disappears
by another, before the first of them is deleted. So every folder named `step_*` is complete, and
all that can be wrong with it is decay, which its manifest (SHA-256 of every file) tells.

Whoever reads a step holds its manifest (flock), and the writer passes over steps that are held:
they are dropped with a later save.
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple, TypedDict

from harmonic_jax.files import flush_folder
from harmonic_jax.training import manifest
from harmonic_jax.training.lock import take_lock

_STEP_FOLDER = re.compile(r"step_(\d{8,})(?:\.(\d+))?")


class _Entry(NamedTuple):
    """One complete step. A step saved again gets the next attempt, so that it too needs but one
    rename; the attempts before it are then deleted."""

    step: int
    attempt: int
    folder: Path


class Choice(TypedDict):
    """The newest step that passed a check; JSON, so that one process can tell the others."""

    folder: str | None  # its name; None where no step passed
    document: dict[str, Any]  # what the check returned
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
        """Returns the complete steps, oldest first."""
        return tuple(sorted({entry.step for entry in self._entries()}))

    def choose(
        self, step: int | None, check: Callable[[Path], dict[str, Any]], held: ExitStack
    ) -> Choice:
        """Finds the newest step, or a given one, that `check` does not call damaged.

        It is not dropped before `held` is closed.
        """
        while True:
            choice = self._choose(step, check, held)
            if choice is not None:
                return choice

    def _choose(
        self, step: int | None, check: Callable[[Path], dict[str, Any]], held: ExitStack
    ) -> Choice | None:
        """None where a step was dropped after it was found: there is a newer one."""
        skipped: list[tuple[int, str]] = []
        for entry in self._entries():
            if step is not None and entry.step != step:
                continue
            with ExitStack() as stack:
                _hold(entry.folder, fcntl.LOCK_SH, stack)
                try:
                    document = check(entry.folder)
                    if document["step"] != entry.step:
                        raise manifest.DamagedError(f"its manifest is of step {document['step']}")
                except manifest.DamagedError as error:
                    if not entry.folder.exists():
                        return None
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
        """Returns where a step is written before it is complete."""
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
        manifest.seal(temporary, document)
        attempts = [entry.attempt for entry in self._entries() if entry.step == step]
        suffix = f".{max(attempts) + 1}" if attempts else ""
        temporary.rename(self.directory / f"step_{step:08d}{suffix}")
        flush_folder(self.directory)
        self._drop_all_but(step)

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

    def _drop_all_but(self, newest: int) -> None:
        """Keeps `keep` steps up to the newest one, the last attempt of each."""
        kept: set[int] = set()
        for entry in self._entries():
            if entry.step <= newest and entry.step not in kept and len(kept) < self._keep:
                kept.add(entry.step)
                continue
            _drop(entry.folder, even_if_read=entry.step > newest)


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
        descriptor = os.open(folder / manifest.FILE_NAME, os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError:
        return
