"""The live display of a training: a bar on a terminal, now and then a line in a log file.

Only process 0 shows anything; the others pass `enabled=False`.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self, SupportsFloat, TypeVar

from rich.progress import Progress, TextColumn

from harmonic_jax.terminal import Terminal, is_live, make_bar, track_bar, track_plain

_T = TypeVar("_T")
_REDRAW_SECONDS = 0.2
_WINDOW_SECONDS = 60.0


class StepRate:
    """Steps a second over the last minute of stepping.

    The clock starts at the first tick, so the first step with its compilation does not count, and
    `restart` keeps whatever comes next (an evaluation, a compilation) out too.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._intervals: deque[tuple[int, float]] = deque()  # steps, seconds
        self._last: tuple[int, float] | None = None
        self._steps = 0
        self._seconds = 0.0

    def tick(self, step: int) -> None:
        """Notes that `step` is done; a step that was noted already changes nothing."""
        now = self._clock()
        if self._last is not None:
            steps, seconds = step - self._last[0], now - self._last[1]
            if steps <= 0:
                return
            self._intervals.append((steps, seconds))
            self._steps += steps
            self._seconds += seconds
            while len(self._intervals) > 1 and self._seconds > _WINDOW_SECONDS:
                steps, seconds = self._intervals.popleft()
                self._steps -= steps
                self._seconds -= seconds
        self._last = (step, now)

    def restart(self) -> None:
        """Leaves out the time from the last tick to the next."""
        self._last = None

    @property
    def per_second(self) -> float | None:
        """None until two ticks give an interval."""
        return self._steps / self._seconds if self._seconds > 0 else None


class TrainProgress:
    """Bar, step, images/s, time left and the latest value of each metric.

    Args:
      total_steps: of the whole run.
      images_per_step: the global batch size.
      start_step: steps already done when a run goes on.
      enabled: False shows nothing.
      plain_interval: seconds between lines where the output is no terminal.
      console: where to; the default is standard output.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        images_per_step: int,
        start_step: int = 0,
        enabled: bool = True,
        plain_interval: float = 30.0,
        console: Terminal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._images_per_step = images_per_step
        self._step = start_step
        self._enabled = enabled
        self._console = console or Terminal(lossy=True)
        self._clock = clock
        self._rate = StepRate(clock=clock)
        self._metrics: dict[str, SupportsFloat] = {}
        self._interval = _REDRAW_SECONDS if is_live(self._console) else plain_interval
        self._plain_interval = plain_interval
        self._shown_at = -float("inf")
        self._shown_step: int | None = None
        self._bar: Progress | None = None
        if enabled and is_live(self._console):
            self._bar = make_bar(self._console, TextColumn("{task.fields[details]}", markup=False))
            self._task = self._bar.add_task(
                "train", total=total_steps, completed=start_step, details=""
            )

    def update(self, step: int, metrics: Mapping[str, SupportsFloat] | None = None) -> None:
        """Says that `step` is done; cheap enough for every step.

        Args:
          step: done so far; ticks for the rate.
          metrics: shown until replaced by others of the same name. Numbers on the host: a device
            array is waited for when it is shown. `learning_rate` is shown as `lr`, `data_wait` in
            percent.
        """
        if not self._enabled:
            return
        if step > self._step:
            self._rate.tick(step)
            self._step = step
        if metrics:
            self._metrics.update(metrics)
        now = self._clock()
        if now - self._shown_at >= self._interval or step >= self._total:
            self._shown_at = now
            self._show()

    def message(self, text: str) -> None:
        """Prints a line above the bar, or a line."""
        if self._enabled:
            self._console.print(text)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what happens inside (evaluation, compilation) out of images/s."""
        try:
            yield
        finally:
            self._rate.restart()
            self._rate.tick(self._step)

    def track(self, iterable: Iterable[_T], total: int, description: str) -> Iterator[_T]:
        """Like the function `track`, with its bar below this one."""
        if not self._enabled:
            return iter(iterable)
        if self._bar is None:
            return track_plain(
                iterable, total, description, self._console, self._plain_interval, self._clock
            )
        return track_bar(iterable, total, description, self._bar)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._enabled and self._step != self._shown_step:
            self._show()
        if self._bar is not None:
            with contextlib.suppress(OSError):  # a terminal that is gone
                self._bar.stop()

    def _show(self) -> None:
        self._shown_step = self._step
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, details=self._details())
            return
        percent = 100 * self._step / max(self._total, 1)
        self.message(f"step {self._step}/{self._total} ({percent:.1f}%)  {self._details()}")

    def _details(self) -> str:
        parts = []
        rate = self._rate.per_second
        if rate is not None:
            parts.append(f"{rate * self._images_per_step:.1f} img/s")
            parts.append(f"eta {_duration((self._total - self._step) / rate)}")
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
