"""Whole runs in processes of their own: killed, stopped, damaged, continued, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harmonic_jax.training.writer import read_metrics

ROOT = Path(__file__).parent.parent.parent


class Runner:
    """Starts runs; they share a compilation cache, so that only the first one compiles."""

    def __init__(self, cache: Path) -> None:
        self.env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self, run_dir: Path, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.training.run_tiny", str(run_dir), *options],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, run_dir: Path, *options: str) -> dict:
        process = self.start(run_dir, *options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1]) | {"printed": out, "stderr": err}

    def refuse(self, run_dir: Path, *options: str) -> str:
        process = self.start(run_dir, *options)
        _, err = process.communicate(timeout=300)
        assert process.returncode != 0
        return err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list]:
    """An uninterrupted run: what it printed and what it logged."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    result = runner.finish(run_dir)
    assert (result["step"], result["stopped_by"]) == (12, None)
    return result, read_log(run_dir)


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


@pytest.mark.parametrize("step", [1, 5, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_ends_bit_identical(
    runner: Runner, whole: tuple[dict, list], tmp_path: Path, step: int
) -> None:
    run_dir = tmp_path / "run"
    process = runner.start(run_dir)
    wait_for_step(process, run_dir, step)
    process.kill()
    process.communicate()
    again = runner.finish(run_dir)
    expected, log = whole
    assert again["hash"] == expected["hash"]
    assert read_log(run_dir) == log


def test_sigterm_saves_and_the_run_goes_on(
    runner: Runner, whole: tuple[dict, list], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = runner.start(run_dir)
    wait_for_step(process, run_dir, 3)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert process.returncode == 0, err
    stopped = json.loads(out.splitlines()[-1])
    assert stopped["stopped_by"] == "SIGTERM"
    assert 3 <= stopped["step"] < 12
    assert (run_dir / "checkpoints").is_dir()
    assert runner.finish(run_dir)["hash"] == whole[0]["hash"]


def test_a_flipped_bit_is_found_and_the_step_before_used(
    runner: Runner, whole: tuple[dict, list], tmp_path: Path
) -> None:
    """Damage the newest step of a finished run; it is made again from the one before."""
    run_dir = tmp_path / "run"
    runner.finish(run_dir)
    newest = max((run_dir / "checkpoints").glob("step_*"))
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    again = runner.finish(run_dir)
    assert "is damaged" in again["stderr"]
    assert again["hash"] == whole[0]["hash"]


def test_other_data_seed_or_batch_are_refused(runner: Runner, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    runner.finish(run_dir, "--steps", "2")
    same = ("--steps", "2")
    assert "train.seed: 0 there, 1 now" in runner.refuse(run_dir, *same, "--seed", "1")
    assert "train.batch_size: 2 there, 4 now" in runner.refuse(run_dir, *same, "--batch", "4")
    assert "training data" in runner.refuse(run_dir, *same, "--images", "5")
    log = (run_dir / "metrics.jsonl").read_text()
    finished = runner.finish(run_dir, *same)
    assert finished["step"] == 2
    assert (run_dir / "metrics.jsonl").read_text() == log  # nothing was trained again


def test_a_loss_that_is_not_finite_stops_the_run(runner: Runner, tmp_path: Path) -> None:
    """A rate of 1e30 sends the parameters to infinity in a step or two."""
    run_dir = tmp_path / "run"
    line = runner.refuse(run_dir, "--rate", "1e30")
    assert "NonFiniteLossError: the loss is not finite at step" in line
    assert "cls_loss" in line
    assert "box_loss" in line
    assert not list((run_dir / "checkpoints").glob("step_*"))
