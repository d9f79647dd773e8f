"""What lies on the disk: damage and forgery are found, a death at any moment leaves a good step."""

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.step_folders import DamagedError, StepFolders, read_manifest
from tests.training.tiny import flip_bit_of_largest

ROOT = Path(__file__).parent.parent.parent
STATE = {"params/kernel": np.arange(6, dtype=np.float32), "step": np.int32(3)}


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    with CheckpointStore(folder, keep=keep) as store:
        for step in steps:
            store.save(step, STATE, {"step": step})


# Damage.


def flip_bit(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position // 8] ^= 1 << position % 8
    path.write_bytes(raw)


def damages(folder: Path) -> Iterator[Path]:
    """Each file of a step with a flipped bit here or there, shortened, and gone; then as it was."""
    random = np.random.default_rng(0)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 0)
    assert len(files) >= 5
    for path in files:
        raw = path.read_bytes()
        for position in {0, 8 * len(raw) - 1, *random.integers(0, 8 * len(raw), 3).tolist()}:
            flip_bit(path, position)
            yield path
            path.write_bytes(raw)
        path.write_bytes(raw[:-1])
        yield path
        path.unlink()
        yield path
        path.write_bytes(raw)


def test_damage_to_any_file_is_found_and_the_step_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10, 20)
    newest = tmp_path / "step_00000020"
    for path in damages(newest):
        with pytest.raises(DamagedError, match=path.name):
            read_manifest(newest, all_files=True)
    read_manifest(newest, all_files=True)
    flip_bit_of_largest(newest / "arrays")
    store = CheckpointStore(tmp_path)
    assert store.read_metadata() == {"step": 20}  # which needs no arrays
    assert store.read_metadata(verify=True) == {"step": 10}
    assert store.restore(STATE).metadata == {"step": 10}
    assert "checkpoint step 20 is damaged: arrays/" in caplog.text
    (newest / "manifest.json").unlink()
    (tmp_path / "step_00000010" / "manifest.json").unlink()
    with pytest.raises(CheckpointError) as error:
        store.restore(STATE)
    assert str(error.value) == (
        f"no undamaged checkpoint in {tmp_path}:"
        " step 20: manifest.json is missing; step 10: manifest.json is missing"
    )
    save(tmp_path, 20)  # the run reaches it again
    assert CheckpointStore(tmp_path).restore(STATE).step == 20
    assert CheckpointStore(tmp_path).steps() == (10, 20)


# Manifests made by hand: their own digest is right.


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    del document["sha256"]
    changed = change(document)
    raw = changed if isinstance(changed, bytes) else json.dumps(document).encode()[1:]
    rest = b'", ' + raw
    digest = hashlib.sha256(rest).hexdigest().encode()
    path.write_bytes(b'{"sha256": "' + digest + rest)


def put(part: str, *keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets document[part][key]..; `*` stands for any key."""

    def change(document: dict[str, Any]) -> None:
        inner, names = document, [part, *keys]
        for name in names[:-1]:
            inner = inner[min(inner) if name == "*" else name]
        inner[min(inner) if names[-1] == "*" else names[-1]] = value

    return change


FILE = {"bytes": 3, "sha256": "0" * 64}
FORGED = {
    "no JSON": (lambda _: b"nonsense", "is not what a training writes: JSON is malformed"),
    "step is true": (put("step", value=True), "Expected `int`, got `bool` - at `$.step`"),
    "another step": (put("step", value=7), "its manifest is of step 7"),
    "metadata is a list": (put("metadata", value=[]), "got `array` - at `$.metadata`"),
    "a size is negative": (put("leaves", "step", "shape", value=[-1]), "`int` >= 0"),
    "bytes are huge": (put("files", "*", "bytes", value=10**15), "does not match its size"),
    "outside": (put("files", "../../precious", value=FILE), "does not lie in the step's folder"),
    "a pipe": (put("files", "pipe", value=FILE), "'pipe' is missing"),
    "no such name": (put("files", "a\0b", value=FILE), "is missing"),
    "a name too long": (put("files", "x" * 300, value=FILE), "is missing"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_manifest_made_by_hand_is_called_damaged(
    forgeable: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And the step before it is used; nothing is read outside of the folder."""
    change, reason = FORGED[case]
    newest = forgeable / "step_00000002"
    forge(newest, change)
    os.mkfifo(newest / "pipe")
    assert CheckpointStore(forgeable).restore(STATE).step == 1
    (line,) = caplog.messages
    assert line.startswith("checkpoint step 2 is damaged: ")
    assert reason in line
    assert len(line) < 300


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save(folder / "checkpoints", 1, 2)
    (folder / "precious").write_text("abc")
    return folder


@pytest.fixture
def forgeable(saved: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", saved, tmp_path / "copy"], check=True)
    return tmp_path / "copy" / "checkpoints"


# Death at every change of the disk.

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "open")


class _Death(BaseException):
    """Nothing below catches it, and no change of the disk comes after it."""


class _Countdown:
    """Dies before a change of the disk below a folder; every later one fails too."""

    def __init__(self) -> None:
        self.folder, self.left = "", -1
        sys.addaudithook(self._hook)  # for ever: no hook can be removed

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left < 0 or event not in CHANGES or not self._is_change(event, arguments):
            return
        self.left -= self.left > 0
        if self.left == 0:
            raise _Death

    def _is_change(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
        # What shutil deletes has a name within a folder that is open.
        return event in ("os.remove", "os.rmdir") or self.folder in str(arguments[0])


COUNTDOWN = _Countdown()


def publish(folders: StepFolders, step: int) -> None:
    folders.begin(step)
    (folders.temporary(step) / "file").write_bytes(b"content")
    folders.publish(step, {"step": step, "metadata": {}, "leaves": {}})


def test_death_before_any_change_of_the_disk_leaves_a_good_newest_step(tmp_path: Path) -> None:
    COUNTDOWN.folder = str(tmp_path)
    found = []
    for moment in itertools.count(1):
        folders = StepFolders(tmp_path / str(moment), keep=1)
        try:
            COUNTDOWN.left = moment
            folders.claim()
            publish(folders, 2)
            publish(folders, 3)
            is_over = True
        except _Death:
            is_over = False
        finally:
            COUNTDOWN.left = -1
        choice = StepFolders(folders.directory, keep=1).choose()
        assert choice["skipped"] == []
        found.append(choice["document"].get("step", 0))
        again = StepFolders(folders.directory, keep=1)
        again.claim()
        publish(again, 4)
        assert sorted(os.listdir(folders.directory)) == [".lock", "step_00000004"]
        if is_over:
            break
    assert found == sorted(found)
    assert set(found) == {0, 2, 3}
    assert len(found) > 15


KILLED = """
import sys
import numpy as np
from harmonic_jax.training.checkpoint import CheckpointStore
store = CheckpointStore(__import__("pathlib").Path(sys.argv[1]), keep=int(sys.argv[2]))
start = (store.latest_step() or 0) + 1
for step in range(start, 10**6):
    store.save(step, {f"leaf{i}": np.full((50, 50), step) for i in range(8)}, {"step": step})
    print(step, flush=True)
"""


@pytest.mark.parametrize("times", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_good_newest_step(
    tmp_path: Path, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Some time after the second save of a process has begun, and the first is complete."""
    random, newest = np.random.default_rng(0), 0
    for number in range(times):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(1 + number % 2)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            assert process.stdout.readline()
            time.sleep(random.uniform(0, 0.2))
            process.kill()
        store = CheckpointStore(tmp_path)
        restored = store.restore({f"leaf{i}": np.zeros((50, 50), int) for i in range(8)})
        assert restored.step == restored.metadata["step"] == store.latest_step() > newest
        newest = restored.step
        assert all((leaf == newest).all() for leaf in restored.state.values())
    assert not caplog.messages


# Readers beside a writer.


def test_readers_never_miss_a_step_that_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an evaluation of a run that goes on, and finds a better step every few milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    writer_folders, is_over = StepFolders(tmp_path, keep=1), threading.Event()

    def replace() -> None:
        for step in itertools.count(1):
            publish(writer_folders, step)
            if is_over.is_set():
                return

    writer_folders.claim()
    writer = threading.Thread(target=replace)
    writer.start()
    folders, found = StepFolders(tmp_path, keep=1), []
    try:
        while not folders.steps():
            pass
        while len(found) < 300 or len(set(found)) < 50:
            choice = folders.choose()
            assert choice["skipped"] == []
            found.append(choice["document"]["step"])
    finally:
        is_over.set()
        writer.join()
    assert found == sorted(found)


# Links.


def test_links_and_files_among_the_steps(tmp_path: Path) -> None:
    """An old step on another disk: the link is dropped when its time comes, not what is there."""
    save(tmp_path / "run", 1, keep=1)
    (tmp_path / "run" / "step_00000001").rename(tmp_path / "moved")
    (tmp_path / "run" / "step_00000001").symlink_to(tmp_path / "moved")
    (tmp_path / "run" / "step_00000009").write_text("no step")
    (tmp_path / "run" / ".saving_00000003").symlink_to(tmp_path / "moved")
    (tmp_path / "run" / ".trash_step_00000001").mkdir()
    assert CheckpointStore(tmp_path / "run").restore(STATE).step == 1
    save(tmp_path / "run", 2, keep=1)
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "step_00000002"]
    assert (tmp_path / "moved" / "manifest.json").is_file()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"cannot write to .*run: Too many levels of"):
        CheckpointStore(tmp_path / "run").claim()
    with contextlib.suppress(CheckpointError):
        save(tmp_path / "run", 1)
    assert (tmp_path / "precious").read_text() == "precious"
