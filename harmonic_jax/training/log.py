"""What a run tells of its steps: numbers and pictures in files, a bar on a terminal.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self, SupportsFloat, TypeVar

import jax
import numpy as np
from rich.progress import TextColumn

from harmonic_jax.files import append, named_errors, write_bytes
from harmonic_jax.terminal import PLAIN_SECONDS, Terminal, is_live, make_bar, track
from harmonic_jax.training.step import Metrics

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
_REDRAW_SECONDS = 0.2


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last checkpoint is from before."""


class MetricsWriter:
    """Writes the metrics of one run; every line is with the system when `write` returns.

    Args:
      folder: made if missing; events go to its `tensorboard/`.
      start_step: the run goes on behind this step: rows and events after it are dropped, since
        they will be written again.
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
        """Writes one row, of the state at `step`; `kind` prefixes the names in TensorBoard.

        Values may be 0-d arrays; those on the device are waited for.
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


class StepTrace:
    """A profiler trace of some steps, in a folder; written when the last one, or the run, ends.

    Args:
      folder: made by the profiler.
      steps: first and last; (0, 0) for none.
      tell: gets a line where the trace cannot be written.
    """

    def __init__(self, folder: Path, steps: tuple[int, int], tell: Callable[[str], None]) -> None:
        self._folder, self._steps, self._tell = folder, steps, tell
        self._is_open = False

    def begin(self, step: int) -> None:
        """Before a step."""
        if step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._is_open = True

    def end(self, step: int) -> None:
        """Behind a step that the host has waited for."""
        if step == self._steps[1]:
            self.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_open:
            return
        self._is_open = False
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:
            self._tell(f"the profile is not written to {self._folder}: {error}")


class TrainLog:
    """Logs the mean of the metrics over every `every` steps, and over the rest at `last_step`, and
    shows those of each.

    Metrics are read one step late, so that the device never waits for the host. Beside them it
    logs `data_wait`, the share of the steps' time that passed in `waiting_for_data`.

    Raises:
      NonFiniteLossError: from `add` and `flush`, at the first loss that is not finite.
    """

    def __init__(
        self,
        every: int,
        writer: MetricsWriter,
        progress: "TrainProgress",
        *,
        last_step: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._every, self._last_step = every, last_step
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
        if step % self._every and step != self._last_step:
            self._progress.update(step, metrics)
            return
        waited = {"data_wait": self._waited / self._passed} if self._passed else {}
        self._waited = self._passed = 0.0
        rows, self._window = self._window, []
        means = {name: sum(row[name] for row in rows) / len(rows) for name in metrics}
        self._progress.update(step, metrics | waited)
        self._writer.write(step, "train", means | waited)


# The display.


class TrainProgress:
    """Bar, step, images/s, time left and the latest value of each metric."""

    def __init__(
        self,
        total_steps: int,
        *,
        images_per_step: int,
        start_step: int = 0,
        console: Terminal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._images_per_step = images_per_step
        self._console = console or Terminal(lossy=True)
        self._clock = clock
        self._metrics: dict[str, SupportsFloat] = {}
        self._rate: float | None = None  # steps a second, without evaluations
        self._shown_at = -float("inf")
        self._shown_step: int | None = None
        self._is_live = is_live(self._console)
        details = TextColumn("{task.fields[details]}", markup=False)
        self._bar = make_bar(self._console, details, clock=clock)
        task = self._bar.add_task("train", total=total_steps, completed=start_step, details="")
        self._task = self._bar.tasks[task]

    def update(self, step: int, metrics: Mapping[str, SupportsFloat] | None = None) -> None:
        """Says that `step` is done; cheap enough for every step.

        Metrics are shown until replaced by others of the same name, `learning_rate` as `lr` and
        `data_wait` in percent.
        """
        self._bar.update(self._task.id, completed=step)
        self._metrics.update(metrics or {})
        interval = _REDRAW_SECONDS if self._is_live else PLAIN_SECONDS
        if self._clock() - self._shown_at >= interval or step >= self._total:
            self._shown_at = self._clock()
            self._show()

    def message(self, text: str) -> None:
        """Prints a line above the bar, or a line."""
        self._console.print(text)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what happens inside (evaluation, compilation) out of images/s."""
        try:
            yield
        finally:
            self._rate = self._task.speed or self._rate
            self._bar.reset(self._task.id, completed=self._step)

    def track(self, iterable: Iterable[_T], total: int, description: str) -> Iterator[_T]:
        """Like `terminal.track`, with its bar below this one."""
        bar = self._bar if self._is_live else None
        return track(
            iterable, total, description, console=self._console, bar=bar, clock=self._clock
        )

    def __enter__(self) -> Self:
        if self._is_live:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._step != self._shown_step:
            self._show()
        if self._is_live:
            with contextlib.suppress(OSError):  # a terminal that is gone
                self._bar.stop()

    @property
    def _step(self) -> int:
        return int(self._task.completed)

    def _show(self) -> None:
        self._shown_step = self._step
        if self._is_live:
            self._bar.update(self._task.id, details=self._details())
            return
        percent = 100 * self._step / max(self._total, 1)
        self.message(f"step {self._step}/{self._total} ({percent:.1f}%)  {self._details()}")

    def _details(self) -> str:
        parts = []
        self._rate = self._task.speed or self._rate
        if self._rate is not None:
            parts.append(f"{self._rate * self._images_per_step:.1f} img/s")
            left = timedelta(seconds=int((self._total - self._step) / self._rate))
            parts.append(f"eta {left}")
        parts += [_metric(name, float(value)) for name, value in self._metrics.items()]
        return "  ".join(parts)


def _metric(name: str, value: float) -> str:
    if name == "learning_rate":
        return f"lr {value:.2e}"
    if name == "data_wait":
        return f"data wait {value:.1%}"
    return f"{name} {value:.4g}"
