"""`train.py` and `eval.py`, started by two processes with the same words."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL_RUNS
from tests.training import processes
from tests.training.processes import Started


def assert_silent(process: Started) -> None:
    """gloo itself prints a line, on every process."""
    assert all(line.startswith("[Gloo]") for line in process.out.splitlines())
    assert process.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_RUNS)
def test_two_processes_train_evaluate_and_refuse(
    name: str, coco_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    data = ("--data.format", "coco", "--data.root", coco_folder)
    data += ("--data.train-split", "pictures", "--data.eval-split", "pictures")
    training = ("train.py", *SMALL_RUNS[name], *data, "--run-dir", run)
    with processes.start(*training, count=2) as started:
        assert [one.end() for one in started] == [0, 0], [one.err for one in started]
        assert "2 processes, 2 devices" in started[0].out
        assert "IoU .50" in started[0].out
        assert_silent(started[1])
    names = {path.name for path in (run / "report").iterdir()}
    assert {"metrics.json", "metrics.txt", "detections.json", "curves.png"} <= names
    assert len(list((run / "tensorboard").iterdir())) == 1

    expected = json.loads((run / "report" / "metrics.json").read_text())
    for count in (1, 2):
        numbers = tmp_path / f"{count}.json"
        with processes.start("eval.py", run, "--json", numbers, count=count) as started:
            assert [one.end() for one in started] == [0] * count, started[-1].err
            assert "written" in started[0].out
            assert count == 1 or assert_silent(started[1]) is None
        found = json.loads(numbers.read_text())
        del found["at_score"]
        assert found == pytest.approx(expected, rel=0, abs=1e-12)

    with processes.start(*training, "--train.seed", "5", count=2) as started:
        assert [one.end(seconds=60) for one in started] == [1, 1]
        assert f"process 0: error: {run} holds a run, in checkpoints/, wi" in started[0].err
        assert started[1].err.startswith("process 1: error: process 0 failed: ")
        for one in started:
            assert "train.seed: 0 there, 5 now" in one.err
            assert len(one.err.splitlines()) == 1
