"""SIGTERM, SIGHUP and Ctrl-C in every phase of `train.py`: a line, status 3, and nothing lost."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

import pytest

from harmonic_jax.cli import train
from harmonic_jax.training import loop
from harmonic_jax.training.checkpoint import CheckpointStore
from tests.cli.coco import write_coco


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "data"
    return write_coco(write_coco(folder, "train"), "valid")


def after(signals: tuple[signal.Signals, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but before it does what it does the signals come."""

    def signalled(*args: Any, **more: Any) -> Any:
        for number in signals:
            signal.raise_signal(number)
        return function(*args, **more)

    return signalled


@pytest.mark.parametrize(
    ("signals", "module", "name", "told", "steps"),
    [
        ((SIGTERM,), train, "open_source", "error: stopped by SIGTERM", ()),
        ((SIGINT,), train, "open_source", "error: stopped by SIGINT", ()),
        ((SIGHUP,), loop, "process_watchdog", "error: stopped by SIGHUP", ()),
        ((SIGINT,), loop, "start_or_resume", "SIGINT: stopped before the first step", ()),
        ((SIGTERM,), loop, "compile_programs", "SIGTERM: stopped before the first step", ()),
        ((SIGINT, SIGINT), loop, "compile_programs", "error: stopped by SIGINT", ()),
        ((SIGHUP,), loop, "put_batch", "SIGHUP: saved step 1; start again to go on", (1,)),
        ((SIGINT,), loop, "put_batch", "SIGINT: saved step 1; start again to go on", (1,)),
        ((SIGINT, SIGINT), loop, "put_batch", "error: stopped by SIGINT", ()),
        ((SIGTERM,), loop, "evaluate", "SIGTERM: saved step 2; start again to go on", (2,)),
        ((SIGINT, SIGINT), loop, "evaluate", "error: stopped by SIGINT", (2,)),
        ((SIGTERM,), train, "write_results", "error: stopped by SIGTERM", (2,)),
    ],
)
def test_a_signal_in_every_phase(
    untrained, trained, data: Path, monkeypatch,
    signals: tuple[signal.Signals, ...], module: Any, name: str, told: str, steps: tuple[int, ...]
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(module, name, after(signals, getattr(module, name)))
        status, shown, run = trained(data)
    assert status == 3
    assert told in shown.splitlines()
    assert "Traceback" not in shown
    assert CheckpointStore(run / "checkpoints").steps() == steps
    status, shown, run = trained(data)
    assert status == 0
    assert ("continuing the run" in shown) == bool(steps)
    assert (run / "report" / "metrics.json").exists()


def test_a_finished_run_that_is_stopped_while_it_reports_again_says_so(
    untrained, trained, data: Path, monkeypatch
) -> None:
    assert trained(data)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", after((SIGTERM,), loop.evaluate))
        status, shown, _ = trained(data)
    assert status == 3
    assert "SIGTERM: saved step 2; start again to go on" in shown
    assert trained(data)[0] == 0


def test_the_numbers_are_printed_where_the_report_cannot_be_written(
    untrained, trained, data: Path, monkeypatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "report/metrics.json")

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_results", fail)
        status, shown, _ = trained(data)
    assert status == 1
    assert "IoU .50" in shown
    assert shown.splitlines()[-1].startswith("error: report/metrics.json: No space left on device")
    assert "Traceback" not in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_full_costs_no_training(
    untrained, trained, data: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        status, shown, run = trained(data)
    assert status == 0
    words = "standard output: No space left on device; the work goes on without a display"
    assert words in shown.splitlines()
    assert (run / "report" / "metrics.json").exists()
