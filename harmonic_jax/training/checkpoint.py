"""Checkpoints that survive a kill at any moment and notice a flipped bit.

    checkpoints/
      step_00001000/            complete: manifest.json, and arrays/ as orbax writes them
      step_00002000/
      .saving_00003000/         being written; whoever opens the store next ignores it
      .lock                     held by the process that writes

A step appears under its name by one rename, after all its bytes are on the disk, and disappears
by another, before the first of them is deleted. So every folder named `step_*` is complete, and
all that can be wrong with it is decay, which its manifest (SHA-256 of every file) tells.
"""

import dataclasses
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import jax

from harmonic_jax.training import arrays, manifest
from harmonic_jax.training.distributed import decide, together

_LOG = logging.getLogger(__name__)
_STEP_FOLDER = re.compile(r"step_(\d{8,})(?:\.(\d+))?")
_ARRAYS = "arrays"

PyTree = Any


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read, or used for the state at hand."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `CheckpointStore.restore` found."""

    step: int
    state: PyTree
    metadata: dict[str, Any]
    skipped: tuple[tuple[int, str], ...]
    """Newer steps that were damaged, newest first, each with what is wrong."""


class _Entry(NamedTuple):
    """One complete step. A step saved again gets the next attempt, so that it too needs but one
    rename; the attempts before it are then deleted."""

    step: int
    attempt: int
    folder: Path


class CheckpointStore:
    """The newest `keep` states of a run, in one folder that all processes see.

    Every process calls `save`, `restore`, `wait` and `close`, in the same order; process 0
    decides, and writes the manifest when all have written their part. Opening a store and reading
    from it changes nothing on the disk, so a running training can be evaluated; a second writer
    is refused.

    The processes meet on their devices in the thread that calls only. The one that writes in the
    background meets the others' through JAX's coordination service: no save can come between the
    collectives of two steps, in different orders on different hosts.

    Saving step N drops the steps after N: they belong to a course that was given up when the run
    went back, to a step before N.

    Args:
      directory: a folder of a POSIX file system; made by the first save.
      keep: how many steps stay, >= 1.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        if "://" in str(directory):
            raise CheckpointError(
                f"{directory} is a URL; checkpoints need a local or mounted folder"
            )
        if keep < 1:
            raise ValueError(f"keep is {keep}; it must be >= 1")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._is_primary = jax.process_index() == 0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._lock: IO[str] | None = None

    @property
    def directory(self) -> Path:
        return self._directory

    def steps(self) -> tuple[int, ...]:
        """Returns the complete steps, oldest first; whether they decayed, `restore` finds out."""
        return tuple(sorted({entry.step for entry in self._entries()}))

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        return max(self.steps(), default=None)

    def claim(self) -> None:
        """Makes the folder, takes the right to write, and clears what a killed writer left.

        `save` does this; call it before compilation to learn early that it cannot be done.

        Raises:
          CheckpointError: the folder cannot be written, or another process writes to it.
        """
        if not self._is_primary or self._lock is not None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self._directory / ".lock")
            for leftover in (*self._directory.glob(".saving_*"), *self._directory.glob(".trash_*")):
                shutil.rmtree(leftover)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self._directory}: {_line(error)}") from error

    def save(self, step: int, state: PyTree, metadata: dict[str, Any]) -> None:
        """Copies the state and writes it in the background; a step that exists is replaced.

        Returns when the state may be donated or changed. A save in progress is waited for.

        Args:
          step: >= 0.
          state: any pytree of numpy and jax arrays.
          metadata: anything JSON can say; NaN and infinity it cannot.

        Raises:
          CheckpointError: this state cannot be stored, or the save before this one failed.
          TogetherError: the same, of several processes: they all fail where one does.
        """
        self.wait()
        try:
            leaves = arrays.named_leaves(state)
            document = {
                "step": step,
                "metadata": json.loads(json.dumps(metadata, allow_nan=False)),
                "leaves": arrays.describe(leaves),
            }
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"cannot store step {step}: {_line(error)}") from error
        temporary = self._directory / f".saving_{step:08d}"
        together(lambda: self._begin(temporary, step))
        try:
            written = arrays.write(temporary / _ARRAYS, leaves)
        except Exception as error:
            raise self._save_failed(step, temporary, error) from error
        self._pending = self._executor.submit(self._commit, temporary, written.result, document)

    def restore(self, abstract_state: PyTree, *, step: int | None = None) -> Restored:
        """Reads the newest undamaged step, or a given one, after checking every file of it.

        Args:
          abstract_state: the state to fill: a pytree of arrays or jax.ShapeDtypeStruct. Leaves
            land on its shardings; numpy arrays become numpy arrays.
          step: this one or none.

        Raises:
          CheckpointError: no step can be used, or the step is of another state: the first leaf
            that does not fit is named. Nothing is cast.
        """
        self.wait()
        try:
            leaves = arrays.named_leaves(abstract_state)
        except ValueError as error:
            raise CheckpointError(f"cannot restore this state: {_line(error)}") from error
        choice = decide(lambda: self._choose(step, manifest.verify))
        for skipped_step, reason in choice["skipped"] if self._is_primary else ():
            _LOG.warning("checkpoint step %d is damaged: %s", skipped_step, reason)
        folder = self._directory / self._usable(choice, step)
        document = choice["document"]
        difference = arrays.first_difference(document["leaves"], arrays.describe(leaves))
        if difference is not None:
            raise CheckpointError(f"{folder} does not fit: {difference}")
        try:
            stored = arrays.read(folder / _ARRAYS, leaves)
        except Exception as error:
            raise CheckpointError(f"cannot read {folder}: {_line(error)}") from error
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), list(stored.values()))
        skipped = tuple((int(number), str(reason)) for number, reason in choice["skipped"])
        return Restored(document["step"], state, document["metadata"], skipped)

    def read_metadata(self, step: int | None = None) -> dict[str, Any]:
        """Returns the metadata of the newest step whose manifest is undamaged, or of a given one.

        Reads no array and asks no other process. The arrays of this step may still be damaged:
        what `restore` returns is the metadata of what it restored.
        """
        choice = self._choose(step, manifest.read)
        self._usable(choice, step)
        return choice["document"]["metadata"]

    def wait(self) -> None:
        """Returns when the save in progress is complete for all processes.

        Raises:
          CheckpointError: it failed; TogetherError where there are several processes.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            together(pending.result)

    def close(self) -> None:
        """Waits for the save in progress and gives up the right to write."""
        try:
            self.wait()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # The other processes may be elsewhere: finish what is ours, wait for nobody.
        self._release()
        failure = self._pending.exception() if self._pending is not None else None
        if failure is not None:
            _LOG.error("%s", failure)

    def _release(self) -> None:
        self._executor.shutdown(wait=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _entries(self) -> list[_Entry]:
        """Complete steps, newest first."""
        try:
            folders = list(self._directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        matches = [(_STEP_FOLDER.fullmatch(folder.name), folder) for folder in folders]
        return sorted(
            (_Entry(int(m[1]), int(m[2] or 0), folder) for m, folder in matches if m), reverse=True
        )

    def _choose(self, step: int | None, check: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Finds the newest entry that passes `check`, and what is wrong with those before it."""
        skipped = []
        for entry in self._entries():
            if step is not None and entry.step != step:
                continue
            try:
                document = check(entry.folder)
            except manifest.DamagedError as error:
                skipped.append((entry.step, str(error)))
            else:
                return {"folder": entry.folder.name, "document": document, "skipped": skipped}
        return {"folder": None, "document": None, "skipped": skipped}

    def _usable(self, choice: dict[str, Any], step: int | None) -> str:
        if choice["folder"] is not None:
            return choice["folder"]
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        reasons = "; ".join(f"step {number}: {reason}" for number, reason in choice["skipped"])
        if reasons:
            raise CheckpointError(f"no undamaged {what} in {self._directory}: {reasons}")
        raise CheckpointError(f"no {what} in {self._directory}; it has {list(self.steps())}")

    def _begin(self, temporary: Path, step: int) -> None:
        """Makes the folder that every process then writes to."""
        self.claim()
        if self._is_primary:
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
            except OSError as error:
                raise self._save_failed(step, temporary, error) from error

    def _commit(
        self, temporary: Path, finish: Callable[[], None], document: dict[str, Any]
    ) -> None:
        """Runs in the background: after every process has written, makes the step visible."""
        step = document["step"]
        try:
            finish()
            if not self._is_primary:
                return
            manifest.seal(temporary, document)
            attempts = [entry.attempt for entry in self._entries() if entry.step == step]
            suffix = f".{max(attempts) + 1}" if attempts else ""
            temporary.rename(self._directory / f"step_{step:08d}{suffix}")
            _flush_folder(self._directory)
            self._drop_all_but(step)
        except Exception as error:
            raise self._save_failed(step, temporary, error) from error

    def _drop_all_but(self, newest: int) -> None:
        """Keeps `keep` steps up to the newest one, the last attempt of each."""
        kept: set[int] = set()
        for entry in self._entries():
            if entry.step <= newest and entry.step not in kept and len(kept) < self._keep:
                kept.add(entry.step)
                continue
            trash = entry.folder.with_name(f".trash_{entry.folder.name}")
            entry.folder.rename(trash)
            shutil.rmtree(trash)

    def _save_failed(self, step: int, temporary: Path, error: Exception) -> CheckpointError:
        if self._is_primary:
            shutil.rmtree(temporary, ignore_errors=True)
        return CheckpointError(
            f"cannot write checkpoint step {step} to {self._directory}: {_line(error)}"
        )


def _lock(path: Path) -> IO[str]:
    """Takes a lock that dies with this process, whatever children it leaves behind.

    That is what POSIX record locks do; those of flock live on in forked data workers.
    """
    file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise OSError(error.errno, "another process is writing there") from error
    except OSError as error:  # A file system without locks: go on without.
        _LOG.warning("%s cannot be locked: %s", path, error.strerror)
    return file


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(error: Exception) -> str:
    """The first line of an exception, with its class where the text alone would be a riddle."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
