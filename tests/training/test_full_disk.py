"""A full disk: one line that names the file and the space, and the last checkpoint is whole."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from harmonic_jax.cli.command import run_command
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.state import TrainState, Variables
from tests.training.quick_run import QuickRun, quick_run


def large_state() -> TrainState:
    """80 kB in float32, and as much of momentum."""
    variables = Variables({"w": jnp.ones(20_000)}, {})
    return TrainState(jnp.int32(0), variables, {"m": jnp.zeros(20_000)}, None)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a small disk of its own, or changes its size, in KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kib: int) -> Path:
        how = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a small disk")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[[QuickRun], tuple[int, list[str]]]:  # fmt: skip
    """Starts a run as a command does: its status, and what it and the libraries said of errors."""
    monkeypatch.setattr("tests.training.quick_run.start_state", large_state)

    def start(run: QuickRun) -> tuple[int, list[str]]:
        def body() -> int:
            run()
            return 0

        caplog.clear()
        status = run_command(body)
        return status, [*capfd.readouterr().err.splitlines(), *caplog.messages]

    return start


def fill(path: Path) -> None:
    """Takes all the space there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))


Start = Callable[[QuickRun], tuple[int, list[str]]]


@pytest.mark.parametrize(
    ("kib", "name", "steps"),
    [
        (4, "tensorboard/events.out.tfevents", ()),
        (8, "metrics.jsonl", ()),
        (16, "checkpoint step 2 to", ()),
        (200, "checkpoint step 2 to", ()),
        (400, "checkpoint step 4 to", (2,)),
        (600, "checkpoint step 6 to", (2, 4)),
    ],
)
def test_one_line_wherever_the_disk_is_full(
    mount: Callable[[int], Path], start: Start, kib: int, name: str, steps: tuple[int, ...]
) -> None:
    run = quick_run(mount(kib))
    status, (line,) = start(run)
    assert status == 1
    assert line.startswith("error: ")
    assert name in line
    assert "No space left on device, 0." in line
    assert run.steps == steps
    if steps:
        assert CheckpointStore(run.run_dir.checkpoints).restore(large_state()).step == steps[-1]


def test_a_restart_on_a_full_disk_and_on_one_with_space_again(
    mount: Callable[[int], Path], start: Start
) -> None:
    folder = mount(600)
    fill(folder / "filler")
    run = quick_run(folder)
    for name in ("config.json: No space", "checkpoint step 6 to", "metrics.jsonl: No space"):
        status, (line,) = start(run)
        assert status == 1
        assert name in line
        if name.startswith("config"):
            (folder / "filler").unlink()
        else:
            assert run.steps == (2, 4)
            fill(folder / "filler")
    (folder / "filler").unlink()
    mount(2000)
    assert start(run) == (0, [])
    assert run.steps == (4, 6)
