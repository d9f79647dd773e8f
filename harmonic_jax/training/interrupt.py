"""A polite end: SIGTERM, SIGHUP and Ctrl-C ask the loop to save and stop, and end a command."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], None]


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
def _handled(handler: _Handler) -> Iterator[None]:
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


class StopSignal:
    """Notes SIGTERM, SIGHUP and SIGINT while it is open; the old handlers come back afterwards.

    A second SIGINT raises KeyboardInterrupt at once. Python lets only the main thread install
    handlers; opened in another thread it never asks to stop.

    >>> with StopSignal() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.requested, stop.name
    (True, 'SIGTERM')
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._is_elsewhere = False
        self._handlers = contextlib.ExitStack()
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
        self._handlers.enter_context(_handled(self._note))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handlers.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number)
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt(signal.Signals(number).name)
