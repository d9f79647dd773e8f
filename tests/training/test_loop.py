"""Whole runs: killed or stopped in processes of their own, damaged, continued, refused."""

import itertools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.training import loop
from harmonic_jax.training.log import read_metrics
from tests.training.run_tiny import NUM_STEPS, run
from tests.training.tiny import flip_bit_of_largest

ROOT = Path(__file__).parent.parent.parent


class Finished(NamedTuple):
    """An uninterrupted run in this process."""

    run_dir: Path
    result: dict


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    result = run(run_dir)
    assert (result["step"], result["stopped_by"]) == (NUM_STEPS, None)
    return Finished(run_dir, result)


def start(run_dir: Path) -> subprocess.Popen:
    """Starts a run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.run_tiny", str(run_dir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_log(run_dir: Path) -> list[dict]:
    """The rows but for their times, which are never the same twice."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{name: row[name] for name in row if name != "data_wait"} for row in rows]


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    """Until the log has the step; the log is behind the training by one step."""
    log = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if log.exists() and any(f'"step": {step},' in line for line in log.open()):
            return
        time.sleep(0.005)
    raise TimeoutError(f"step {step} did not come")


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_killed_run_ends_bit_identical(finished: Finished, tmp_path: Path, step: int) -> None:
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for_step(process, run_dir, step)
    process.kill()
    process.communicate()
    assert run(run_dir)["hash"] == finished.result["hash"]
    assert read_log(run_dir) == read_log(finished.run_dir)


def test_a_stopped_run_goes_on_to_the_same_end(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM within a step that is not saved otherwise: it is saved, and nothing shows later."""
    put_batch, steps = loop.put_batch, itertools.count(1)

    def signalled(*args: Any) -> Any:
        if next(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return put_batch(*args)

    monkeypatch.setattr(loop, "put_batch", signalled)
    stopped = run(tmp_path / "run")
    assert (stopped["step"], stopped["stopped_by"]) == (3, "SIGTERM")
    assert run(tmp_path / "run")["hash"] == finished.result["hash"]
    assert read_log(tmp_path / "run") == read_log(finished.run_dir)


def copy_of(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.run_dir, tmp_path / "run"))


def test_a_flipped_bit_is_found_and_the_step_before_used(
    finished: Finished, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage the newest step of a finished run; it is made again from the one before."""
    run_dir = copy_of(finished, tmp_path)
    flip_bit_of_largest(max((run_dir / "checkpoints").glob("step_*")))
    assert run(run_dir)["hash"] == finished.result["hash"]
    assert "is damaged" in caplog.text


def test_other_data_seed_or_batch_are_refused(finished: Finished, tmp_path: Path) -> None:
    run_dir = copy_of(finished, tmp_path)
    for options, words in (
        ({"seed": 1}, "train.seed: 0 there, 1 now"),
        ({"batch_size": 4}, "train.batch_size: 2 there, 4 now"),
        ({"num_images": 5}, "training data"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(run_dir, **options)
    log = (run_dir / "metrics.jsonl").read_text()
    assert run(run_dir)["step"] == NUM_STEPS
    assert (run_dir / "metrics.jsonl").read_text() == log  # nothing was trained again
