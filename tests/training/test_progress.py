"""The display: right numbers, no control characters in files."""

import io

import pytest

from harmonic_jax.terminal import Terminal, track
from harmonic_jax.training.log import TrainProgress


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console_of(*, terminal: bool, quiet: bool = False) -> tuple[Terminal, io.StringIO]:
    output = io.StringIO()
    return Terminal(file=output, force_terminal=terminal, width=150, quiet=quiet), output


def test_compilation_and_pauses_are_not_part_of_the_rate() -> None:
    clock = Clock()
    console, output = console_of(terminal=False)
    with TrainProgress(100, images_per_step=8, console=console, clock=clock) as progress:
        clock.now = 500.0  # the first step, compilation included
        for step in (1, 2, 3):
            progress.update(step)
            clock.now += 2.0
        with progress.paused():
            clock.now += 1000.0
        progress.update(4)
        clock.now += 40.0
        progress.update(5)
    lines = output.getvalue().splitlines()
    assert lines[0] == "step 1/100 (1.0%)  "
    assert "step 4/100 (4.0%)  4.0 img/s  eta 3:12" in lines  # that of before the pause
    assert "step 5/100 (5.0%)  0.2 img/s  eta 1:03:20" in lines


def test_plain_lines_come_at_intervals_and_without_control_characters() -> None:
    clock = Clock()
    console, output = console_of(terminal=False)
    with TrainProgress(1000, images_per_step=4, console=console, clock=clock) as progress:
        for step in range(1, 101):
            progress.update(step, {"loss": 1.5, "learning_rate": 0.01})
            if step == 50:
                progress.update(step, {"AP": 0.25})
            clock.now += 1.0
        progress.message("[saved] a checkpoint")
    lines = output.getvalue().splitlines()
    assert "\x1b" not in output.getvalue()
    assert "\r" not in output.getvalue()
    assert [line.split()[1] for line in lines if line.startswith("step")] == [
        "1/1000", "31/1000", "61/1000", "91/1000", "100/1000",
    ]  # fmt: skip
    assert lines[0] == "step 1/1000 (0.1%)  loss 1.5  lr 1.00e-02"
    assert lines[2] == ("step 61/1000 (6.1%)  4.0 img/s  eta 15:39  loss 1.5  lr 1.00e-02  AP 0.25")
    assert "[saved] a checkpoint" in lines


def test_the_last_step_is_shown_once() -> None:
    console, output = console_of(terminal=False)
    with TrainProgress(3, images_per_step=1, console=console, clock=Clock()) as progress:
        for step in (1, 2, 3):
            progress.update(step)
    assert [line.split()[1] for line in output.getvalue().splitlines()] == ["1/3", "3/3"]


def test_a_terminal_gets_a_bar() -> None:
    clock = Clock()
    console, output = console_of(terminal=True)
    with TrainProgress(10, images_per_step=4, console=console, clock=clock) as progress:
        for step in range(1, 11):
            progress.update(step, {"loss": 0.5})
            clock.now += 1.0
        progress.message("[saved] a checkpoint")
        assert list(progress.track(iter("abc"), 3, "eval")) == ["a", "b", "c"]
    text = output.getvalue()
    for part in ("━", "10/10", "4.0 img/s", "loss 0.5", "[saved] a checkpoint"):
        assert part in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_quiet_one_prints_nothing(terminal: bool) -> None:
    console, output = console_of(terminal=terminal, quiet=True)
    with TrainProgress(3, images_per_step=1, console=console) as progress:
        progress.update(1, {"loss": 1.0})
        progress.message("text")
        assert list(progress.track(range(2), 2, "eval")) == [0, 1]
    assert list(track(range(2), 2, "eval", console=console)) == [0, 1]
    assert output.getvalue() == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_track_yields_everything(terminal: bool) -> None:
    console, output = console_of(terminal=terminal)
    assert list(track(range(5), 5, "eval", console=console)) == [0, 1, 2, 3, 4]
    assert "eval" in output.getvalue()
    assert ("\x1b" in output.getvalue()) == terminal


def test_plain_track_tells_now_and_then() -> None:
    clock = Clock()
    console, output = console_of(terminal=False)
    for _ in track(range(100), 100, "eval", console=console, clock=clock):
        clock.now += 1.0
    assert output.getvalue().splitlines() == [
        "eval 30/100", "eval 60/100", "eval 90/100", "eval done",
    ]  # fmt: skip
