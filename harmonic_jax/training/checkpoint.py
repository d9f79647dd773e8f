"""Checkpoints that survive a kill at any moment and notice a flipped bit.

`step_folders` knows what lies on the disk, `arrays` how arrays are stored; here the processes
agree on what is done and when.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax

from harmonic_jax.files import explained
from harmonic_jax.training import arrays
from harmonic_jax.training.processes import (
    ProcessFailedError,
    first_line,
    run_on_all,
    run_on_primary,
)
from harmonic_jax.training.step_folders import Choice, StepFolders

_LOG = logging.getLogger(__name__)
_ARRAYS = "arrays"
_FULL_DISK = {  # as TensorStore says it
    errno.ENOSPC: re.compile("ENOSPC|No space left on device"),
    errno.EDQUOT: re.compile("EDQUOT|Disk quota exceeded"),
}


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read, or used for the state at hand."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `CheckpointStore.restore` found."""

    step: int
    state: Any
    metadata: dict[str, Any]


class CheckpointStore:
    """The newest `keep` >= 1 states of a run, in one folder that all processes see.

    Every process calls `save`, `restore`, `wait` and `close`, in the same order; process 0
    decides, and writes the manifest when all have written their part. Opening a store and reading
    from it changes nothing on the disk, so a running training can be evaluated; a second writer
    is refused.

    The processes meet on their devices in the thread that calls only. The one that writes in the
    background meets the others' through JAX's coordination service: no save can come between the
    collectives of two steps, in different orders on different hosts.

    Saving step N drops the steps after N: they belong to a course that was given up when the run
    went back, to a step before N.

    The folder, of a POSIX file system, is made by the first save; a name that orbax cannot use is a
    CheckpointError.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self._folders = StepFolders(directory.absolute(), keep=keep)
        # TensorStore reads a backslash as a slash, and orbax "eggs:/" as the beginning of a bucket.
        path = f"{self.directory}/"
        if "\\" in path or "gs:/" in path or path.encode(errors="ignore").decode() != path:
            raise CheckpointError(
                f"{directory} cannot hold checkpoints: its name has a backslash, gs:/, or bytes "
                "that are not UTF-8"
            )
        self._is_primary = jax.process_index() == 0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    def directory(self) -> Path:
        return self._folders.directory

    def steps(self) -> tuple[int, ...]:
        """The complete steps, oldest first; whether they decayed, `restore` finds out."""
        return self._folders.steps()

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def claim(self) -> None:
        """Makes the folder, takes the right to write, and clears what a killed writer left.

        `save` does this; call it before compilation to learn early, by a CheckpointError, that the
        folder cannot be written or that another process writes to it.
        """
        if not self._is_primary:
            return
        try:
            self._folders.claim()
        except OSError as error:
            raise CheckpointError(
                f"cannot write to {self.directory}: {_one_line(error, self.directory)}"
            ) from error

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Copies the state and writes it in the background; a step that exists is replaced.

        Returns when the state may be donated or changed. A save in progress is waited for. The
        state is any pytree of numpy and jax arrays; metadata are what JSON can say, without NaN and
        infinity.

        Raises:
          CheckpointError: the state holds NaN or infinity, or the save before this one failed.
          ProcessFailedError: the same, of several processes: they all fail where one does.
        """
        self.wait()
        leaves = arrays.named_leaves(state)
        document = {"step": step, "metadata": metadata, "leaves": arrays.describe(leaves)}
        run_on_all(lambda: self._begin(step, leaves))
        with self._writing(step):
            written = arrays.write(self._folders.temporary(step) / _ARRAYS, leaves)
        self._pending = self._executor.submit(self._commit, step, written.result, document)

    def restore(self, abstract_state: Any) -> Restored:
        """Reads the newest undamaged step, after checking every file of it.

        Args:
          abstract_state: the state to fill: a pytree of arrays or jax.ShapeDtypeStruct. Leaves
            land on its shardings; numpy arrays become numpy arrays.

        Raises:
          CheckpointError: no step can be used, or the step is of another state: the first leaf
            that does not fit is named. Nothing is cast.
        """
        self.wait()
        leaves = arrays.named_leaves(abstract_state)
        choice = run_on_primary(self._folders.choose)
        folder, document = self.directory / self._usable(choice), choice["document"]
        difference = arrays.first_difference(document["leaves"], arrays.describe(leaves))
        if difference is not None:
            raise CheckpointError(f"{folder} does not fit: {difference}")
        try:
            stored = run_on_all(lambda: self._read(folder, leaves))
        except (CheckpointError, ProcessFailedError):
            if run_on_primary(folder.exists):
                raise
            return self.restore(abstract_state)  # it was dropped meanwhile: there is a newer one
        for skipped_step, reason in choice["skipped"] if self._is_primary else ():
            _LOG.warning("checkpoint step %d is damaged: %s", skipped_step, reason)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), list(stored.values()))
        return Restored(document["step"], state, document["metadata"])

    def read_metadata(self, *, verify: bool = False) -> dict[str, Any]:
        """The metadata of the newest step whose manifest is undamaged.

        Asks no other process. Unless `verify` has all files looked at, the arrays of this step may
        still be damaged: what `restore` returns is the metadata of what it restored.
        """
        choice = self._folders.choose(all_files=verify)
        self._usable(choice)
        return choice["document"]["metadata"]

    def wait(self) -> None:
        """Returns when the save in progress is complete for all processes.

        Raises:
          CheckpointError: it failed; ProcessFailedError where there are several processes.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            run_on_all(pending.result)

    def close(self) -> None:
        """Waits for the save in progress and gives up the right to write."""
        try:
            self.wait()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        # The other processes may be elsewhere: finish what is ours, wait for nobody.
        self._release()
        failure = self._pending.exception() if self._pending is not None else None
        if failure is not None and not isinstance(error, CheckpointError | OSError):
            _LOG.error("%s", failure)  # else the disk has said so once

    def _release(self) -> None:
        self._executor.shutdown(wait=True)
        self._folders.release()

    def _usable(self, choice: Choice) -> str:
        if choice["folder"] is not None:
            return choice["folder"]
        reasons = "; ".join(f"step {number}: {reason}" for number, reason in choice["skipped"])
        if reasons:
            raise CheckpointError(f"no undamaged checkpoint in {self.directory}: {reasons}")
        raise CheckpointError(f"no checkpoint in {self.directory}")

    def _read(self, folder: Path, leaves: dict[str, Any]) -> dict[str, Any]:
        try:
            return arrays.read(folder / _ARRAYS, leaves)
        except Exception as error:
            raise CheckpointError(f"cannot read {folder}: {_one_line(error, folder)}") from error

    def _begin(self, step: int, leaves: dict[str, Any]) -> None:
        """Makes the folder that every process then writes to."""
        name = arrays.first_not_finite(leaves)
        if name is not None:
            raise CheckpointError(
                f"leaf {name!r} is not finite (NaN or infinity) in checkpoint step {step}, which "
                f"is not written to {self.directory}. What was saved before stays; try a lower "
                "optim.learning_rate, a longer optim.warmup_steps or optim.clip_norm"
            )
        self.claim()
        if self._is_primary:
            with self._writing(step):
                self._folders.begin(step)

    def _commit(self, step: int, finish: Callable[[], None], document: dict[str, Any]) -> None:
        """Runs in the background: after every process has written, makes the step visible."""
        with self._writing(step):
            finish()
            if self._is_primary:
                arrays.check_stored(self._folders.temporary(step) / _ARRAYS, document["leaves"])
                self._folders.publish(step, document)

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._is_primary:
                self._folders.discard(step)
            raise CheckpointError(
                f"cannot write checkpoint step {step} to {self.directory}: "
                f"{_one_line(error, self.directory)}"
            ) from error


def _one_line(error: Exception, folder: Path) -> str:
    """An exception, whichever library raises it, in a line; with its class where the text alone
    would be a riddle."""
    for number, words in _FULL_DISK.items():
        if words.search(str(error)):
            error = OSError(number, os.strerror(number))
    if isinstance(error, OSError) and error.strerror:
        return explained(error, folder)
    return f"{type(error).__name__}: {first_line(error)}"
