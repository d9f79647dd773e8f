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
