"""StopSignal: what it notes, and that it leaves no trace."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harmonic_jax.training.interrupt import StopSignal

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_program_goes_on(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop.requested
        assert stop.name is None
        signal.raise_signal(number)
        assert stop.requested
        assert stop.requested_anywhere()
        assert stop.name == number.name


def test_the_first_signal_gives_the_name() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGTERM"


def test_a_second_ctrl_c_interrupts() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_does_not() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested


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


def test_a_process_told_to_stop_ends_its_loop() -> None:
    """From outside, in the middle of a sleep, as a scheduler does."""
    code = (
        "import time\n"
        "from harmonic_jax.training.interrupt import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.requested: time.sleep(0.01)\n"
        "    print(stop.name, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.read() == "SIGTERM\n"
    assert process.returncode == 0
