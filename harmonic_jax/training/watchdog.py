"""How a process ends before its work is done: a signal, a hang, another process that is lost.

SIGTERM, SIGHUP and Ctrl-C ask the loop to save and stop, and end a command. A lost process is
noticed by a collective that fails, which is put into words, or later by JAX's heartbeats, which end
everybody with a page of text. One that hangs (a file system that does not answer, a deadlock)
still sends heartbeats, and all others would wait for it for ever: the watchdog ends them all.
"""

import contextlib
import faulthandler
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from types import FrameType
from typing import NoReturn, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from harmonic_jax.training.processes import (
    first_line,
    heartbeat_timeout,
    is_alone,
    is_primary,
    label,
)

EXIT_LOST = 4
"""Exit status of a process that ends because another one is lost or hangs."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PRIMARY_WAITS_SECONDS = 5.0
_LINGER_SECONDS = 5.0
_LOOKS = 10  # of the watchdog, before it warns
# A status of gRPC and Abseil, then what gloo, NCCL, or JAX's coordination service say.
_LOSS = re.compile(
    r"^[A-Z_]+: .*(gloo|nccl|connection|socket closed|heartbeat|barrier|coordination|preempted)",
    re.IGNORECASE | re.DOTALL,
)
_SAME_COMMAND = "Start the same command again on every host to go on from the newest checkpoint"


# Signals.


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Has SIGTERM and SIGHUP end the block as Ctrl-C does: by KeyboardInterrupt, with their name.

    >>> try:
    ...     with interrupting():
    ...         signal.raise_signal(signal.SIGTERM)
    ... except KeyboardInterrupt as stop:
    ...     print(stop)
    SIGTERM
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    with _handled(interrupt):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles the signals inside, and puts the old handlers back.

    Only the main thread may; in another one nothing changes. A hang-up that is ignored (nohup)
    stays ignored.
    """
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    old = signal.signal(number, handler)
                    # None: installed by C code, which Python cannot put back.
                    stack.callback(signal.signal, number, signal.SIG_DFL if old is None else old)
        yield


class StopSignal(contextlib.ExitStack):
    """Notes SIGTERM, SIGHUP and SIGINT while it is open; the old handlers come back afterwards.

    A second SIGINT raises KeyboardInterrupt at once. Python lets only the main thread install
    handlers; opened in another thread it never asks to stop.

    >>> with StopSignal() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.requested, stop.name
    (True, 'SIGTERM')
    """

    def __init__(self) -> None:
        super().__init__()
        self._signal: signal.Signals | None = None
        self._is_elsewhere = False
        self._num_interrupts = 0

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signal is not None

    @property
    def name(self) -> str | None:
        """The signal that asked first, such as `SIGTERM`; None where none did."""
        if self._signal is not None:
            return self._signal.name
        return "a signal to another process" if self._is_elsewhere else None

    def requested_anywhere(self) -> bool:
        """Whether any process was asked to stop; all processes call it at the same step.

        A scheduler may tell one host only, and a host that stops alone leaves the others waiting
        in their next collective. With one process it costs nothing, with several an all-gather
        of one number: ask every few steps.
        """
        if jax.process_count() == 1:
            return self.requested
        asked = bool(np.any(multihost_utils.process_allgather(np.int32(self.requested))))
        self._is_elsewhere = asked and not self.requested
        return asked

    def __enter__(self) -> Self:
        self.enter_context(_handled(self._note))
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number)
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt(signal.Signals(number).name)


# Another process is lost.


@contextlib.contextmanager
def exit_on_lost_process() -> Iterator[None]:
    """Ends this process, with a line that says why, where a collective fails for want of a peer.

    At once: what would be tidied up on the way out waits for the others, and JAX's own end of the
    process follows a second later, with a page of text.
    """
    try:
        yield
    except Exception as error:
        reason = lost_peer(error)
        if reason is None or is_alone():
            raise
        _say(
            "error: another process of this run is gone: it failed, was killed, or its host was "
            f"lost; its own output says more. {_SAME_COMMAND}. ({reason})"
        )
        exit_process(EXIT_LOST)


def lost_peer(error: BaseException | None) -> str | None:
    """JAX's words for a process that does not answer, where they are the cause of an error.

    >>> lost_peer(ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"))
    'UNKNOWN: Gloo AllGather failed: Connection reset by peer'
    >>> lost_peer(ValueError("not a peer of the realm"))
    """
    while error is not None:
        # gloo's failures arrive as ValueError from some of JAX's functions.
        is_from_jax = type(error) is ValueError or isinstance(error, jax.errors.JaxRuntimeError)
        if is_from_jax and _LOSS.search(str(error)):
            return first_line(error)
        error = error.__cause__
    return None


def exit_process(status: int) -> NoReturn:
    """Ends this process without waiting for the others, as a normal exit would.

    Process 0 waits a little: JAX ends the others the moment it is gone, and they may have
    something to say.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        time.sleep(_PRIMARY_WAITS_SECONDS)
    os._exit(status)


# A process hangs.


def process_watchdog(timeout: float) -> "Watchdog":
    """The watchdog of one of several processes; the only one of a program is not watched.

    It warns before JAX's heartbeats can end the process, which they do without an explanation.
    """
    timeout = timeout if jax.process_count() > 1 else 0
    return Watchdog(timeout, warn_after=min(timeout, heartbeat_timeout()) / 2)


class Watchdog:
    """Ends the process when nothing was completed for `timeout` seconds, after all stacks.

    The clock starts with `with` and begins anew with every `feed`. All processes have one, and as
    one that hangs makes the others wait, all of them end, each with its own stacks: that of the one
    that hangs shows where.

    After `warn_after` seconds a line says that something is wrong. A timeout of 0 watches nothing.
    """

    def __init__(
        self, timeout: float, *, warn_after: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout = timeout
        self._warn_after = warn_after
        self._clock = clock
        self._fed = (clock(), "the start")
        self._num_pauses = 0
        self._seen: set[Hashable] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

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
        with contextlib.nullcontext() if key in self._seen else self.paused():
            yield
        self._seen.add(key)

    def __enter__(self) -> Self:
        if self._timeout > 0:
            self.feed(self._fed[1])
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._timeout > 0:
            self._thread.join()

    def _watch(self) -> None:
        warned_of: float | None = None
        while not self._closed.wait(self._warn_after / _LOOKS):
            fed, what = self._fed
            waited = 0.0 if self._num_pauses else self._clock() - fed
            nothing = f"nothing was completed for {waited:.0f} s, since {what}"
            if waited >= self._timeout:
                self._give_up(nothing)
                return
            if waited >= self._warn_after and warned_of != fed:
                warned_of = fed
                _say(
                    f"{nothing}: a process is slow, hangs or is lost. This run ends where that "
                    f"lasts for {self._timeout:g} s, or where a process is not heard of any more. "
                    f"{_SAME_COMMAND}"
                )

    def _give_up(self, nothing: str) -> None:
        _say(
            f"error: {nothing}: a process hangs, here or elsewhere. This is where the threads of "
            "this process are:"
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        _say(f"ends with status {EXIT_LOST}. {_SAME_COMMAND}")
        # The others want to show their stacks too; JAX ends them when process 0 is gone.
        time.sleep(_LINGER_SECONDS * (2 if is_primary() else 1))
        os._exit(EXIT_LOST)


def _say(text: str) -> None:
    print(f"{label()}{text}", file=sys.stderr, flush=True)
