"""Metrics on the disk: valid JSON always, no row twice, and a kill costs the torn line only."""

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from harmonic_jax.training.log import NullWriter, RunWriter, open_writer, read_metrics

ROOT = Path(__file__).parent.parent.parent


def rows_of(folder: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["kind"]) for row in read_metrics(folder / "metrics.jsonl")]


def events_of(folder: Path) -> list[event_pb2.Event]:
    """Reads TFRecord files: length (8 bytes), its CRC (4), the event, its CRC (4)."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir()):
        raw = path.read_bytes()
        while raw:
            size = int.from_bytes(raw[:8], "little")
            events.append(event_pb2.Event.FromString(raw[12 : 12 + size]))
            raw = raw[16 + size :]
    return events


def test_rows_come_back_as_plain_floats(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": np.float32(0.1), "lr": jnp.asarray(0.5), "n": 3})
        writer.write(2, "eval", {"AP": 0.25})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "kind": "train", "loss": float(np.float32(0.1)), "lr": 0.5, "n": 3.0},
        {"step": 2, "kind": "eval", "AP": 0.25},
    ]


def test_non_finite_numbers_are_valid_json_and_come_back(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write(1, "train", {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse)["b"] == "inf"
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


def test_resume_drops_the_rows_that_will_be_written_again(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        for step in (10, 20, 30, 40):
            writer.write(step, "train", {"loss": step})
            if step == 20:
                writer.write(step, "eval", {"AP": 0.5})
    with RunWriter(tmp_path, resume_step=20) as writer:
        writer.write(30, "train", {"loss": -1})
    assert rows_of(tmp_path) == [(10, "train"), (20, "train"), (20, "eval"), (30, "train")]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["loss"] == -1


def test_resume_from_the_start_keeps_nothing(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 1})
    with RunWriter(tmp_path, resume_step=0):
        pass
    assert rows_of(tmp_path) == []


def test_a_new_run_never_continues_a_log_by_accident(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 1})
    with pytest.raises(FileExistsError, match=r"metrics\.jsonl exists; give resume_step"):
        RunWriter(tmp_path)
    assert rows_of(tmp_path) == [(1, "train")]


@pytest.mark.parametrize("torn", [b'{"step": 2, "kind": "tr', b'{"step": 2}', b"\0\0\0\0", b"7"])
def test_a_torn_last_line_is_repaired(
    tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with RunWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 1})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    with caplog.at_level(logging.WARNING):
        assert rows_of(tmp_path) == [(1, "train")]
    assert "dropped 1 line" in caplog.text
    with RunWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, "train", {"loss": 2})
    caplog.clear()
    assert rows_of(tmp_path) == [(1, "train"), (2, "train")]
    assert not caplog.text


def test_every_line_is_there_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from harmonic_jax.training.log import RunWriter\n"
        "writer = RunWriter(sys.argv[1])\n"
        "for step in range(5): writer.write(step, 'train', {'loss': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    assert [step for step, _ in rows_of(tmp_path)] == [0, 1, 2, 3, 4]


def test_tensorboard_gets_scalars_images_and_the_purge(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    with RunWriter(tmp_path) as writer:
        writer.write(7, "train", {"loss": 0.5, "bad": math.nan})
        writer.write(7, "eval", {"AP": 0.25})
        writer.write_images(7, {"scene": image})
    with RunWriter(tmp_path, resume_step=7) as writer:
        writer.write(8, "train", {"loss": 0.75})
    events = events_of(tmp_path)
    values = [(event.step, value) for event in events for value in event.summary.value]
    scalars = {
        (step, value.tag): value.simple_value
        for step, value in values
        if value.WhichOneof("value") == "simple_value"
    }
    expected = {(7, "train/loss"): 0.5, (7, "eval/AP"): 0.25, (8, "train/loss"): 0.75}
    assert scalars == expected
    (picture,) = [value.image for _, value in values if value.WhichOneof("value") == "image"]
    assert (picture.height, picture.width, picture.colorspace) == (4, 6, 3)
    starts = [e.step for e in events if e.session_log.status == event_pb2.SessionLog.START]
    assert starts == [8]


def test_restarts_within_a_second_do_not_overwrite_events(tmp_path: Path) -> None:
    for resume in (None, 1, 2):
        with RunWriter(tmp_path, resume_step=resume) as writer:
            writer.write((resume or 0) + 1, "train", {"loss": 1})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


@pytest.mark.parametrize("name", ["step", "kind"])
def test_taken_names_are_refused(tmp_path: Path, name: str) -> None:
    with RunWriter(tmp_path) as writer, pytest.raises(ValueError, match=name):
        writer.write(1, "train", {name: 1.0})


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer, pytest.raises(ValueError, match="'test'"):
        writer.write(1, "test", {"loss": 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_a_wrong_image_is_refused_by_name(tmp_path: Path, image: np.ndarray) -> None:
    with RunWriter(tmp_path) as writer, pytest.raises(ValueError, match="'scene'"):
        writer.write_images(1, {"scene": image})


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with open_writer(tmp_path / "run", resume_step=None, is_primary=False) as writer:
        writer.write(1, "train", {"loss": 1})
        writer.write_images(1, {"scene": np.zeros((4, 4, 3), np.uint8)})
    assert isinstance(writer, NullWriter)
    assert os.listdir(tmp_path) == []
    with open_writer(tmp_path / "run", resume_step=None, is_primary=True) as first:
        first.write(1, "train", {"loss": 1})
    assert rows_of(tmp_path / "run") == [(1, "train")]


# Disks and links.


def write_rows(folder: Path) -> None:
    with RunWriter(folder) as writer:
        for step in range(3):
            writer.write(step, "train", {"loss": 1.0})


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard/events.out.tfevents"])
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write = os.write

    def refuse(descriptor: int, data: bytes) -> int:
        if name in os.readlink(f"/proc/self/fd/{descriptor}") and len(data) > 30:
            return write(descriptor, data[:30])  # the disk takes a part
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(OSError, match=r"No space left on device, \d+\.\d MiB free") as error:
        write_rows(tmp_path)
    assert name in error.value.filename
    monkeypatch.undo()
    with RunWriter(tmp_path, resume_step=5) as writer:
        writer.write(6, "train", {"loss": 1.0})
    assert rows_of(tmp_path)[-1] == (6, "train")


@pytest.mark.parametrize("target", ["a file", "a log", "nothing"])
@pytest.mark.parametrize("resume_step", [0, 1])
def test_a_log_that_is_a_link_becomes_a_file(tmp_path: Path, target: str, resume_step: int) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "run"
    folder.mkdir()
    row = '{"step": 1, "kind": "train", "loss": 0.5}\n'
    if target != "nothing":
        precious.write_text(row if target == "a log" else "precious\n")
    (folder / "metrics.jsonl").symlink_to(precious)
    with RunWriter(folder, resume_step=resume_step) as writer:
        writer.write(2, "train", {"loss": 1.0})
    kept = [(1, "train")] if target == "a log" and resume_step else []
    assert rows_of(folder) == [*kept, (2, "train")]
    assert not (folder / "metrics.jsonl").is_symlink()
    if target == "nothing":
        assert not precious.exists()
    else:
        assert precious.read_text() == (row if target == "a log" else "precious\n")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_log_that_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="is no file") as error:
        RunWriter(tmp_path, resume_step=0)
    assert error.value.filename == str(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"step": 1, "kind": "train", "loss": ' + "9" * 5000 + "}",
     '{"step": 1, "kind": "train", "loss": ' + "9" * 400 + "}", "\ud800", "null", "3", "[]",
     '{"step": "1", "kind": "train"}', '{"step": 1, "kind": []}'],
)  # fmt: skip
def test_rows_made_by_hand_are_dropped(tmp_path: Path, line: str) -> None:
    write_rows(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line.encode("utf-8", "surrogatepass") + b"\n")
    assert [step for step, _ in rows_of(tmp_path)] == [0, 1, 2]
