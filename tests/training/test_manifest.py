"""What is wrong with a step is found: decay, kills, manifests made by hand."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.step_folders import DamagedError, read_manifest
from tests.training.test_checkpoint import (
    ROOT,
    abstract,
    assert_same_bits,
    flip_bit,
    make_state,
    save_all,
)
from tests.training.test_step_folders import STATE, save


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
    save_all(tmp_path, (10, 20))
    newest = tmp_path / "step_00000020"
    for path in damages(newest):
        with pytest.raises(DamagedError, match=path.name):
            read_manifest(newest, all_files=True)
    read_manifest(newest, all_files=True)
    largest = max(filter(Path.is_file, newest.rglob("*")), key=lambda path: path.stat().st_size)
    flip_bit(largest, 999)
    with caplog.at_level(logging.WARNING):
        restored = CheckpointStore(tmp_path).restore(abstract(make_state()))
    assert restored.step == 10
    assert_same_bits(restored.state, make_state(10))
    ((step, reason),) = restored.skipped
    assert step == 20
    assert largest.name in reason
    assert f"checkpoint step 20 is damaged: {reason}" in caplog.text


# Kills.

KILLED = """
import os, sys
import jax.numpy as jnp
from harmonic_jax.training.arrays import named_leaves
from harmonic_jax.training.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1], keep=int(sys.argv[2]))
start = (store.latest_step() or 0) + 1
for step in range(start, 10**6):
    state = {f"leaf{i}": jnp.full((50, 50), float(step)) for i in range(8)} | {"n": jnp.int32(step)}
    store.save(step, state, {"step": step})
    print(step, flush=True)
"""


def kill_while_saving(folder: Path, seconds: float, *, keep: int) -> None:
    """Lets a process save for a random time after its first save, then kills it."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(keep)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        # The second line: the first step of this process is complete.
        assert process.stdout.readline()
        assert process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        process.stdout.read()


def check_after_kill(folder: Path) -> int:
    """The newest step listed restores, undamaged, and is what was saved."""
    store = CheckpointStore(folder)
    wanted = {f"leaf{i}": jax.ShapeDtypeStruct((50, 50), jnp.float32) for i in range(8)}
    wanted["n"] = jax.ShapeDtypeStruct((), jnp.int32)
    restored = store.restore(wanted)
    step = restored.step
    assert (restored.skipped, step) == ((), store.latest_step())
    assert restored.metadata == {"step": step}
    assert int(restored.state["n"]) == step
    for i in range(8):
        np.testing.assert_array_equal(restored.state[f"leaf{i}"], np.full((50, 50), step))
    return step


@pytest.mark.parametrize("times", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_good_newest_step(tmp_path: Path, times: int) -> None:
    """test_step_folders.py dies before every change of the disk."""
    random = np.random.default_rng(0)
    newest = 0
    for number in range(times):
        kill_while_saving(tmp_path, random.uniform(0, 0.2), keep=1 + number % 2)
        step = check_after_kill(tmp_path)
        assert step > newest
        newest = step


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
    "deep": (lambda _: b'"x": ' + b"[" * 100_000, "is not what a training writes"),
    "step is text": (put("step", value="2"), "Expected `int`, got `str` - at `$.step`"),
    "step is true": (put("step", value=True), "Expected `int`, got `bool` - at `$.step`"),
    "another step": (put("step", value=7), "its manifest is of step 7"),
    "metadata is a list": (put("metadata", value=[]), "got `array` - at `$.metadata`"),
    "a leaf is a list": (put("leaves", "step", value=[]), "got `array` - at `$.leaves[...]`"),
    "a size is negative": (put("leaves", "step", "shape", value=[-1]), "`int` >= 0"),
    "a file is null": (put("files", "*", value=None), "got `null` - at `$.files[...]`"),
    "bytes are huge": (put("files", "*", "bytes", value=10**15), f"bytes instead of {10**15}"),
    "a digest is null": (put("files", "*", "sha256", value=None), "`$.files[...].sha256`"),
    "outside": (put("files", "../../precious", value=FILE), "does not lie in the step's folder"),
    "absolute": (put("files", "/etc/passwd", value=FILE), "does not lie in the step's folder"),
    "the folder": (put("files", ".", value=FILE), "does not lie in the step's folder"),
    "a folder": (put("files", "arrays", value=FILE), "arrays is not a file"),
    "a pipe": (put("files", "pipe", value=FILE), "pipe is not a file"),
    "no such file": (put("files", "a/b", value=FILE), "'a/b': No such file"),
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
