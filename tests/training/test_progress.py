"""The display: right numbers, no control characters in files, next to no cost."""

import io
import time

import pytest

from harmonic_jax.terminal import Terminal, track
from harmonic_jax.training.progress import StepRate, TrainProgress


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console_of(*, terminal: bool) -> tuple[Terminal, io.StringIO]:
    output = io.StringIO()
    return Terminal(file=output, force_terminal=terminal, width=150), output


def test_rate_leaves_out_the_compilation() -> None:
    clock = Clock()
    rate = StepRate(clock=clock)
    clock.now = 100.0  # the first step, compilation included
    rate.tick(1)
    assert rate.per_second is None
    for step in range(2, 12):
        clock.now += 0.5
        rate.tick(step)
    assert rate.per_second == pytest.approx(2.0)


def test_rate_counts_steps_not_calls_and_ignores_repeats() -> None:
    clock = Clock()
    rate = StepRate(clock=clock)
    for step in (0, 20, 20, 40):
        rate.tick(step)
        clock.now += 1.0
    # 20 steps in the first second; the repeat changes nothing, so 20 more in the next two.
    assert rate.per_second == pytest.approx(40 / 3)


def test_rate_follows_the_last_minute() -> None:
    clock = Clock()
    rate = StepRate(clock=clock)
    for step in range(100):
        clock.now += 10.0
        rate.tick(step)
    for step in range(100, 400):
        clock.now += 1.0
        rate.tick(step)
    assert rate.per_second == pytest.approx(1.0)


def test_a_pause_is_not_part_of_the_rate() -> None:
    clock = Clock()
    console, output = console_of(terminal=False)
    with TrainProgress(100, images_per_step=8, console=console, clock=clock) as progress:
        for step in (1, 2, 3):
            progress.update(step)
            clock.now += 2.0
        with progress.paused():
            clock.now += 1000.0
        clock.now += 2.0
        progress.update(4)
    assert "step 4/100 (4.0%)  4.0 img/s  eta 3:12" in output.getvalue()


def test_plain_lines_come_at_intervals_and_without_control_characters() -> None:
    clock = Clock()
    console, output = console_of(terminal=False)
    with TrainProgress(
        1000, images_per_step=4, plain_interval=30.0, console=console, clock=clock
    ) as progress:
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
    assert "━" in text
    assert "10/10" in text
    assert "4.0 img/s" in text
    assert "loss 0.5" in text
    assert "[saved] a checkpoint" in text


def test_disabled_prints_nothing() -> None:
    for terminal in (False, True):
        console, output = console_of(terminal=terminal)
        with TrainProgress(3, images_per_step=1, enabled=False, console=console) as progress:
            progress.update(1, {"loss": 1.0})
            progress.message("text")
            assert list(progress.track(range(2), 2, "eval")) == [0, 1]
        assert list(track(range(2), 2, "eval", enabled=False, console=console)) == [0, 1]
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


@pytest.mark.parametrize("terminal", [False, True])
def test_an_update_costs_under_a_tenth_of_a_millisecond(terminal: bool) -> None:
    console, _ = console_of(terminal=terminal)
    metrics = {"loss": 1.0, "cls": 0.5, "loc": 0.5, "learning_rate": 0.01}
    with TrainProgress(10**6, images_per_step=8, console=console) as progress:
        start = time.thread_time()  # not the wall clock: other programs may be busy
        for step in range(1, 5001):
            progress.update(step, metrics)
        seconds = time.thread_time() - start
    assert seconds / 5000 < 1e-4
