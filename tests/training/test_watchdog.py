"""The watchdog: silent while something is done, then a line, all stacks, and the end."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harmonic_jax.training.watchdog import Watchdog

ROOT = Path(__file__).parent.parent.parent


class Watched:
    """A watchdog whose end ends nothing, and whose time passes as a test says."""

    def __init__(self, path: Path, timeout: float, **options: float) -> None:
        self.now = 0.0
        self.path = path
        self.file = path.open("w")
        self.statuses: list[int] = []
        self.ended = threading.Event()
        self.watchdog = Watchdog(
            timeout,
            label="process 7: ",
            linger=0,
            file=self.file,
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
    assert watched.statuses == []
    assert watched.text == ""


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


@pytest.mark.parametrize("timeout", [0, 0.0])
def test_zero_watches_nothing(tmp_path: Path, timeout: float) -> None:
    before = threading.active_count()
    with Watched(tmp_path / "err", timeout).watchdog as watchdog:
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
