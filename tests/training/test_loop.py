"""Whole runs: killed or stopped, damaged, continued, refused; they end with the same bits."""

import dataclasses
import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.training import loop
from harmonic_jax.training.log import read_metrics
from tests.training import processes, worker
from tests.training.tiny import flip_bit_of_largest, run_config, wide_images


@pytest.fixture(scope="module", autouse=True)
def _shared_steps() -> Iterator[None]:
    """Traced and compiled once for all runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_train_step", "make_predict_step"):
            make, made = getattr(loop, name), {}
            patch.setattr(
                loop, name, lambda *a, make=make, made=made: made.setdefault("step", make(*a))
            )
        yield


def outcome(run_dir: Path, **train: Any) -> dict[str, Any]:
    """Trains, or goes on, in this process; without the arrays."""
    report = worker.run(run_config(run_dir, **train))
    return {name: report[name] for name in ("step", "stopped_by", "hash", "metrics")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run: its folder, and how it ended."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    result = outcome(run_dir)
    assert (result["step"], result["stopped_by"]) == (8, None)
    return run_dir, result


@pytest.fixture
def copy(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def read_log(run_dir: Path) -> list[dict]:
    """The rows but for their times, which are never the same twice."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{name: row[name] for name in row if name != "data_wait"} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_killed_run_ends_bit_identical(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, step: int
) -> None:
    run_dir = tmp_path / "run"
    with processes.start("-m", "tests.training.worker", run_dir, count=1) as (started,):
        processes.wait_for_step([started], run_dir, step)
    assert outcome(run_dir) == finished[1]
    assert read_log(run_dir) == read_log(finished[0])


def test_a_stopped_run_goes_on_to_the_same_end(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM within a step that is not saved otherwise: it is saved, and nothing shows later."""
    put_batch, steps = loop.put_batch, itertools.count(1)

    def signalled(*args: Any) -> Any:
        if next(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return put_batch(*args)

    monkeypatch.setattr(loop, "put_batch", signalled)
    stopped = outcome(tmp_path / "run")
    assert (stopped["step"], stopped["stopped_by"]) == (3, "SIGTERM")
    assert outcome(tmp_path / "run") == finished[1]
    assert read_log(tmp_path / "run") == read_log(finished[0])


def test_a_flipped_bit_is_found_and_the_step_before_used(
    finished: tuple[Path, dict[str, Any]], copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage the newest step of a finished run; it is made again from the one before."""
    flip_bit_of_largest(max((copy / "checkpoints").glob("step_*")))
    assert outcome(copy) == finished[1]
    assert "is damaged" in caplog.text


def test_other_data_seed_or_batch_are_refused(
    finished: tuple[Path, dict[str, Any]], copy: Path
) -> None:
    with pytest.raises(ConfigError, match=r"train\.seed: 0 there, 1 now"):
        outcome(copy, seed=1)
    with pytest.raises(ConfigError, match=r"train\.batch_size: 8 there, 4 now"):
        outcome(copy, batch_size=4)
    with pytest.raises(ConfigError, match="other training data, or another order"):
        worker.run(run_config(copy), wide_images(14))
    log = (copy / "metrics.jsonl").read_text()
    config = run_config(copy)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, num_threads=1))
    assert worker.run(moved)["hash"] == finished[1]["hash"]
    assert (copy / "metrics.jsonl").read_text() == log  # nothing was trained again
