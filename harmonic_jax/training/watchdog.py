# ruff: noqa: E402
"""A process that makes no progress says where it stands, and ends.

A lost process is noticed by JAX's heartbeats. One that hangs (a file system that does not answer, a
deadlock) still sends them, and all others wait for it in a collective, for ever.
"""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from types import TracebackType
from typing import Self, TextIO

import jax

from harmonic_jax.training.departure import EXIT_LOST, end_now
from harmonic_jax.training.launch import heartbeat_timeout
from harmonic_jax.training.processes import is_primary, label

_LINGER_SECONDS = 5.0
_LOOKS = 10  # before it warns
_GRACE_SECONDS = 30.0


def process_watchdog(timeout: float) -> "Watchdog":
    """The watchdog of one of several processes; the only one of a program is not watched.

    It warns before JAX's heartbeats can end the process, which they do without an explanation.
    Process 0 lingers longer: JAX ends the others when it is gone.
    """
    return Watchdog(
        timeout if jax.process_count() > 1 else 0,
        warn_after=min(timeout, heartbeat_timeout()) / 2,
        label=label(),
        linger=_LINGER_SECONDS * (2 if is_primary() else 1),
    )


class Watchdog:
    """Ends the process when nothing was completed for `timeout` seconds, after all stacks.

    The clock starts with `with` and begins anew with every `feed`. All processes have one, and as
    one that hangs makes the others wait, all of them end, each with its own stacks: that of the one
    that hangs shows where.

    Args:
      timeout: seconds; 0 watches nothing.
      warn_after: seconds after which a line says that something is wrong; 0: half of `timeout`.
      label: what messages begin with, such as `process 3: `.
      linger: seconds between the stacks and the end, so that the end of one process does not take
        the others their stacks.
      file: where to; standard error, unless tests say otherwise.
      end: ends the process; tests give another.
      clock: seconds.
    """

    def __init__(
        self,
        timeout: float,
        *,
        warn_after: float = 0.0,
        label: str = "",
        linger: float = _LINGER_SECONDS,
        file: TextIO | None = None,
        end: Callable[[int], None] = end_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = timeout
        self._warn_after = min(warn_after or timeout / 2, timeout)
        self._label = label
        self._linger = linger
        self._file = file or sys.stderr
        self._end = end
        self._clock = clock
        self._fed = (clock(), "the start")
        self._num_pauses = 0
        self._seen: set[Hashable] = set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def feed(self, what: str) -> None:
        """Says what was just completed, such as `step 12`."""
        self._fed = (self._clock(), what)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count: a compilation, say, whose length nobody knows."""
        self._num_pauses += 1
        try:
            yield
        finally:
            self.feed(self._fed[1])
            self._num_pauses -= 1

    @contextlib.contextmanager
    def first_call(self, key: Hashable) -> Iterator[None]:
        """Around a jitted call: does not count the first one with this key, which compiles."""
        if key in self._seen:
            yield
            return
        with self.paused():
            yield
        self._seen.add(key)

    def __enter__(self) -> Self:
        if self._timeout > 0:
            self.feed(self._fed[1])
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        warned_of: float | None = None
        try:
            while not self._closed.wait(self._warn_after / _LOOKS):
                # Should this thread not run any more (something holds the interpreter's lock),
                # a thread that needs no interpreter does the same without the words.
                faulthandler.dump_traceback_later(
                    self._timeout + _GRACE_SECONDS, exit=True, file=self._file
                )
                fed, what = self._fed
                waited = 0.0 if self._num_pauses else self._clock() - fed
                if waited >= self._timeout:
                    self._give_up(waited, what)
                    return
                if waited >= self._warn_after and warned_of != fed:
                    warned_of = fed
                    self._say(
                        f"nothing was completed for {waited:.0f} s, since {what}: a process is "
                        "slow, hangs or is lost. This run ends where that lasts for "
                        f"{self._timeout:g} s, or where a process is not heard of any more"
                    )
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _give_up(self, waited: float, what: str) -> None:
        self._say(
            f"error: nothing was completed for {waited:.0f} s, since {what}: a process hangs, here "
            "or elsewhere. This is where the threads of this process are:"
        )
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        self._say(
            f"ends with status {EXIT_LOST}. Start the same command again on every host to go on "
            "from the newest checkpoint"
        )
        time.sleep(self._linger)
        self._end(EXIT_LOST)

    def _say(self, text: str) -> None:
        print(f"{self._label}{text}", file=self._file, flush=True)


from harmonic_jax.training.departure import (
    exit_on_lost_process as exit_on_lost_process,
)
from harmonic_jax.training.departure import (
    exit_process as exit_process,
)
from harmonic_jax.training.departure import (
    lost_peer as lost_peer,
)
from harmonic_jax.training.departure import (
    report_sudden_end as report_sudden_end,
)
from harmonic_jax.training.interrupt import (
    StopSignal as StopSignal,
)
from harmonic_jax.training.interrupt import (
    interrupting as interrupting,
)
