"""The losses of a run on their way from the device to the log, and the stop when they break."""

import math
from collections import deque

import jax

from harmonic_jax.training.progress import TrainProgress
from harmonic_jax.training.step import Metrics
from harmonic_jax.training.writer import MetricsWriter


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last checkpoint is from before."""


class TrainLog:
    """Logs the mean of the metrics over every `every` steps, and shows those of each.

    Metrics are read one step late, so that the device never waits for the host.

    Raises:
      NonFiniteLossError: from `add` and `flush`, at the first loss that is not finite.
    """

    def __init__(self, every: int, writer: MetricsWriter, progress: TrainProgress) -> None:
        self._every = every
        self._writer = writer
        self._progress = progress
        self._pending: deque[tuple[int, Metrics]] = deque()
        self._window: list[dict[str, float]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        self._pending.append((step, metrics))
        if len(self._pending) > 1:
            self._read_one()

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
        self._progress.update(step, metrics)
        self._window.append(metrics)
        if step % self._every == 0:
            rows, self._window = self._window, []
            means = {name: sum(row[name] for row in rows) / len(rows) for name in metrics}
            self._writer.write(step, "train", means)
