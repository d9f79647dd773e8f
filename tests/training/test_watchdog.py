"""How a process ends before its time: signals are noted, a hang is said with all stacks, and what
JAX says of a lost process is known."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.data.loader import LoaderError
from harmonic_jax.training import watchdog
from harmonic_jax.training.checkpoint import CheckpointError
from harmonic_jax.training.watchdog import StopSignal, Watchdog, lost_peer

# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted_and_the_program_goes_on(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop.requested
        assert stop.name is None
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.requested_anywhere()
        assert stop.name == number.name


def test_the_first_signal_gives_the_name_and_only_a_second_ctrl_c_interrupts() -> None:
    with StopSignal() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_old_handlers_return_even_after_an_error() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(RuntimeError, match="boom"), StopSignal() as stop:
            raise RuntimeError("boom")
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert not stop.requested


def test_another_thread_installs_nothing() -> None:
    def open_one() -> signal.Handlers:
        with StopSignal():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(open_one).result() == signal.getsignal(signal.SIGTERM)


# A process that hangs.


class Watched:
    """A watchdog whose end ends nothing, and whose time passes as a test says."""

    def __init__(self, patch: pytest.MonkeyPatch, timeout: float) -> None:
        self.now = 0.0
        self.statuses: list[int] = []
        self.ended = threading.Event()
        self.watchdog = Watchdog(timeout, warn_after=timeout / 2, clock=lambda: self.now)
        patch.setattr(os, "_exit", self._end)
        patch.setattr(watchdog, "_LINGER_SECONDS", 0)
        patch.setattr(watchdog, "label", lambda: "process 7: ")

    def _end(self, status: int) -> None:
        self.statuses.append(status)
        self.ended.set()


def a_look_later(timeout: float) -> None:
    """The watchdog looks at least 20 times a timeout."""
    time.sleep(timeout / 4)


def test_without_food_it_warns_shows_all_stacks_and_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(monkeypatch, 1.0)
    with watched.watchdog:
        watched.watchdog.feed("step 12")
        watched.now = 0.6
        a_look_later(1.0)
        (warning,) = capfd.readouterr().err.splitlines()
        watched.now = 1.0
        assert watched.ended.wait(20)
    assert watched.statuses == [4]
    error, *rest = capfd.readouterr().err.splitlines()
    assert warning.startswith("process 7: nothing was completed for 1 s, since step 12: a process")
    assert error.startswith("process 7: error: nothing was completed for 1 s, since step 12: a")
    assert any("test_without_food" in line for line in rest)  # the main thread's stack
    assert "Start the same command again" in rest[-1]


def test_food_keeps_it_quiet(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(monkeypatch, 0.4)
    with watched.watchdog:
        for step in range(4):
            watched.now += 0.15
            watched.watchdog.feed(f"step {step}")
            watched.now += 0.04
            a_look_later(0.4)
    assert (watched.statuses, capfd.readouterr().err) == ([], "")


def test_a_compilation_does_not_count(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(monkeypatch, 0.4)
    with watched.watchdog:
        with watched.watchdog.first_call("landscape"):
            watched.now = 100.0
            a_look_later(0.4)
        a_look_later(0.4)
        assert capfd.readouterr().err == ""
        with watched.watchdog.first_call("landscape"):
            watched.now = 101.0
            assert watched.ended.wait(20)
    assert watched.statuses == [4]


def test_the_only_process_is_not_watched() -> None:
    before = threading.active_count()
    with watchdog.process_watchdog(1):
        assert threading.active_count() == before


# A process that is lost.


def test_what_counts_as_a_lost_process() -> None:
    gone = "UNKNOWN: Gloo AllReduce failed: Read error [127.0.0.1]:1: Connection reset by peer"
    closed = jax.errors.JaxRuntimeError("UNAVAILABLE: Failed to send RPC to coordination service")
    assert lost_peer(ValueError(gone)) == gone
    assert lost_peer(closed) is not None
    try:
        raise CheckpointError("cannot write") from closed
    except CheckpointError as error:
        assert lost_peer(error) is not None  # noqa: PT017
    memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")
    assert lost_peer(memory) is None
    assert lost_peer(LoaderError("a.jpg: OSError: Connection timed out")) is None
    assert lost_peer(ConfigError("UNKNOWN: connection")) is None
