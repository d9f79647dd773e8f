"""The live display of a training: a bar on a terminal, now and then a line in a log file."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Self, SupportsFloat, TypeVar

from rich.progress import TextColumn

from harmonic_jax.terminal import PLAIN_SECONDS, Terminal, is_live, make_bar, track

_T = TypeVar("_T")
_REDRAW_SECONDS = 0.2


class TrainProgress:
    """Bar, step, images/s, time left and the latest value of each metric.

    Args:
      total_steps: of the whole run.
      images_per_step: the global batch size.
      start_step: steps already done when a run goes on.
      console: where to; a quiet one shows nothing.
      clock: seconds.
    """

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

        Args:
          step: done so far.
          metrics: shown until replaced by others of the same name. `learning_rate` is shown as
            `lr`, `data_wait` in percent.
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
            parts.append(f"eta {_duration((self._total - self._step) / self._rate)}")
        parts += [_metric(name, float(value)) for name, value in self._metrics.items()]
        return "  ".join(parts)


def _metric(name: str, value: float) -> str:
    if name == "learning_rate":
        return f"lr {value:.2e}"
    if name == "data_wait":
        return f"data wait {value:.1%}"
    return f"{name} {value:.4g}"


def _duration(seconds: float) -> str:
    """
    >>> _duration(59.9), _duration(3725)
    ('0:59', '1:02:05')
    """
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
