"""The benchmark for a GPU, run small on a processor: that it runs, not how fast."""

from pathlib import Path

import pytest

from benchmarks import gpu

# What a machine with a GPU may lack: all that reads, writes or scores data, and PyTorch.
ABSENT = (
    *("tensorflow_datasets", "grain", "array_record", "pycocotools", "simplejpeg", "cv2", "PIL"),
    *("tyro", "tensorboardX", "matplotlib", "safetensors", "beartype", "torch"),
)


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started from here find JAX, Flax, Optax, Orbax and jaxtyping, and not these."""
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_our_side_needs_jax_flax_and_optax_alone(
    bare_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = gpu.main(["nms", "--dry-run", "--repeats", "1", "--sides", "ours", "PyTorch"])
    assert (row.task, row.side) == ("nms", "ours")
    assert row.milliseconds > 0
    shown = capsys.readouterr().out
    assert "skipped: ImportError: torch is not here" in shown


@pytest.mark.slow
def test_every_task_runs_on_every_side(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tasks = [task for task in gpu.TASKS if task != "train-ssd300"]  # minutes, and nothing new
    rows = gpu.main([*tasks, "--dry-run", "--repeats", "1", "--json", str(tmp_path / "rows.json")])
    shown = capsys.readouterr().out
    assert "skipped" not in shown
    assert "DISAGREES" not in shown
    assert [(row.task, row.side) for row in rows] == [
        (task, side) for task in tasks for side in gpu.SIDES
    ]
    detectors = [row for row in rows if "-" in row.task]
    assert all(row.images_per_second for row in detectors)
    assert all(row.of_matmul for row in detectors if row.side == "ours")
    assert (tmp_path / "rows.json").stat().st_size > 0
