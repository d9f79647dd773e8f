"""How a process ends before its work is done: a signal, a hang, another process that is lost.

SIGTERM, SIGHUP and Ctrl-C ask the loop to save and stop, and end a command. A lost process is
noticed by JAX's heartbeats, which end everybody with a page of text, or by a collective that fails
before; both are put into words. One that hangs (a file system that does not answer, a deadlock)
still sends heartbeats, and all others would wait for it for ever: the watchdog ends them all.
"""

import contextlib
import dataclasses
import faulthandler
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from types import FrameType
from typing import Any, NoReturn, Self, TextIO

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
_GRACE_SECONDS = 30.0
_LOOKS = 10  # of the watchdog, before it warns
# A status of gRPC and Abseil, then what gloo, NCCL, or JAX's coordination service say.
_LOSS = re.compile(
    r"^[A-Z_]+: .*(gloo|nccl|connection|socket closed|heartbeat|barrier|coordination|preempted)",
    re.IGNORECASE | re.DOTALL,
)
_SAME_COMMAND = "Start the same command again on every host to go on from the newest checkpoint"
_sudden_end_pipe: int | None = None  # to the shell of `report_sudden_end`


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
    previous: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    previous[number] = signal.signal(number, handler)
        yield
    finally:
        while previous:
            number, old = previous.popitem()
            # None: installed by C code, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if old is None else old)


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
        print(
            f"{label()}error: another process of this run is gone: it failed, was killed, or its "
            f"host was lost; its own output says more. {_SAME_COMMAND}. ({reason})",
            file=sys.stderr,
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


@contextlib.contextmanager
def report_sudden_end() -> Iterator[None]:
    """Has a line written where this process ends in the middle: JAX ends it with a page of text
    when another one is lost, and leaves no moment for a line of ours.

    A shell waits at the other end of a pipe, which closes when the process is gone.
    """
    if is_alone():
        yield
        return
    text = (
        f"{label()}ended by itself or was killed, in the middle. With 'another task died' above, "
        f"another process of this run is gone. {_SAME_COMMAND}."
    )
    command = ["/bin/sh", "-c", 'read -r word || echo "$0" >&2', text]
    # A session of its own: Ctrl-C is for us.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as shell:
        assert shell.stdin is not None
        global _sudden_end_pipe
        _sudden_end_pipe = shell.stdin.fileno()
        try:
            yield
        finally:
            _end_is_not_sudden()


def _end_is_not_sudden() -> None:
    global _sudden_end_pipe
    if _sudden_end_pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_sudden_end_pipe, b"done\n")
        _sudden_end_pipe = None


def exit_process(status: int) -> NoReturn:
    """Ends this process without waiting for the others, as a normal exit would.

    Process 0 waits a little: JAX ends the others the moment it is gone, and they may have
    something to say.
    """
    _end_is_not_sudden()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        time.sleep(_PRIMARY_WAITS_SECONDS)
    os._exit(status)


def _exit_now(status: int) -> None:
    """Ends this process from any thread."""
    _end_is_not_sudden()
    os._exit(status)


# A process hangs.


def process_watchdog(timeout: float) -> "Watchdog":
    """The watchdog of one of several processes; the only one of a program is not watched.

    It warns before JAX's heartbeats can end the process, which they do without an explanation.
    Process 0 lingers longer: JAX ends the others when it is gone.
    """
    return Watchdog(
        timeout if jax.process_count() > 1 else 0,
        warn_after=min(timeout, heartbeat_timeout()) / 2,
        label=label(),
        linger=10.0 if is_primary() else 5.0,
    )


@dataclasses.dataclass
class Watchdog:
    """Ends the process when nothing was completed for `timeout` seconds, after all stacks.

    The clock starts with `with` and begins anew with every `feed`. All processes have one, and as
    one that hangs makes the others wait, all of them end, each with its own stacks: that of the one
    that hangs shows where.
    """

    timeout: float
    """Seconds; 0 watches nothing."""
    warn_after: float = 0.0
    """Seconds after which a line says that something is wrong; 0: half of `timeout`."""
    label: str = ""
    """What messages begin with, such as `process 3: `."""
    linger: float = 5.0
    """Seconds between the stacks and the end, so that the end of one process does not take the
    others their stacks."""
    file: TextIO = dataclasses.field(default_factory=lambda: sys.stderr)
    end: Callable[[int], None] = _exit_now
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._warn_after = min(self.warn_after or self.timeout / 2, self.timeout)
        self._fed = (self.clock(), "the start")
        self._num_pauses = 0
        self._seen: set[Hashable] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def feed(self, what: str) -> None:
        """Says what was just completed, such as `step 12`."""
        self._fed = (self.clock(), what)

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
        if self.timeout > 0:
            self.feed(self._fed[1])
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self.timeout > 0:
            self._thread.join()

    def _watch(self) -> None:
        warned_of: float | None = None
        try:
            while not self._closed.wait(self._warn_after / _LOOKS):
                # Should this thread not run any more (something holds the interpreter's lock),
                # a thread that needs no interpreter does the same without the words.
                faulthandler.dump_traceback_later(
                    self.timeout + _GRACE_SECONDS, exit=True, file=self.file
                )
                fed, what = self._fed
                waited = 0.0 if self._num_pauses else self.clock() - fed
                nothing = f"nothing was completed for {waited:.0f} s, since {what}"
                if waited >= self.timeout:
                    self._give_up(nothing)
                    return
                if waited >= self._warn_after and warned_of != fed:
                    warned_of = fed
                    self._say(
                        f"{nothing}: a process is slow, hangs or is lost. This run ends where that "
                        f"lasts for {self.timeout:g} s, or where a process is not heard of any more"
                    )
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _give_up(self, nothing: str) -> None:
        self._say(
            f"error: {nothing}: a process hangs, here or elsewhere. This is where the threads of "
            "this process are:"
        )
        faulthandler.dump_traceback(file=self.file, all_threads=True)
        self._say(f"ends with status {EXIT_LOST}. {_SAME_COMMAND}")
        time.sleep(self.linger)
        self.end(EXIT_LOST)

    def _say(self, text: str) -> None:
        print(f"{self.label}{text}", file=self.file, flush=True)
