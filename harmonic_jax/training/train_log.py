"""The losses of a run on their way from the device to the log, and the stop when they break."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator

import jax

from harmonic_jax.training.log import MetricsWriter
from harmonic_jax.training.progress import TrainProgress
from harmonic_jax.training.step import Metrics


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last checkpoint is from before."""


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
        is_logged = step % self._every == 0
        waited = self._data_wait() if is_logged else {}
        self._progress.update(step, metrics | waited)
        self._window.append(metrics)
        if is_logged:
            rows, self._window = self._window, []
            means = {name: sum(row[name] for row in rows) / len(rows) for name in metrics}
            self._writer.write(step, "train", means | waited)

    def _data_wait(self) -> dict[str, float]:
        """The share since the last row, by name; nothing where no step was measured."""
        waited, passed = self._waited, self._passed
        self._waited = self._passed = 0.0
        return {"data_wait": waited / passed} if passed else {}
