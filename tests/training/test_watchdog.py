"""How a process ends before its time: signals are noted, a hang is said with all stacks, and what
JAX says of a lost process is known."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.data.loader import LoaderError
from harmonic_jax.training.checkpoint import CheckpointError
from harmonic_jax.training.watchdog import StopSignal, Watchdog, lost_peer

ROOT = Path(__file__).parent.parent.parent

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
    before = {
        number: signal.signal(number, lambda number, frame: seen.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        with pytest.raises(RuntimeError, match="boom"), StopSignal() as stop:
            raise RuntimeError("boom")
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [signal.SIGTERM, signal.SIGINT]
    assert not stop.requested


def test_another_thread_installs_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []

    def open_one() -> None:
        with StopSignal() as stop:
            inside.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=open_one)
    thread.start()
    thread.join()
    assert inside == [(before, False)]


# A process that hangs.


class Watched:
    """A watchdog whose end ends nothing, and whose time passes as a test says."""

    def __init__(self, path: Path, timeout: float, **options: float) -> None:
        self.now = 0.0
        self.path = path
        self.statuses: list[int] = []
        self.ended = threading.Event()
        self.watchdog = Watchdog(
            timeout,
            label="process 7: ",
            linger=0,
            file=path.open("w"),
            end=self._end,
            clock=lambda: self.now,
            **options,
        )

    def _end(self, status: int) -> None:
        self.statuses.append(status)
        self.ended.set()

    @property
    def text(self) -> str:
        return self.path.read_text()


def a_look_later(timeout: float) -> None:
    """The watchdog looks at least 20 times a timeout."""
    time.sleep(timeout / 4)


def test_without_food_it_warns_shows_all_stacks_and_ends(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "err", 1.0, warn_after=0.5)
    with watched.watchdog as watchdog:
        watchdog.feed("step 12")
        watched.now = 0.6
        a_look_later(1.0)
        assert len(watched.text.splitlines()) == 1
        watched.now = 1.0
        assert watched.ended.wait(20)
    assert watched.statuses == [4]
    warning, error, *rest = watched.text.splitlines()
    assert warning.startswith("process 7: nothing was completed for 1 s, since step 12: a process")
    assert error.startswith("process 7: error: nothing was completed for 1 s, since step 12: a")
    assert any("test_without_food" in line for line in rest)  # the main thread's stack
    assert "_give_up" in watched.text  # and the watchdog's own
    assert "Start the same command again" in rest[-1]


def test_food_keeps_it_quiet(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "err", 0.4, warn_after=0.3)
    with watched.watchdog as watchdog:
        for step in range(4):
            watched.now += 0.25
            watchdog.feed(f"step {step}")
            watched.now += 0.04
            a_look_later(0.4)
    assert (watched.statuses, watched.text) == ([], "")


def test_a_compilation_does_not_count(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "err", 0.4)
    with watched.watchdog as watchdog:
        with watchdog.first_call("landscape"):
            watched.now = 100.0
            a_look_later(0.4)
        a_look_later(0.4)
        assert watched.text == ""
        with watchdog.first_call("landscape"):
            watched.now = 101.0
            assert watched.ended.wait(20)
    assert watched.statuses == [4]


def test_zero_watches_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    with Watched(tmp_path / "err", 0).watchdog as watchdog:
        watchdog.feed("step 1")
        assert threading.active_count() == before


def test_the_process_really_ends() -> None:
    """In the middle of a sleep that would last for ever."""
    code = (
        "import time\n"
        "from harmonic_jax.training.watchdog import Watchdog\n"
        "with Watchdog(0.2, linger=0): time.sleep(1000)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 4
    assert "error: nothing was completed for" in result.stderr
    assert "Thread 0x" in result.stderr


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
