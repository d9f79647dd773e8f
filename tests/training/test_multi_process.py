"""Real processes on one machine: the same training, the same numbers, and an end for everybody."""

import itertools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from harmonic_jax.training.log import read_metrics
from tests.training import processes
from tests.training.processes import reserved_port, wait_for_step, wait_until

RUN = ("-m", "tests.training.worker")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder: Path) -> tuple[dict, list[dict]]:
    """The run in one process with one device, and in two; at the same time, to save it."""

    def command(name: str) -> tuple[object, ...]:
        return (*RUN, folder / name, "--more", "--save", folder / f"{name}.npz")

    with (
        processes.start(*command("one"), count=1) as (alone,),
        processes.start(*command("two"), count=2) as pair,
    ):
        for process in (alone, *pair):
            assert process.end() == 0, process.err
        # Process 1 is silent, but for its report and a line that gloo prints by itself.
        lines = [line for line in pair[1].out.splitlines() if not line.startswith("[Gloo]")]
        assert len(lines) == 1
        assert pair[1].err == ""
        return alone.report, [process.report for process in pair]


@pytest.fixture(scope="module")
def one(runs: tuple[dict, list[dict]]) -> dict:
    return runs[0]


@pytest.fixture(scope="module")
def two(runs: tuple[dict, list[dict]]) -> list[dict]:
    return runs[1]


def difference(folder: Path, a: str, b: str) -> float:
    """The largest one between two saved states: parameters and statistics of batch norms."""
    left, right = np.load(folder / f"{a}.npz"), np.load(folder / f"{b}.npz")
    assert left.files == right.files
    return max(float(np.abs(left[name] - right[name]).max()) for name in left.files)


def global_batches(reports: list[dict]) -> list[list[int]]:
    """The images of every step, put together from what each process loaded."""
    steps = zip(*(report["batches"] for report in reports), strict=True)
    return [list(itertools.chain(*parts)) for parts in steps]


def test_two_processes_train_what_one_trains(one: dict, two: list[dict], folder: Path) -> None:
    assert [report["devices"] for report in two] == [2, 2]
    assert two[0]["hash"] == two[1]["hash"]
    assert two[0]["metrics"] == two[1]["metrics"]
    assert difference(folder, "one", "two") < 1e-4
    trained = np.load(folder / "two.npz")
    assert min(float(np.abs(trained[n]).max()) for n in trained.files if "'var'" in n) > 0


def test_their_first_steps_agree_to_rounding(two: list[dict], folder: Path) -> None:
    """The same samples, and a loss that no statistics of half of a batch have gone into."""
    assert two
    logs = [read_metrics(folder / name / "metrics.jsonl") for name in ("one", "two")]
    steps = [pair for pair in zip(*logs, strict=True) if pair[0]["kind"] == "train"][:6]
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


def test_evaluations_of_any_number_of_images(one: dict, two: list[dict]) -> None:
    """1 and 9 images on two processes: no hang, each image once, the same numbers."""
    for report in two:
        for found, expected in zip(report["evaluations"], one["evaluations"], strict=True):
            assert found == pytest.approx(expected, rel=0, abs=1e-12)
    assert 0.1 < one["evaluations"][1]["AP"] < 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (1, 4)])
def test_four_devices_train_what_one_trains(
    one: dict, folder: Path, count: int, devices: int
) -> None:
    """Twice, from the start, and bit for bit the same."""
    for name in ("a", "b"):
        path = folder / f"{count}x{devices}{name}"
        reports = processes.run(
            *(*RUN, path, "--save", f"{path}.npz"), count=count, devices=devices
        )
        assert [report["devices"] for report in reports] == [4] * count
        assert len({report["hash"] for report in reports}) == 1
        assert global_batches(reports) == one["batches"]
    assert difference(folder, f"{count}x{devices}a", f"{count}x{devices}b") == 0
    assert difference(folder, "one", f"{count}x{devices}a") < 1e-4


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
