# ruff: noqa: E402
"""What a run tells: `metrics.jsonl`, one JSON object a line, and TensorBoard events.

A line is `{"step": 120, "kind": "train", "loss": 0.73, ...}`. Numbers JSON cannot say are written
as the strings "nan", "inf" and "-inf"; `read_metrics` turns them back. A line that is no such
object (the torn last line of a killed run) is dropped, and counted in a warning.
"""

import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, SupportsFloat

import numpy as np

from harmonic_jax.files import append, named_errors, write_bytes
from harmonic_jax.training.events import EventFile

_LOG = logging.getLogger(__name__)
FILE_NAME = "metrics.jsonl"

Kind = Literal["train", "eval"]


class MetricsWriter(Protocol):
    """What the loop writes to: a RunWriter on process 0, nothing elsewhere."""

    def write(self, step: int, kind: Kind, values: Mapping[str, SupportsFloat]) -> None: ...

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class RunWriter:
    """Writes the metrics of one run; every line is with the system when `write` returns.

    Args:
      directory: the run's folder; made if missing. Events go to its `tensorboard/`.
      resume_step: the run goes on behind this step: rows and events after it are dropped, since
        they will be written again. None: a new run, whose log must not exist.

    Raises:
      FileExistsError: there is a log and `resume_step` is None.
      OSError: a file cannot be written, here or later; the error names it.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, resume_step: int | None = None
    ) -> None:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE_NAME
        if os.path.lexists(self._path):
            if resume_step is None:
                raise FileExistsError(
                    f"{self._path} exists; give resume_step to go on, or a new folder"
                )
            _cut(self._path, resume_step)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        self._log = os.open(self._path, flags, 0o666)
        self._events = EventFile(
            folder / "tensorboard",
            purge_step=None if resume_step is None else resume_step + 1,
        )

    def write(self, step: int, kind: Kind, values: Mapping[str, SupportsFloat]) -> None:
        """Writes one row.

        Args:
          step: of the state these values belong to.
          kind: prefixes the names in TensorBoard.
          values: numbers, also 0-d arrays; on the device they are waited for.

        Raises:
          ValueError: a value is called `step` or `kind`, or the kind is neither of the two.
        """
        if kind not in ("train", "eval"):
            raise ValueError(f"kind is {kind!r}; it must be 'train' or 'eval'")
        taken = {"step", "kind"} & values.keys()
        if taken:
            raise ValueError(f"a value is called {taken.pop()!r}, which every row has already")
        floats = {name: float(value) for name, value in values.items()}
        row: dict[str, float | str] = {"step": int(step), "kind": kind}
        row |= {name: v if math.isfinite(v) else str(v) for name, v in floats.items()}
        with named_errors(self._path):
            append(self._log, json.dumps(row, allow_nan=False).encode() + b"\n")
        for name, value in floats.items():
            if math.isfinite(value):  # TensorBoard draws no others; the line above has them.
                self._events.scalar(f"{kind}/{name}", value, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures to TensorBoard, by name: uint8 RGB of shape (h, w, 3)."""
        for name, image in images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"image {name!r} is {image.dtype} of shape {image.shape};"
                    " it must be uint8 of shape (h, w, 3)"
                )
            self._events.image(name, image, step)

    def close(self) -> None:
        os.close(self._log)
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NullWriter:
    """Writes nothing: the writer of every process but the first."""

    def write(self, step: int, kind: Kind, values: Mapping[str, SupportsFloat]) -> None:
        pass

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def open_writer(
    directory: str | os.PathLike[str], *, resume_step: int | None, is_primary: bool
) -> MetricsWriter:
    """Returns the run's writer on process 0 and one that does nothing elsewhere."""
    return RunWriter(directory, resume_step=resume_step) if is_primary else NullWriter()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`: step an int, kind a string, all else floats."""
    rows = []
    num_bad = 0
    for line in Path(path).read_bytes().splitlines():
        row = _parse(line)
        if row is None:
            num_bad += 1
        else:
            rows.append(row)
    if num_bad:
        _LOG.warning("%s: dropped %d lines that are not rows of metrics", path, num_bad)
    return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        step, kind = row.pop("step"), row.pop("kind")
        values = {name: float(value) for name, value in row.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    if not isinstance(step, int) or kind not in ("train", "eval"):
        return None
    return {"step": step, "kind": kind, **values}


def _cut(path: Path, last_step: int) -> None:
    """Drops the rows after `last_step` and torn lines, by one rename; a link becomes a file."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no file", str(path))
    raw = path.read_bytes() if path.exists() else b""  # a link to nothing
    lines = [
        line
        for line in raw.splitlines()
        if (row := _parse(line)) is not None and row["step"] <= last_step
    ]
    write_bytes(path, b"".join(line + b"\n" for line in lines))


from harmonic_jax.training.progress import (
    TrainProgress as TrainProgress,
)
from harmonic_jax.training.train_log import (
    NonFiniteLossError as NonFiniteLossError,
)
