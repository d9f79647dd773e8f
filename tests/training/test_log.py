"""Metrics on the disk: valid JSON always, no row twice, a kill costs the torn line only; read a
step late, stopped by a loss that is not finite, and honest about waiting."""

import errno
import io
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from harmonic_jax.terminal import Terminal, track
from harmonic_jax.training.log import (
    MetricsWriter,
    NonFiniteLossError,
    TrainLog,
    TrainProgress,
    read_metrics,
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console_of(*, terminal: bool, quiet: bool = False) -> tuple[Terminal, io.StringIO]:
    output = io.StringIO()
    return Terminal(file=output, force_terminal=terminal, width=150, quiet=quiet), output


def write(folder: Path, *steps: int, start_step: int = 0) -> None:
    with MetricsWriter(folder, start_step=start_step) as writer:
        for step in steps:
            writer.write(step, "train", {"loss": step})


GOOD = {"loss": 1.0, "grad_norm": 1.0}


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


# The files.


def test_rows_come_back_as_plain_floats_and_valid_json(tmp_path: Path) -> None:
    values = {"loss": np.float32(0.1), "lr": jnp.asarray(0.5), "n": 3, "inf": math.inf}
    with MetricsWriter(tmp_path, start_step=0) as writer:
        writer.write(1, "train", values)
        writer.write(2, "eval", {"AP": 0.25, "nan": math.nan, "min": -math.inf})
        # Every line is with the system at once: a kill here would cost none.
        first, second = read_metrics(tmp_path / "metrics.jsonl")
    plain = {"loss": float(np.float32(0.1)), "lr": 0.5, "n": 3.0, "inf": math.inf}
    assert first == {"step": 1, "kind": "train", **plain}
    assert math.isnan(second.pop("nan"))
    assert second == {"step": 2, "kind": "eval", "AP": 0.25, "min": -math.inf}

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize(("start", "kept"), [(20, [10, 20]), (0, [])])
def test_going_on_drops_the_rows_that_will_be_written_again(
    tmp_path: Path, start: int, kept: list[int]
) -> None:
    write(tmp_path, 10, 20, 30, 40)
    write(tmp_path, 30, start_step=start)
    assert [step for step, _ in rows_of(tmp_path)] == [*kept, 30]
    purges = [e.step for e in events_of(tmp_path) if e.HasField("session_log")]
    assert purges == [1, start + 1]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # within a second


@pytest.mark.parametrize(
    "line",
    [b'{"step": 2, "kind": "tr', b'{"step": 2}', b"\0\0\0\0", b"7", b"null", b"[" * 100_000,
     b'{"step": 1, "kind": "train", "loss": ' + b"9" * 5000 + b"}", b"\xed\xa0\x80",
     b'{"step": "1", "kind": "train"}', b'{"step": 1, "kind": []}'],
)  # fmt: skip
def test_what_is_no_row_is_dropped_and_counted(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + line)
    with caplog.at_level(logging.WARNING):
        assert rows_of(tmp_path) == [(1, "train")]
    assert "dropped 1 line" in caplog.text
    caplog.clear()
    write(tmp_path, 2, start_step=1)
    assert rows_of(tmp_path) == [(1, "train"), (2, "train")]
    assert not caplog.text


def test_tensorboard_gets_scalars_and_images(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, start_step=6) as writer:
        writer.write(7, "train", {"loss": 0.5, "bad": math.nan})
        writer.write(7, "eval", {"AP": 0.25})
        writer.write_image(7, "scene", np.zeros((4, 6, 3), np.uint8))
    values = [(event.step, value) for event in events_of(tmp_path) for value in event.summary.value]
    scalars = {
        (step, value.tag): value.simple_value
        for step, value in values
        if value.WhichOneof("value") == "simple_value"
    }
    assert scalars == {(7, "train/loss"): 0.5, (7, "eval/AP"): 0.25}
    (picture,) = [value.image for _, value in values if value.WhichOneof("value") == "image"]
    assert (picture.height, picture.width, picture.colorspace) == (4, 6, 3)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "run", start_step=0, enabled=False) as writer:
        writer.write(1, "train", {"loss": 1})
        writer.write_image(1, "scene", np.zeros((4, 4, 3), np.uint8))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard/events.out.tfevents"])
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    system_write = os.write

    def refuse(descriptor: int, data: bytes) -> int:
        if name not in os.readlink(f"/proc/self/fd/{descriptor}"):
            return system_write(descriptor, data)
        if len(data) > 30:
            return system_write(descriptor, data[:30])  # the disk takes a part
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(OSError, match=r"No space left on device, \d+\.\d MiB free") as error:
        write(tmp_path, 1, 2, 3)
    assert name in error.value.filename
    monkeypatch.undo()
    write(tmp_path, 6, start_step=5)
    assert rows_of(tmp_path)[-1] == (6, "train")


@pytest.mark.parametrize("target", ["a log", "nothing"])
def test_a_log_that_is_a_link_becomes_a_file(tmp_path: Path, target: str) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "run"
    folder.mkdir()
    row = '{"step": 1, "kind": "train", "loss": 0.5}\n'
    if target == "a log":
        precious.write_text(row)
    (folder / "metrics.jsonl").symlink_to(precious)
    write(folder, 2, start_step=1)
    assert [step for step, _ in rows_of(folder)] == ([1, 2] if target == "a log" else [2])
    assert not (folder / "metrics.jsonl").is_symlink()
    assert precious.exists() == (target == "a log")
    assert not precious.exists() or precious.read_text() == row


# From the device to the files.


class OnDevice:
    """A scalar that notes when the host asks for it."""

    def __init__(self, value: float, asked: list[float]) -> None:
        self.value, self.asked = value, asked

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self.asked.append(self.value)
        return np.asarray(self.value, np.float32)


@pytest.fixture
def make_log(tmp_path: Path):
    clock = Clock()
    console, _ = console_of(terminal=False)
    progress = TrainProgress(100, images_per_step=2, console=console, clock=clock)
    with MetricsWriter(tmp_path, start_step=0) as writer:
        yield lambda every: TrainLog(every, writer, progress, last_step=5, clock=clock)


def test_the_step_just_dispatched_is_never_waited_for(make_log) -> None:
    log, asked = make_log(2), []
    for step in range(1, 6):
        log.add(step, {"loss": OnDevice(step, asked), "grad_norm": 0.0})
        assert asked == list(range(1, step))
    log.flush()
    assert asked == [1, 2, 3, 4, 5]


def test_the_steps_behind_the_last_full_row_have_one_too(make_log, tmp_path: Path) -> None:
    log = make_log(3)
    for step in range(1, 6):
        log.add(step, {"loss": float(step), "grad_norm": 1.0})
    log.flush()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(3, 2.0), (5, 4.5)]


@pytest.mark.parametrize(("name", "value"), [("loss", math.nan), ("grad_norm", math.inf)])
@pytest.mark.parametrize("look", [lambda log: log.flush(), lambda log: log.add(3, GOOD)])
def test_a_loss_that_is_not_finite_is_seen_before_anything_is_saved(
    make_log, name: str, value: float, look: Callable[[TrainLog], None]
) -> None:
    """The loop flushes before it evaluates or saves; the next step sees it too."""
    log = make_log(1)
    log.add(1, GOOD)
    log.add(2, GOOD | {name: value})
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 2: .*loss"):
        look(log)


def test_data_wait_is_the_share_of_the_steps_since_the_last_row(make_log, tmp_path: Path) -> None:
    log = make_log(2)
    clock, shown = log._clock, log._progress._console.file
    for step, (wait, work) in enumerate([(6, 2), (1, 1), (0, 8), (1, 1)], start=1):
        with log.waiting_for_data():
            clock.now += wait
        clock.now += work
        log.add(step, {"loss": float(step), "grad_norm": 1.0})
        clock.now += 1000.0  # an evaluation, a checkpoint
    log.flush()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 1.5), (4, 3.5)]
    assert [row["data_wait"] for row in rows] == pytest.approx([0.7, 0.1])
    assert "data wait 70.0%" in shown.getvalue()


# The display: right numbers, no control characters in files.


def test_compilation_and_pauses_are_not_part_of_the_rate() -> None:
    clock = Clock()
    console, output = console_of(terminal=False)
    with TrainProgress(100, images_per_step=8, console=console, clock=clock) as progress:
        clock.now = 500.0  # the first step, compilation included
        for step in (1, 2, 3):
            progress.update(step)
            clock.now += 2.0
        with progress.paused():
            clock.now += 1000.0
        progress.update(4)
        clock.now += 40.0
        progress.update(5)
    lines = output.getvalue().splitlines()
    assert lines[0] == "step 1/100 (1.0%)  "
    assert "step 4/100 (4.0%)  4.0 img/s  eta 0:03:12" in lines  # that of before the pause
    assert "step 5/100 (5.0%)  0.2 img/s  eta 1:03:20" in lines


def test_plain_lines_come_at_intervals_and_without_control_characters() -> None:
    clock = Clock()
    console, output = console_of(terminal=False)
    with TrainProgress(1000, images_per_step=4, console=console, clock=clock) as progress:
        for step in range(1, 101):
            progress.update(step, {"loss": 1.5, "learning_rate": 0.01})
            if step == 50:
                progress.update(step, {"AP": 0.25})
            clock.now += 1.0
        progress.message("[saved] a checkpoint")
    lines = output.getvalue().splitlines()
    assert "\x1b" not in output.getvalue()
    assert "\r" not in output.getvalue()
    assert [line.split()[1] for line in lines if line.startswith("step")] == [
        "1/1000", "31/1000", "61/1000", "91/1000", "100/1000",
    ]  # fmt: skip
    assert lines[0] == "step 1/1000 (0.1%)  loss 1.5  lr 1.00e-02"
    assert lines[2] == (
        "step 61/1000 (6.1%)  4.0 img/s  eta 0:15:39  loss 1.5  lr 1.00e-02  AP 0.25"
    )
    assert "[saved] a checkpoint" in lines


def test_a_terminal_gets_a_bar() -> None:
    clock = Clock()
    console, output = console_of(terminal=True)
    with TrainProgress(10, images_per_step=4, console=console, clock=clock) as progress:
        for step in range(1, 11):
            progress.update(step, {"loss": 0.5})
            clock.now += 1.0
        progress.message("[saved] a checkpoint")
        assert list(progress.track(iter("abc"), 3, "eval")) == ["a", "b", "c"]
    text = output.getvalue()
    for part in ("━", "10/10", "4.0 img/s", "loss 0.5", "[saved] a checkpoint"):
        assert part in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_quiet_one_prints_nothing(terminal: bool) -> None:
    console, output = console_of(terminal=terminal, quiet=True)
    with TrainProgress(3, images_per_step=1, console=console) as progress:
        progress.update(1, {"loss": 1.0})
        progress.message("text")
        assert list(progress.track(range(2), 2, "eval")) == [0, 1]
    assert list(track(range(2), 2, "eval", console=console)) == [0, 1]
    assert output.getvalue() == ""


def test_plain_track_tells_now_and_then() -> None:
    clock = Clock()
    console, output = console_of(terminal=False)
    for _ in track(range(100), 100, "eval", console=console, clock=clock):
        clock.now += 1.0
    assert output.getvalue().splitlines() == [
        "eval 30/100", "eval 60/100", "eval 90/100", "eval done",
    ]  # fmt: skip
