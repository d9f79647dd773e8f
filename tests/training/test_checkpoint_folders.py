"""Folders of checkpoints as people and other programs leave them: names, links, manifests."""

import contextlib
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.training import arrays
from harmonic_jax.training import step_folders as manifest
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.step_folders import StepFolders

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


def without(part: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(part) and None


FILE = {"bytes": 3, "sha256": "0" * 64}
FORGED = {
    "no JSON": (lambda _: b"nonsense", "is not what a training writes: JSON is malformed"),
    "not UTF-8": (lambda _: b'"x": "\xff"}', "missing required field `step`"),
    "deep": (lambda _: b'"x": ' + b"[" * 100_000, "is not what a training writes"),
    "step is text": (put("step", value="2"), "Expected `int`, got `str` - at `$.step`"),
    "step is true": (put("step", value=True), "Expected `int`, got `bool` - at `$.step`"),
    "another step": (put("step", value=7), "its manifest is of step 7"),
    "no leaves": (without("leaves"), "missing required field `leaves`"),
    "metadata is a list": (put("metadata", value=[]), "got `array` - at `$.metadata`"),
    "a leaf is a list": (put("leaves", "step", value=[]), "got `array` - at `$.leaves[...]`"),
    "a size is negative": (put("leaves", "step", "shape", value=[-1]), "`int` >= 0"),
    "a dtype is null": (put("leaves", "step", "dtype", value=None), "`$.leaves[...].dtype`"),
    "a file is null": (put("files", "*", value=None), "got `null` - at `$.files[...]`"),
    "bytes are huge": (put("files", "*", "bytes", value=10**15), f"bytes instead of {10**15}"),
    "a digest is null": (put("files", "*", "sha256", value=None), "`$.files[...].sha256`"),
    "outside": (put("files", "../../precious", value=FILE), "does not lie in the step's folder"),
    "outside, later": (put("files", "arrays/../../x", value=FILE), "does not lie in the step"),
    "absolute": (put("files", "/etc/passwd", value=FILE), "does not lie in the step's folder"),
    "the folder": (put("files", ".", value=FILE), "does not lie in the step's folder"),
    "a folder": (put("files", "arrays", value=FILE), "arrays is not a file"),
    "a pipe": (put("files", "pipe", value=FILE), "pipe is not a file"),
    "no such file": (put("files", "a/b", value=FILE), "a/b: No such file"),
    "no such name": (put("files", "a\0b", value=FILE), "null byte"),
    "half a letter": (put("files", "\ud800", value=FILE), "is not what a training writes"),
    "a name too long": (put("files", "x" * 300, value=FILE), "File name too long"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_manifest_made_by_hand_is_called_damaged(forgeable: Path, case: str) -> None:
    """And the step before it is used; nothing is read outside of the folder."""
    change, reason = FORGED[case]
    newest = forgeable / "step_00000002"
    forge(newest, change)
    os.mkfifo(newest / "pipe")
    restored = CheckpointStore(forgeable).restore(STATE)
    assert restored.step == 1
    ((step, said),) = restored.skipped
    assert step == 2
    assert reason in said
    assert len(said) < 300


@pytest.fixture
def forgeable(tmp_path: Path) -> Path:
    save(tmp_path / "checkpoints", 1, 2)
    (tmp_path / "precious").write_text("abc")
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("leaves", "step", "dtype", value="int64"), "leaf 'step' has dtype int64 in"),
        (put("leaves", "params/kernel", "shape", value=[7]), r"has shape \[7\] in"),
        (put("leaves", "more", value={"shape": [2], "dtype": "int8"}), "leaf 'more' of"),
    ],
)
def test_leaves_that_the_arrays_do_not_have(forgeable: Path, change: Any, reason: str) -> None:
    forge(forgeable / "step_00000002", change)
    with pytest.raises(CheckpointError, match=reason):
        CheckpointStore(forgeable).restore(STATE)


def test_a_forged_leaf_that_the_state_has(forgeable: Path) -> None:
    """Orbax would cast what lies there."""
    for name, value in (("dtype", "float32"), ("shape", [2])):
        forge(forgeable / "step_00000002", put("leaves", "step", name, value=value))
    wanted = STATE | {"step": np.zeros(2, np.float32)}
    with pytest.raises(CheckpointError, match="not all arrays can be found again: leaf 'step'"):
        CheckpointStore(forgeable).restore(wanted)


@pytest.mark.parametrize("kind", ["folder", "pipe", "huge"])
def test_what_is_no_manifest(forgeable: Path, kind: str) -> None:
    path = forgeable / "step_00000002" / "manifest.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 2**40)
    ((_, reason),) = CheckpointStore(forgeable).restore(STATE).skipped
    assert reason.startswith("manifest.json ")


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
                choice = folders.choose(None, held)
                assert choice["folder"] is not None
                assert choice["skipped"] == []
                assert manifest.verify(tmp_path / choice["folder"]) == choice["document"]
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
