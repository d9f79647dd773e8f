"""What a run tells of its steps in files: numbers and pictures.

`metrics.jsonl` holds one JSON object a line, `{"step": 120, "kind": "train", "loss": 0.73, ...}`.
Numbers JSON cannot say are written as the strings "nan", "inf" and "-inf"; `read_metrics` turns
them back. A line that is no such object (the torn last line of a killed run) is dropped, and
counted in a warning. TensorBoard gets the same numbers, and pictures.
"""

import contextlib
import json
import logging
import math
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, SupportsFloat

import jax
import numpy as np

from harmonic_jax.files import append, named_errors, write_bytes
from harmonic_jax.training.progress import TrainProgress
from harmonic_jax.training.step import Metrics

_LOG = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last checkpoint is from before."""


class MetricsWriter:
    """Writes the metrics of one run; every line is with the system when `write` returns.

    Args:
      folder: the run's; made if missing. Events go to its `tensorboard/`.
      start_step: the run goes on behind this step: rows and events after it are dropped, since
        they will be written again.
      enabled: False writes nothing: on every process but the first.

    Raises:
      OSError: a file cannot be written, here or later; the error names it.
    """

    def __init__(self, folder: Path, *, start_step: int, enabled: bool = True) -> None:
        self._enabled = enabled
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        if os.path.lexists(self._path):
            _cut(self._path, start_step)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._log = os.open(self._path, flags | os.O_NOFOLLOW, 0o666)
        # A name that no other has, and that comes last.
        host = socket.gethostname().replace(os.sep, "_")
        name = f"events.out.tfevents.{time.time():.6f}.{host}.{os.getpid()}"
        self._events_path = folder / "tensorboard" / name
        self._events_path.parent.mkdir(exist_ok=True)
        with named_errors(self._events_path):
            self._events = os.open(self._events_path, flags | os.O_EXCL, 0o666)
        self._write_event(file_version="brain.Event:2")
        # SessionLog.START: events from this step on, in earlier files, are to be forgotten.
        self._write_event(step=start_step + 1, session_log={"status": 1})

    def write(
        self, step: int, kind: Literal["train", "eval"], values: Mapping[str, SupportsFloat]
    ) -> None:
        """Writes one row.

        Args:
          step: of the state these values belong to.
          kind: prefixes the names in TensorBoard.
          values: numbers, also 0-d arrays; on the device they are waited for.
        """
        if not self._enabled:
            return
        from tensorboardX.summary import scalar

        floats = {name: float(value) for name, value in values.items()}
        row = {name: v if math.isfinite(v) else str(v) for name, v in floats.items()}
        with named_errors(self._path):
            line = json.dumps({"step": int(step), "kind": kind, **row}, allow_nan=False)
            append(self._log, line.encode() + b"\n")
        for name, value in floats.items():
            if math.isfinite(value):  # TensorBoard draws no others; the line above has them.
                self._write_event(step=step, summary=scalar(f"{kind}/{name}", value))

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a picture to TensorBoard: uint8 RGB of shape (h, w, 3)."""
        if self._enabled:
            from tensorboardX.summary import image as image_summary

            self._write_event(step=step, summary=image_summary(name, image, dataformats="HWC"))

    def _write_event(self, **content: Any) -> None:
        """A record of a TFRecord file: length, its CRC, the event, its CRC.

        tensorboardX's own writer hands events to a thread; where that fails, for want of space say,
        it ends with a traceback, and the training waits for it for ever.
        """
        # They import torch where it is installed: 2 seconds.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        with named_errors(self._events_path):
            append(self._events, length + crcs[0] + event + crcs[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            os.close(self._log)
            os.close(self._events)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`: step an int, kind a string, all else floats."""
    rows = [_parse(line) for line in path.read_bytes().splitlines()]
    if num_bad := rows.count(None):
        _LOG.warning("%s: dropped %d lines that are not rows of metrics", path, num_bad)
    return [row for row in rows if row is not None]


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
    lines = path.read_bytes().splitlines() if path.exists() else []  # a link to nothing
    rows = [(line, _parse(line)) for line in lines]
    kept = [line + b"\n" for line, row in rows if row is not None and row["step"] <= last_step]
    write_bytes(path, b"".join(kept))


class TrainLog:
    """Logs the mean of the metrics over every `every` steps, and shows those of each.

    Metrics are read one step late, so that the device never waits for the host. Beside them it
    logs `data_wait`, the share of the steps' time that passed in `waiting_for_data`.

    Raises:
      NonFiniteLossError: from `add` and `flush`, at the first loss that is not finite.
    """

    def __init__(
        self,
        every: int,
        writer: MetricsWriter,
        progress: TrainProgress,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._every = every
        self._writer = writer
        self._progress = progress
        self._clock = clock
        self._begun: float | None = None  # when the step in progress began
        self._wait = 0.0  # seconds it waited for data
        self._waited = self._passed = 0.0  # seconds of the steps since the last row
        self._pending: deque[tuple[int, Metrics]] = deque()
        self._window: list[dict[str, float]] = []

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around the fetching of a batch: a step begins, and the time inside is counted."""
        self._begun = self._clock()
        yield
        self._wait = self._clock() - self._begun

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was just dispatched; reads those of the one before.

        The step ends here: what the loop does next, an evaluation say, is not part of its time.
        """
        self._pending.append((step, metrics))
        if len(self._pending) > 1:
            self._read_one()
        if self._begun is not None:
            self._passed += self._clock() - self._begun
            self._waited += self._wait
            self._begun = None

    def flush(self) -> None:
        """Reads everything up to the newest step; waits for the device."""
        while self._pending:
            self._read_one()

    def _read_one(self) -> None:
        step, on_device = self._pending.popleft()
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            terms = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            raise NonFiniteLossError(
                f"the loss is not finite at step {step}: {terms}. The last checkpoint is from "
                "before; try a lower optim.learning_rate, a longer optim.warmup_steps or "
                "optim.clip_norm"
            )
        self._window.append(metrics)
        if step % self._every:
            self._progress.update(step, metrics)
            return
        waited = {"data_wait": self._waited / self._passed} if self._passed else {}
        self._waited = self._passed = 0.0
        rows, self._window = self._window, []
        means = {name: sum(row[name] for row in rows) / len(rows) for name in metrics}
        self._progress.update(step, metrics | waited)
        self._writer.write(step, "train", means | waited)
