"""Folders of checkpoints as people and other programs leave them: names, links, manifests."""

import contextlib
import itertools
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.training import arrays
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.step_folders import StepFolders, read_manifest

STATE = {"params/kernel": np.arange(6, dtype=np.float32), "step": np.int32(3)}


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    with CheckpointStore(folder, keep=keep) as store:
        for step in steps:
            store.save(step, STATE, {"step": step})


# Names.


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a [b]",
            "[0-9]",
            "*",
            "?",
            "**",
            "a b",
            "%20#&",
            "dollar $HOME",
            "quote\"'",
            "line\nend",
        ),
        *("größe 日本 \N{SNOWMAN}", "e\N{COMBINING ACUTE ACCENT}", "x" * 255, "{a}", "~", "-rf"),
    ],
)
def test_any_name_of_a_folder(tmp_path: Path, name: str) -> None:
    """Orbax globs the path as it is, and seals without the arrays that it did not find."""
    save(tmp_path / name, 1, 2)
    restored = CheckpointStore(tmp_path / name).restore(STATE)
    assert restored.step == 2
    np.testing.assert_array_equal(restored.state["params/kernel"], STATE["params/kernel"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("back\\slash", r"has \\ in its name"),
        ("gs:", "has gs:/ in its name"),
        (os.fsdecode(b"\xff"), "is not UTF-8"),
        ("/".join(["x" * 200] * 20), r"has \d+ bytes; checkpoints need a folder with at most"),
    ],
)
def test_a_name_that_orbax_cannot_use_is_refused_at_once(
    tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        CheckpointStore(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_folder_by_a_relative_name_and_behind_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk [1]").mkdir()
    (tmp_path / "link").symlink_to("disk [1]")
    monkeypatch.chdir(tmp_path)
    save(Path("link"), 1)
    monkeypatch.chdir("/")
    assert CheckpointStore(tmp_path / "disk [1]").restore(STATE).step == 1


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"checkpoints: is a link to .*nowhere, which is not"):
        CheckpointStore(tmp_path / "checkpoints").claim()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"run: its .lock is a link; remove it"):
        CheckpointStore(tmp_path / "run").claim()
    assert (tmp_path / "precious").read_text() == "precious"


def test_links_and_files_among_the_steps(tmp_path: Path) -> None:
    """An old step on another disk: the link is dropped when its time comes, not what is there."""
    save(tmp_path / "run", 1, keep=1)
    (tmp_path / "run" / "step_00000001").rename(tmp_path / "moved")
    (tmp_path / "run" / "step_00000001").symlink_to(tmp_path / "moved")
    (tmp_path / "run" / "step_00000009").write_text("no step")
    (tmp_path / "run" / ".saving_00000003").symlink_to(tmp_path / "moved")
    assert CheckpointStore(tmp_path / "run").restore(STATE).step == 1
    save(tmp_path / "run", 2, keep=1)
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "step_00000002"]
    assert (tmp_path / "moved" / "manifest.json").is_file()


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


def save_three(folder: Path) -> None:
    """Steps 2, 2 again and 3, of which one is kept."""
    folders = StepFolders(folder, keep=1)
    folders.claim()
    for step in (2, 2, 3):
        folders.begin(step)
        (folders.temporary(step) / "file").write_bytes(b"content")
        folders.publish(step, {"step": step, "metadata": {}, "leaves": {}})


def test_death_before_any_change_of_the_disk_leaves_a_good_newest_step(tmp_path: Path) -> None:
    COUNTDOWN.folder = str(tmp_path)
    found = []
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        try:
            COUNTDOWN.left = moment
            save_three(folder)
            is_over = True
        except _Death:
            is_over = False
        finally:
            COUNTDOWN.left = -1
        with contextlib.ExitStack() as held:
            choice = StepFolders(folder, keep=1).choose(held)
        assert choice["skipped"] == []
        found.append(choice["document"].get("step", 0))
        folders = StepFolders(folder, keep=1)
        folders.claim()
        folders.begin(4)
        folders.publish(4, {"step": 4, "metadata": {}, "leaves": {}})
        assert sorted(os.listdir(folder)) == [".lock", "step_00000004"]
        if is_over:
            break
    assert found == sorted(found)
    assert set(found) == {0, 2, 3}
    assert len(found) > 20


# What cannot be read is not sealed.


def test_a_step_whose_arrays_were_not_joined_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(arrays._Folder, "glob", lambda *_: iter(()))
    with pytest.raises(CheckpointError, match="no array can be found again"):
        save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == [".lock", "step_00000001"]
    assert caplog.text == ""  # orbax's own words, pages of them


def test_a_leaf_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = arrays.write
    monkeypatch.setattr(
        arrays, "write", lambda folder, leaves: write(folder, {"step": leaves["step"]})
    )
    with pytest.raises(CheckpointError, match=r"leaf 'params/kernel' .* is not in the checkpoint"):
        save(tmp_path, 1)
    assert CheckpointStore(tmp_path).steps() == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, value: float, dtype: str) -> None:
    leaf = np.array([0, value, 1]).astype(arrays.jax.numpy.dtype(dtype))
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"a": np.ones(2), "b": np.ones(3)}, {})
        with pytest.raises(
            CheckpointError, match=r"leaf 'b' is not finite .* step 2, which is not"
        ):
            store.save(2, {"a": np.ones(2), "b": leaf}, {})
        assert store.restore({"a": np.ones(2), "b": np.ones(3)}).step == 1


def test_what_is_not_finite_is_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of an earlier version."""
    with monkeypatch.context() as patch, CheckpointStore(tmp_path) as store:
        patch.setattr(arrays, "first_not_finite", lambda _: None)
        store.save(1, {"a": np.array([np.nan])}, {})
    with pytest.raises(CheckpointError, match=r"leaf 'a' is not finite .*step_00000001"):
        CheckpointStore(tmp_path).restore({"a": np.ones(1)})


# Readers beside a writer.


def test_readers_never_miss_a_step_that_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an evaluation of a run that goes on, and finds a better step every few milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    writer_folders, is_over = StepFolders(tmp_path, keep=1), threading.Event()

    def replace() -> None:
        for step in itertools.count(1):
            writer_folders.begin(step)
            for number in range(4):
                (writer_folders.temporary(step) / str(number)).write_bytes(b"0" * 1000)
            writer_folders.publish(step, {"step": step, "metadata": {}, "leaves": {}})
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
            with contextlib.ExitStack() as held:
                choice = folders.choose(held)
                assert choice["folder"] is not None
                assert choice["skipped"] == []
                folder = tmp_path / choice["folder"]
                assert read_manifest(folder, all_files=True) == choice["document"]
                found.append(choice["document"]["step"])
    finally:
        is_over.set()
        writer.join()
    assert found == sorted(found)


def test_a_step_that_is_read_stays_until_it_has_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)
    read = arrays.read

    def read_late(folder: Path, leaves: Any) -> Any:
        save(tmp_path, 2, keep=1)
        assert CheckpointStore(tmp_path).steps() == (1, 2)
        return read(folder, leaves)

    monkeypatch.setattr(arrays, "read", read_late)
    restored = CheckpointStore(tmp_path).restore(STATE)
    assert (restored.step, restored.skipped) == (1, ())
    save(tmp_path, 3, keep=1)
    assert CheckpointStore(tmp_path).steps() == (3,)
