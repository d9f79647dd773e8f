"""A grid is run, killed, gone on with; with stand-ins for train.py and eval.py in a repository."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import ablation_runner
from benchmarks.ablation_grid import GridError
from benchmarks.ablation_results import METRICS, read_results
from benchmarks.ablation_runner import core_slots, run_grid
from tests.benchmarks.test_ablation import GRID

ROOT = Path(__file__).parent.parent.parent
# Its training writes a log, and fails as the files FAIL and DIVERGE beside it say.
TRAIN = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
calls = folder / "calls"
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
row = {"kind": "train", "step": 20, "loss": 1.0, "grad_norm": 2.0, "positive_score": 0.1}
(folder / "metrics.jsonl").write_text(json.dumps(row | {"positive_iou": 0.5}) + "\\n")
if pathlib.Path("SLEEP").exists():
    time.sleep(60)
for name, text in (("FAIL", "error: no such data"), ("DIVERGE", "error: the loss is not finite")):
    if pathlib.Path(name).exists() and pathlib.Path(name).read_text() in folder.name:
        sys.exit(text)
"""
EVAL = "import sys; assert sys.argv[2:4] == ['--last', '--report']; print(sys.argv)"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    (root / "harmonic_jax").mkdir(parents=True)
    (root / "harmonic_jax" / "code.py").write_text("")
    (root / "configs").symlink_to(ROOT / "configs")
    (root / "train.py").write_text(TRAIN)
    (root / "eval.py").write_text(EVAL)
    for command in ("init -q", "add -A", "commit -q -m all"):
        identity = "-c user.name=a -c user.email=a@b.example"
        subprocess.run(f"git {identity} {command}", cwd=root, shell=True, check=True)
    monkeypatch.setattr(ablation_runner, "ROOT", root)
    monkeypatch.setattr(ablation_runner, "device_name", lambda cores: f"{cores} cores")
    values = dict.fromkeys(METRICS, 0.25)
    measured = {"metrics": values, "resamples": {m: [0.25, 0.2] for m in METRICS}}
    monkeypatch.setattr(ablation_runner, "measure", lambda report: dict(measured))
    return root


def calls(out: Path) -> dict[str, int]:
    return {file.parent.name: len(file.read_text()) for file in out.glob("runs/*/calls")}


def test_what_is_there_is_not_run_again(repository: Path, tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "lines" / "results.jsonl"
    one_seed = dataclasses.replace(GRID, seeds=(0,))
    run_grid(one_seed, out, results, jobs=2)
    run_grid(GRID, out, results, jobs=1)
    assert set(calls(out).values()) == {1}
    rows = read_results(results)
    assert {row["name"] for row in rows} == {run.name for run in GRID.runs()}
    assert all(row["status"] == "done" and row["curve"]["step"] == [20] for row in rows)
    assert rows[0]["config"]["train"]["seed"] == 0
    assert rows[0]["seconds"] >= 0.0
    revision = rows[0]["revision"]
    assert len(revision.split("-")) == 3

    (repository / "train.py").write_text(TRAIN + "\n")
    with pytest.raises(GridError, match="commit these first"):
        run_grid(GRID, out, results, jobs=1)
    subprocess.run(
        "git -c user.name=a -c user.email=a@b.example commit -qam other",
        cwd=repository, shell=True, check=True,
    )  # fmt: skip
    with pytest.raises(GridError, match=f"of the code {revision}"):
        run_grid(GRID, out, results, jobs=1)
    longer = dataclasses.replace(GRID, common=("--train.steps", "7"))
    with pytest.raises(GridError, match="take another --results"):
        run_grid(longer, out, results, jobs=1)


def test_divergence_is_a_result_and_failure_is_not(repository: Path, tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "results.jsonl"
    (repository / "DIVERGE").write_text("hardet-seed0")
    (repository / "FAIL").write_text("baseline-seed1")
    with pytest.raises(GridError, match=r"scenes-baseline-seed1 failed .*no such data"):
        run_grid(GRID, out, results, jobs=1)
    rows = {row["name"]: row for row in read_results(results)}
    assert list(rows) == ["scenes-baseline-seed0", "scenes-hardet-seed0"]
    assert rows["scenes-hardet-seed0"]["status"] == "diverged"
    assert rows["scenes-hardet-seed0"]["message"] == "error: the loss is not finite"
    assert rows["scenes-hardet-seed0"]["curve"]["grad_norm"] == [2.0]
    (repository / "FAIL").unlink()
    run_grid(GRID, out, results, jobs=1)
    assert calls(out) == {run.name: 1 + ("baseline-seed1" in run.name) for run in GRID.runs()}
    resumed = {row["name"]: row["seconds"] for row in read_results(results)}
    assert resumed["scenes-baseline-seed1"] is None  # in two parts


def test_a_signal_ends_the_runs_too(tmp_path: Path, repository: Path) -> None:
    """The whole program, in the stand-in repository: no training is left behind.

    Started as shells start what ends in `&`: with SIGINT ignored.
    """
    (repository / "SLEEP").write_text("")
    (repository / "benchmarks").symlink_to(ROOT / "benchmarks")
    script = tmp_path / "grid.py"
    script.write_text(
        "import dataclasses\n"
        "import benchmarks.ablation_runner as runner, pathlib\n"
        f"runner.ROOT = pathlib.Path({str(repository)!r})\n"
        "runner.device_name = lambda cores: 'cores'\n"
        "from tests.benchmarks.test_ablation_runner import GRID\n"
        "grid = lambda: GRID\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, ROOT / "benchmarks" / "ablation.py", script, "--out", out, "--jobs", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(calls(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(calls(out)) == 2
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3, errors
    assert "the same command goes on from here" in errors
    assert not (out / "results.jsonl").exists()
    listing = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True).stdout
    assert str(out) not in listing


def test_jobs_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert core_slots(1) == [{0, 1, 2, 3}]
    assert core_slots(2) == [{0, 1}, {2, 3}]
    assert core_slots(8) == [{0, 1, 2, 3}] * 8
