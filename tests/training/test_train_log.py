"""The log: read a step late, stopped by a loss that is not finite, and honest about waiting."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from harmonic_jax.training.log import RunWriter, read_metrics
from harmonic_jax.training.progress import TrainProgress
from harmonic_jax.training.train_log import NonFiniteLossError, TrainLog
from tests.training.test_progress import Clock


class OnDevice:
    """A scalar that notes when the host asks for it."""

    def __init__(self, value: float, asked: list[float]) -> None:
        self.value, self.asked = value, asked

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self.asked.append(self.value)
        return np.asarray(self.value, np.float32)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def make_log(tmp_path: Path, clock: Clock, shown: io.StringIO):
    console = Console(file=shown, width=150)
    progress = TrainProgress(100, images_per_step=2, console=console, clock=clock)
    with RunWriter(tmp_path) as writer:
        yield lambda every: TrainLog(every, writer, progress, clock=clock)


def test_the_step_just_dispatched_is_never_waited_for(make_log) -> None:
    log, asked = make_log(2), []
    for step in range(1, 6):
        log.add(step, {"loss": OnDevice(step, asked), "grad_norm": 0.0})
        assert asked == list(range(1, step))
    log.flush()
    assert asked == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_late_is_still_before_anything_is_saved(make_log, name: str, value: float) -> None:
    """The loop flushes before it evaluates or saves."""
    log = make_log(1)
    good = {"loss": 1.0, "grad_norm": 1.0}
    log.add(1, good)
    log.add(2, good | {name: value})
    with pytest.raises(NonFiniteLossError, match="not finite at step 2"):
        log.flush()


def test_a_loss_that_is_not_finite_is_seen_one_step_later(make_log) -> None:
    log = make_log(1)
    log.add(1, {"loss": math.nan, "grad_norm": 1.0})
    with pytest.raises(NonFiniteLossError, match="not finite at step 1"):
        log.add(2, {"loss": 1.0, "grad_norm": 1.0})


def test_data_wait_is_the_share_of_the_steps_since_the_last_row(
    make_log, clock: Clock, shown: io.StringIO, tmp_path: Path
) -> None:
    log = make_log(2)
    metrics = {"loss": 1.0, "grad_norm": 1.0}
    for step, (wait, work) in enumerate([(6, 2), (1, 1), (0, 8), (1, 1)], start=1):
        with log.waiting_for_data():
            clock.now += wait
        clock.now += work
        log.add(step, metrics)
        clock.now += 1000.0  # an evaluation, a checkpoint
    log.flush()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["data_wait"] for row in rows] == pytest.approx([0.7, 0.1])
    assert "data wait 70.0%" in shown.getvalue()
