"""`train.py` and `eval.py`, started by two processes with the same words."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL
from tests.training import processes
from tests.training.processes import Started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def training(coco_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    data = ("--data.format", "coco", "--data.root", coco_folder)
    data += ("--data.train-split", "pictures", "--data.eval-split", "pictures")
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    return ("train.py", *SMALL, *data, "--run-dir", run_dir)


@pytest.fixture(scope="module")
def trained(training: tuple[object, ...]) -> Path:
    """The folder of a run that two processes made."""
    with processes.start(*training, count=2) as started:
        assert [one.end() for one in started] == [0, 0], [one.err for one in started]
        assert "2 processes, 2 devices" in started[0].out
        assert "IoU .50" in started[0].out
        assert_silent(started[1])
    return Path(str(training[-1]))


def assert_silent(process: Started) -> None:
    """gloo itself prints a line, on every process."""
    assert all(line.startswith("[Gloo]") for line in process.out.splitlines())
    assert process.err == ""


def test_process_0_alone_writes(trained: Path) -> None:
    names = {path.name for path in (trained / "report").iterdir()}
    assert {"metrics.json", "metrics.txt", "detections.json", "curves.png"} <= names
    assert len(list((trained / "tensorboard").iterdir())) == 1
    rows = (trained / "metrics.jsonl").read_text().splitlines()
    assert sum('"eval"' in row for row in rows) == 1


def test_two_processes_evaluate_what_one_evaluates(trained: Path, tmp_path) -> None:
    for count in (1, 2):
        options = ("--json", tmp_path / f"{count}.json")
        with processes.start("eval.py", trained, *options, count=count) as started:
            assert [one.end() for one in started] == [0] * count, started[-1].err
            assert "written" in started[0].out
            if count == 2:
                assert_silent(started[1])
    one, two = (json.loads((tmp_path / f"{count}.json").read_text()) for count in (1, 2))
    assert two == pytest.approx(one, rel=0, abs=1e-12)
    report = json.loads((trained / "report" / "metrics.json").read_text())
    assert two == pytest.approx(report, rel=0, abs=1e-12)


def test_a_refusal_ends_both_with_its_reason(trained: Path, training: tuple[object, ...]) -> None:
    reason = "train.seed: 0 there, 5 now"
    with processes.start(*training, "--train.seed", "5", count=2) as started:
        assert [one.end(seconds=60) for one in started] == [1, 1]
        assert (
            f"process 0: error: {trained} holds a run, in checkpoints/, with another config"
            in started[0].err
        )
        assert reason in started[0].err
        assert started[1].err.startswith("process 1: error: process 0 failed: ")
        assert reason in started[1].err
        assert all(len(one.err.splitlines()) == 1 for one in started)
