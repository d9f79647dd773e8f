"""Whole runs, of one process and of several: killed, stopped, damaged, continued, refused; they end
with the same bits, or the same numbers, and with an end for everybody."""

import dataclasses
import itertools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.training import loop
from harmonic_jax.training.log import read_metrics
from tests.training import processes, worker
from tests.training.processes import reserved_port, wait_for_step, wait_until
from tests.training.tiny import flip_bit_of_largest, run_config, wide_images

RUN = ("-m", "tests.training.worker")


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    """An uninterrupted run, in `folder / "one"`, in this process and on one device."""
    report = worker.run(run_config(folder / "one"))
    assert (report["step"], report["stopped_by"]) == (8, None)
    return report


def outcome(run_dir: Path, **train: Any) -> dict[str, Any]:
    """Trains, or goes on, in this process."""
    return worker.run(run_config(run_dir, **train))


@pytest.fixture
def copy(one: dict[str, Any], folder: Path, tmp_path: Path) -> Path:
    assert one
    return Path(shutil.copytree(folder / "one", tmp_path / "run"))


def read_log(run_dir: Path) -> list[dict]:
    """The rows but for their times, which are never the same twice."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{name: row[name] for name in row if name != "data_wait"} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_killed_run_ends_bit_identical(
    one: dict[str, Any], folder: Path, tmp_path: Path, step: int
) -> None:
    run_dir = tmp_path / "run"
    with processes.start(*RUN, run_dir, count=1) as started:
        wait_for_step(started, run_dir, step)
    assert outcome(run_dir)["hash"] == one["hash"]
    assert read_log(run_dir) == read_log(folder / "one")


def test_a_stopped_run_goes_on_to_the_same_end(
    one: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert outcome(tmp_path / "run")["hash"] == one["hash"]
    assert read_log(tmp_path / "run") == read_log(folder / "one")


def test_a_flipped_bit_is_found_and_the_step_before_used(
    one: dict[str, Any], copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage the newest step of a finished run; it is made again from the one before."""
    flip_bit_of_largest(max((copy / "checkpoints").glob("step_*")))
    assert outcome(copy)["hash"] == one["hash"]
    assert "is damaged" in caplog.text


def test_other_data_seed_or_batch_are_refused(one: dict[str, Any], copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.seed: 0 there, 1 now"):
        outcome(copy, seed=1)
    with pytest.raises(ConfigError, match=r"train\.batch_size: 8 there, 4 now"):
        outcome(copy, batch_size=4)
    with pytest.raises(ConfigError, match="other training data, or another order"):
        worker.run(run_config(copy), wide_images(14))
    log = (copy / "metrics.jsonl").read_text()
    config = run_config(copy)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, num_threads=1))
    assert worker.run(moved)["hash"] == one["hash"]
    assert (copy / "metrics.jsonl").read_text() == log  # nothing was trained again


# Of several processes.


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What both processes of the same run report."""
    command = (*RUN, folder / "two", "--more", "--save", folder / "two.npz")
    with processes.start(*command, count=2) as pair:
        for process in pair:
            assert process.end() == 0, process.err
        # Process 1 is silent, but for its report and a line that gloo prints by itself.
        lines = [line for line in pair[1].out.splitlines() if not line.startswith("[Gloo]")]
        assert len(lines) == 1
        assert pair[1].err == ""
        return [process.report for process in pair]


def difference(one: dict[str, Any], path: Path) -> float:
    """The largest one to saved variables: parameters and statistics of batch norms."""
    leaves = jax.tree_util.tree_leaves_with_path(one["variables"])
    saved = np.load(path)
    assert len(saved.files) == len(leaves)
    return max(
        float(np.abs(saved[jax.tree_util.keystr(name)] - leaf).max()) for name, leaf in leaves
    )


def global_batches(reports: list[dict]) -> list[list[int]]:
    """The images of every step, put together from what each process loaded."""
    steps = zip(*(report["batches"] for report in reports), strict=True)
    return [list(itertools.chain(*parts)) for parts in steps]


def test_two_processes_train_what_one_trains(one: dict, two: list[dict], folder: Path) -> None:
    assert [report["devices"] for report in two] == [2, 2]
    assert two[0]["hash"] == two[1]["hash"]
    assert two[0]["metrics"] == two[1]["metrics"]
    assert difference(one, folder / "two.npz") < 1e-4
    trained = np.load(folder / "two.npz")
    assert min(float(np.abs(trained[n]).max()) for n in trained.files if "'var'" in n) > 0


def test_their_first_steps_agree_to_rounding(one: dict, two: list[dict], folder: Path) -> None:
    """The same samples, and a loss that no statistics of half of a batch have gone into."""
    assert one
    assert two
    steps = list(zip(read_log(folder / "one"), read_log(folder / "two"), strict=True))[:6]
    assert [row["step"] for row, _ in steps] == [1, 2, 3, 4, 5, 6]
    for alone, together in steps:
        assert together["num_positive"] == alone["num_positive"]
        for name in ("loss", "cls_loss", "box_loss", "tc_loss"):
            assert together[name] == pytest.approx(alone[name], rel=1e-5), name


def test_both_load_one_order_and_each_image_once_an_epoch(one: dict, two: list[dict]) -> None:
    assert len({len(indices) for report in two for indices in report["batches"]}) == 1
    steps = global_batches(two)
    assert steps == one["batches"]
    epochs = [sorted(steps[i] + steps[i + 1]) for i in range(0, 8, 2)]
    assert epochs == [list(range(16))] * 4


def test_evaluations_of_any_number_of_images(two: list[dict], tmp_path: Path) -> None:
    """1 and 9 images on two processes: no hang, each image once, the same numbers."""
    alone = worker.evaluations(run_config(tmp_path))
    for report in two:
        for found, expected in zip(report["evaluations"], alone, strict=True):
            assert found == pytest.approx(expected, rel=0, abs=1e-12)
    assert 0.1 < alone[1]["AP"] < 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (1, 4)])
def test_four_devices_train_what_one_trains(
    one: dict, folder: Path, count: int, devices: int
) -> None:
    """Twice, from the start, and bit for bit the same."""
    hashes = set()
    for name in ("a", "b"):
        path = folder / f"{count}x{devices}{name}"
        reports = processes.run(
            *(*RUN, path, "--save", f"{path}.npz"), count=count, devices=devices
        )
        assert [report["devices"] for report in reports] == [4] * count
        assert len({report["hash"] for report in reports}) == 1
        assert global_batches(reports) == one["batches"]
        assert difference(one, Path(f"{path}.npz")) < 1e-4
        hashes.add(reports[0]["hash"])
    assert len(hashes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_restores(two: list[dict], folder: Path, count: int) -> None:
    """The finished run of two processes, opened again: nothing is trained, all have its state."""
    for report in processes.run(*RUN, folder / "two", count=count):
        assert report["hash"] == two[0]["hash"]
        assert report["step"] == 8
        assert report["batches"] == []


@pytest.mark.slow
def test_sigterm_to_one_stops_all_at_the_same_step(two: list[dict], tmp_path: Path) -> None:
    with processes.start(*RUN, tmp_path / "run", count=2) as started:
        wait_for_step(started, tmp_path / "run", 4)
        started[1].process.send_signal(signal.SIGTERM)
        for process in started:
            assert process.end() == 3, process.err
        first, second = (process.report for process in started)
    assert first["step"] == second["step"]
    assert 4 <= first["step"] < 8
    assert first["hash"] == second["hash"]
    stopped_by = (first["stopped_by"], second["stopped_by"])
    assert stopped_by == ("a signal to another process", "SIGTERM")
    again = processes.run(*RUN, tmp_path / "run", count=2)
    assert {report["hash"] for report in again} == {two[0]["hash"]}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_kill_the_other_ends_and_the_run_goes_on(
    two: list[dict], tmp_path: Path, victim: int
) -> None:
    heartbeat = ("--heartbeat-timeout-seconds", "10")
    with processes.start(*RUN, tmp_path / "run", *heartbeat, count=2) as started:
        wait_for_step(started, tmp_path / "run", 5)
        started[victim].process.kill()
        begun = time.monotonic()
        other = started[1 - victim]
        status = other.end(seconds=15)
        assert time.monotonic() - begun < 15
        # gloo of JAX 0.10 fails at once; with JAX 0.12 it is JAX that ends the process.
        assert status in (4, -signal.SIGABRT)
        gone = f"process {1 - victim}: error: another process of this run is gone"
        assert (gone in other.err) == (status == 4), f"status {status}: {other.err}"
    again = processes.run(*RUN, tmp_path / "run", count=2)
    assert {report["hash"] for report in again} == {two[0]["hash"]}


@pytest.mark.slow
def test_a_process_that_hangs_ends_all_with_their_stacks(two: list[dict], tmp_path: Path) -> None:
    """Its data never come: JAX's heartbeats go on, and only the watchdog notices."""
    options = ("--hang", "30", "--step-timeout", "6")
    with processes.start(*RUN, tmp_path / "run", *options, count=2) as started:
        for index, process in enumerate(started):
            assert process.end() == 4
            assert f"process {index}: error: nothing was completed for 6 s" in process.err
            assert "Thread 0x" in process.err
            assert ("image_bytes" in process.err) == (index == 1)  # where it hangs
    again = processes.run(*RUN, tmp_path / "run", count=2)
    assert {report["hash"] for report in again} == {two[0]["hash"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "statuses", "words"),
    [
        (("--step-timeout", "6"), (4,), "error: nothing was completed for 6 s, since step"),
        # No watchdog: JAX ends the process, after a line of ours that says what may have happened.
        (("--heartbeat-timeout-seconds", "10"), (4, -signal.SIGABRT), "nothing was completed for"),
    ],
)
def test_a_process_that_is_frozen_ends_the_others(
    tmp_path: Path, options: tuple[str, ...], statuses: tuple[int, ...], words: str
) -> None:
    with processes.start(*RUN, tmp_path / "run", *options, count=2) as started:
        wait_for_step(started, tmp_path / "run", 3)
        os.kill(started[1].process.pid, signal.SIGSTOP)
        assert started[0].end(seconds=30) in statuses
        assert f"process 0: {words}" in started[0].err
        assert "is slow, hangs or is lost" in started[0].err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["together", "alone"])
def test_a_failure_of_one_ends_all(tmp_path: Path, how: str) -> None:
    with processes.start(*RUN, tmp_path, "--fail", how, count=2) as started:
        statuses = [process.end(seconds=60) for process in started]
        assert "process 1: error: no space left on the moon\n" in started[1].err
        if how == "together":
            assert statuses == [1, 1]
            expected = "process 0: error: process 1 failed: no space left on the moon\n"
            assert started[0].err == expected
        else:
            assert statuses == [4, 1]
            assert "process 0: error: another process of this run is gone" in started[0].err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("run", "--seed", "{process}"), "another config (train.seed: 0 there, 1 now)"),
        (("run{process}",), "must be one that all hosts share"),
    ],
)
def test_processes_that_do_not_fit_together_are_refused(
    tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    with processes.start(*RUN, tmp_path / options[0], *options[1:], count=2) as started:
        assert [process.end() for process in started] == [1, 1]
        assert started[0].err.startswith("process 0: error: process 1 failed: ")
        assert started[1].err.startswith("process 1: error: ")
        for process in started:
            assert reason in process.err
            assert len(process.err.splitlines()) == 1


@pytest.mark.slow
def test_who_waits_for_a_process_that_never_comes_says_so() -> None:
    """JAX would end it after five minutes, with a page of text."""
    with reserved_port() as port:
        options = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2")
        with processes.start(*RUN, "run", *options, "--process-id", "1", count=1) as started:
            wait_until(lambda: bool(started[0].err), started)
            line = f"waiting for the other processes at 127.0.0.1:{port}: "
            assert started[0].err.startswith(line)
