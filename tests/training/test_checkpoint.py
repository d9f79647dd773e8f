"""Checkpoints: exact round trips, decay, refusals, full disks, kills, several processes."""

import dataclasses
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore

ROOT = Path(__file__).parent.parent.parent
METADATA = {"config": {"name": "test"}, "best": {"AP": 0.25}, "position": [1, 2]}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """Everything a training state may hold at once."""

    params: Any
    opt_state: Any
    batch_stats: Any
    step: Any


def make_state(seed: int = 0) -> State:
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 4, 8)), "bias": jnp.zeros(8)},
        "head/0": [jax.random.normal(keys[1], (5,), jnp.bfloat16), jnp.float32(-0.0)],
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype="bfloat16"))
    return State(
        params=params,
        opt_state=optimizer.init(params),
        batch_stats={"mean": np.arange(6, dtype=np.float64), "seen": np.array([True, False])},
        step=jnp.int32(seed),
    )


def abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf
        ),
        tree,
    )


def assert_same_bits(first: Any, second: Any) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for path, (a, b) in zip(
        jax.tree_util.tree_leaves_with_path(first),
        zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True),
        strict=True,
    ):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def save_all(folder: Path, steps: tuple[int, ...], *, keep: int = 2) -> None:
    with CheckpointStore(folder, keep=keep) as store:
        for step in steps:
            store.save(step, make_state(step), METADATA | {"step": step})


def flip_bit(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position // 8] ^= 1 << position % 8
    path.write_bytes(raw)


def non_empty_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 0)


# Round trips.


def test_a_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    state = make_state(3)
    with CheckpointStore(tmp_path / "new" / "folder") as store:
        store.save(3, state, METADATA)
        restored = store.restore(abstract(state))
    assert_same_bits(restored.state, state)
    assert restored.step == 3
    assert restored.metadata == METADATA
    assert restored.skipped == ()
    assert isinstance(restored.state.batch_stats["mean"], np.ndarray)
    assert isinstance(restored.state.step, jax.Array)


def test_a_flax_state_comes_back(tmp_path: Path) -> None:
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    _, params = nnx.split(model, nnx.Param)
    state = {"params": params, "opt": optax.sgd(0.1, momentum=0.9).init(params)}
    with CheckpointStore(tmp_path) as store:
        store.save(0, state, {})
        restored = store.restore(jax.eval_shape(lambda: state))
    assert_same_bits(restored.state, state)


def test_arrays_without_elements_come_back(tmp_path: Path) -> None:
    state = {"device": jnp.zeros((0, 3)), "host": np.zeros((2, 0), np.int8), "one": jnp.ones(1)}
    with CheckpointStore(tmp_path) as store:
        store.save(0, state, {})
        restored = store.restore(abstract(state))
    assert_same_bits(restored.state, state)


def test_the_state_may_be_donated_or_changed_at_once(tmp_path: Path) -> None:
    """The save goes on in the background; it must not see what the next step writes."""

    def fresh() -> dict[str, Any]:
        return {f"leaf{i}": jnp.full((300, 400), float(i)) for i in range(20)}

    def step(state: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda leaf: leaf * 0 - 1, state)

    donating = jax.jit(step, donate_argnums=0)
    jax.block_until_ready(donating(fresh()))
    with CheckpointStore(tmp_path, keep=5) as store:
        for number in range(5):
            state = fresh()
            host = np.zeros(1_000_000)
            store.save(number, {"device": state, "host": host}, {})
            host += 1
            for _ in range(3):
                state = donating(state)
            jax.block_until_ready(state)
        for number in range(5):
            wanted = {"device": fresh(), "host": np.zeros(1_000_000)}
            assert_same_bits(store.restore(abstract(wanted), step=number).state, wanted)


def test_orbax_alone_reads_the_arrays(tmp_path: Path) -> None:
    """Nobody is locked in: the arrays are an ordinary orbax checkpoint."""
    from orbax.checkpoint import v1 as ocp

    save_all(tmp_path, (1,))
    stored = ocp.load(
        tmp_path / "step_00000001" / "arrays",
        {"params/conv/bias": np.empty(8, np.float32)} | _everything_else(make_state(1)),
    )
    np.testing.assert_array_equal(stored["params/conv/bias"], np.zeros(8))


def _everything_else(state: State) -> dict[str, Any]:
    from harmonic_jax.training.arrays import named_leaves

    leaves = named_leaves(state)
    del leaves["params/conv/bias"]
    return {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}


# What is kept.


def test_the_newest_steps_stay(tmp_path: Path) -> None:
    save_all(tmp_path, (10, 20, 30, 40), keep=3)
    store = CheckpointStore(tmp_path)
    assert store.steps() == (20, 30, 40)
    assert store.latest_step() == 40
    assert store.restore(abstract(make_state()), step=20).metadata["step"] == 20
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 10 .* \[20, 30, 40\]"):
        store.restore(abstract(make_state()), step=10)


def test_nothing_else_is_left_on_the_disk(tmp_path: Path) -> None:
    save_all(tmp_path, (10, 20, 30), keep=1)
    assert sorted(os.listdir(tmp_path)) == [".lock", "step_00000030"]


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep=1) as store:
        for seed in (1, 2, 3):
            store.save(10, make_state(seed), {"seed": seed})
        restored = store.restore(abstract(make_state()))
    assert store.steps() == (10,)
    assert restored.metadata == {"seed": 3}
    assert_same_bits(restored.state, make_state(3))


def test_going_back_drops_the_course_that_was_given_up(tmp_path: Path) -> None:
    save_all(tmp_path, (10, 20, 30), keep=3)
    save_all(tmp_path, (15,), keep=3)
    assert CheckpointStore(tmp_path).steps() == (10, 15)


def test_an_empty_store(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "nothing")
    assert store.latest_step() is None
    assert store.steps() == ()
    for read in (lambda: store.restore(abstract(make_state())), store.read_metadata):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .*nothing$"):
            read()
    assert not (tmp_path / "nothing").exists()


def test_metadata_needs_no_arrays(tmp_path: Path) -> None:
    save_all(tmp_path, (1, 2))
    store = CheckpointStore(tmp_path)
    assert store.read_metadata() == METADATA | {"step": 2}
    assert store.read_metadata(1) == METADATA | {"step": 1}
    flip_bit(tmp_path / "step_00000002" / "manifest.json", 900)
    assert store.read_metadata() == METADATA | {"step": 1}


def test_readers_disturb_no_writer_and_writers_no_other(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(1, make_state(), {})
        store.wait()
        unfinished = tmp_path / ".saving_00000002"
        unfinished.mkdir()
        code = (
            "import sys\n"
            "from harmonic_jax.training.checkpoint import *\n"
            "store = CheckpointStore(sys.argv[1])\n"
            "print(store.latest_step(), store.read_metadata())\n"
            "try: store.claim()\n"
            "except CheckpointError as error: print(error)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert unfinished.exists()
    assert result.stdout.splitlines() == [
        "1 {}",
        f"cannot write to {tmp_path}: another process is writing there",
    ]


# Decay.


def test_one_flipped_bit_in_any_file_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_all(tmp_path, (10, 20))
    store = CheckpointStore(tmp_path)
    newest = tmp_path / "step_00000020"
    random = np.random.default_rng(0)
    files = non_empty_files(newest)
    assert len(files) >= 5
    for path in files:
        raw = path.read_bytes()
        for position in {0, 8 * len(raw) - 1, *random.integers(0, 8 * len(raw), 3).tolist()}:
            caplog.clear()
            flip_bit(path, position)
            with caplog.at_level(logging.WARNING):
                restored = store.restore(abstract(make_state()))
            assert restored.step == 10, (path, position)
            ((step, reason),) = restored.skipped
            assert step == 20
            assert path.relative_to(newest).as_posix() in reason
            assert f"checkpoint step 20 is damaged: {reason}" in caplog.text
            path.write_bytes(raw)
    assert_same_bits(restored.state, make_state(10))
    assert store.restore(abstract(make_state())).step == 20


def test_missing_and_shortened_files_are_found(tmp_path: Path) -> None:
    save_all(tmp_path, (10, 20))
    store = CheckpointStore(tmp_path)
    for path in non_empty_files(tmp_path / "step_00000020"):
        raw = path.read_bytes()
        for damage in (path.unlink, lambda: path.write_bytes(raw[:-1])):  # noqa: B023
            damage()
            restored = store.restore(abstract(make_state()))
            assert restored.step == 10
            assert path.name in restored.skipped[0][1]
        path.write_bytes(raw)
    assert store.restore(abstract(make_state())).step == 20


def test_a_store_without_a_good_step_says_what_is_wrong(tmp_path: Path) -> None:
    save_all(tmp_path, (10, 20))
    for step in (10, 20):
        (tmp_path / f"step_{step:08d}" / "manifest.json").unlink()
    with pytest.raises(CheckpointError) as error:
        CheckpointStore(tmp_path).restore(abstract(make_state()))
    assert str(error.value) == (
        f"no undamaged checkpoint in {tmp_path}:"
        " step 20: manifest.json: No such file or directory;"
        " step 10: manifest.json: No such file or directory"
    )


def test_a_given_step_is_not_replaced_by_another(tmp_path: Path) -> None:
    save_all(tmp_path, (10, 20))
    (tmp_path / "step_00000020" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no undamaged checkpoint of step 20"):
        CheckpointStore(tmp_path).restore(abstract(make_state()), step=20)


def test_a_damaged_step_is_replaced_when_the_run_reaches_it_again(tmp_path: Path) -> None:
    save_all(tmp_path, (10, 20))
    (tmp_path / "step_00000020" / "manifest.json").unlink()
    save_all(tmp_path, (20,))
    restored = CheckpointStore(tmp_path).restore(abstract(make_state()))
    assert (restored.step, restored.skipped) == (20, ())
    assert CheckpointStore(tmp_path).steps() == (10, 20)


# States that do not fit.


def _with(state: State, **params: Any) -> State:
    return dataclasses.replace(state, params={**state.params, **params})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda s: _with(s, conv={**s.params["conv"], "bias": jnp.zeros(8, jnp.bfloat16)}),
            "leaf 'params/conv/bias' has dtype float32 in the checkpoint and bfloat16 in the state",
        ),
        (
            lambda s: _with(s, conv={**s.params["conv"], "bias": jnp.zeros((8, 1))}),
            "leaf 'params/conv/bias' has shape [8] in the checkpoint and [8, 1] in the state",
        ),
        (
            lambda s: _with(s, new=jnp.zeros(1)),
            "leaf 'params/new' of the state is not in the checkpoint",
        ),
        (
            lambda s: _with(s, conv={"kernel": s.params["conv"]["kernel"]}),
            "leaf 'params/conv/bias' of the checkpoint is not in the state",
        ),
        (
            lambda s: dataclasses.replace(s, step=jnp.float32(0)),
            "leaf 'step' has dtype int32 in the checkpoint and float32 in the state",
        ),
    ],
)
def test_another_state_is_refused_by_its_first_leaf(tmp_path: Path, change: Any, line: str) -> None:
    save_all(tmp_path, (1,))
    with pytest.raises(CheckpointError) as error:
        CheckpointStore(tmp_path).restore(abstract(change(make_state())))
    assert str(error.value) == f"{tmp_path / 'step_00000001'} does not fit: {line}"


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"a": 1.5}, "leaf 'a' is a float; it must be an array"),
        ({"rng": jax.random.key(0)}, r"leaf 'rng' is key<fry>; store jax\.random\.key_data"),
        ({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, "two leaves are called 'a/b'"),
        ({}, "no leaf with elements"),
        ({"a": jnp.zeros(0)}, "no leaf with elements"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(tmp_path: Path, state: Any, line: str) -> None:
    with CheckpointStore(tmp_path) as store, pytest.raises(CheckpointError, match=line):
        store.save(1, state, {})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, np.float32(1)])
def test_metadata_must_be_json(tmp_path: Path, value: Any) -> None:
    with CheckpointStore(tmp_path) as store, pytest.raises(CheckpointError, match="JSON"):
        store.save(1, make_state(), {"value": value})


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointStore(tmp_path, keep=0)
    with pytest.raises(CheckpointError, match=r"bucket.* is a URL"):
        CheckpointStore("gs://bucket/run")


# Disks that refuse.


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = CheckpointStore(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError) as error:
        store.claim()
    assert str(error.value) == f"cannot write to {tmp_path}/file/checkpoints: Not a directory"


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 64 KiB: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_costs_one_line_and_no_older_step(tmp_path: Path) -> None:
    small = {"leaf": jnp.ones(10)}
    large = {"leaf": jax.random.normal(jax.random.key(0), (100_000,))}
    with CheckpointStore(tmp_path) as store:
        store.save(1, small, {})
        store.wait()
        store.save(2, large, {})
        with pytest.raises(CheckpointError) as error:
            store.wait()
        message = str(error.value)
        assert message.startswith(f"cannot write checkpoint step 2 to {tmp_path}: ")
        assert "\n" not in message
        assert store.steps() == (1,)
        store.save(2, small, {})
        assert store.restore(abstract(small)).step == 2


def test_a_failed_save_is_reported_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store = CheckpointStore(tmp_path)
    store.save(1, make_state(), {})
    store.wait()
    monkeypatch.setattr("harmonic_jax.training.step_folders.seal", refuse)
    store.save(2, make_state(), {})
    with pytest.raises(CheckpointError, match=r"step 2 to .*: No space left on device"):
        store.save(3, make_state(), {})
    monkeypatch.undo()
    store.save(3, make_state(), {})
    store.close()
    assert store.steps() == (1, 3)


# Kills.

KILLED = """
import os, sys
import jax.numpy as jnp
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
    for step in store.steps():
        restored = store.restore(wanted, step=step)
        assert restored.metadata == {"step": step}
        assert int(restored.state["n"]) == step
        for i in range(8):
            np.testing.assert_array_equal(restored.state[f"leaf{i}"], np.full((50, 50), step))
    restored = store.restore(wanted)
    assert restored.skipped == ()
    assert restored.step == store.latest_step()
    return restored.step


def check_kills(folder: Path, times: int) -> None:
    random = np.random.default_rng(0)
    newest = 0
    for number in range(times):
        kill_while_saving(folder, random.uniform(0, 0.2), keep=1 + number % 2)
        step = check_after_kill(folder)
        assert step > newest
        newest = step


def test_a_kill_at_any_moment_leaves_a_good_newest_step(tmp_path: Path) -> None:
    check_kills(tmp_path, 3)


@pytest.mark.slow
def test_thirty_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, 30)


CRASH = """
import os, signal, sys
import jax.numpy as jnp
from harmonic_jax.training.checkpoint import CheckpointStore
folder, moment = sys.argv[1], sys.argv[2]
count, deleting = 0, False
def reached(event, arguments):
    # Is this change of the disk, about to be made, the one before which to die?
    global count, deleting
    if event == "os.kill": return False
    if event == "shutil.rmtree":
        deleting = str(arguments[0]).endswith("step_00000002.1")
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open", "shutil.rmtree"):
        if folder in str(arguments[0]) or event in ("os.remove", "os.rmdir"):
            count += 1
    if moment == "commit":
        return event == "os.rename" and str(arguments[1]).endswith("step_00000003")
    if moment == "retirement":
        return event == "os.rename" and str(arguments[0]).endswith("step_00000002.1")
    if moment == "deletion":
        return event == "os.rmdir" and deleting
    return count == int(moment)
def hook(event, arguments):
    if reached(event, arguments): os.kill(os.getpid(), signal.SIGKILL)
store = CheckpointStore(folder, keep=1)
store.save(1, {"leaf": jnp.ones(4)}, {})
store.save(2, {"leaf": jnp.ones(4)}, {})
store.wait()
sys.addaudithook(hook)
store.save(2, {"leaf": jnp.ones(4) * 2}, {})
store.save(3, {"leaf": jnp.ones(4) * 3}, {})
store.close()
"""


def check_crash(folder: Path, moment: str) -> tuple[bool, int]:
    """Dies at a moment; returns whether it did, and the newest step that was left."""
    result = subprocess.run(
        [sys.executable, "-c", CRASH, str(folder), moment],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    like = {"leaf": jax.ShapeDtypeStruct((4,), jnp.float32)}
    with CheckpointStore(folder, keep=1) as store:
        newest = store.restore(like)
        assert newest.skipped == ()
        for step in store.steps():
            assert store.restore(like, step=step).skipped == ()
        store.save(4, {"leaf": jnp.ones(4)}, {})
    assert sorted(os.listdir(folder)) == [".lock", "step_00000004"]
    return result.returncode != 0, newest.step


@pytest.mark.parametrize(("moment", "newest"), [("commit", 2), ("retirement", 3), ("deletion", 3)])
def test_death_around_the_commit(tmp_path: Path, moment: str, newest: int) -> None:
    """Kills just before chosen changes of the disk rather than at random times."""
    assert check_crash(tmp_path, moment) == (True, newest)


@pytest.mark.slow
def test_death_at_every_change_of_the_disk(tmp_path: Path) -> None:
    moment = 1
    while (outcome := check_crash(tmp_path / str(moment), str(moment)))[0]:
        assert outcome[1] in (2, 3)
        moment += 1
    assert moment > 20


def test_a_leftover_of_the_same_step_is_no_obstacle(tmp_path: Path) -> None:
    for name in (".saving_00000001", ".trash_step_00000001"):
        (tmp_path / name / "arrays").mkdir(parents=True)
        (tmp_path / name / "arrays" / "file").write_text("half")
    save_all(tmp_path, (1,))
    assert sorted(os.listdir(tmp_path)) == [".lock", "step_00000001"]


# Several devices and processes.

WORKER = """
import os, sys
process, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=process)
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.watchdog import StopSignal
assert jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()), ("data",))
replicated, sharded = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
def state(step):
    values = np.arange(32, dtype=np.float32).reshape(8, 4) + step
    return {"w": jax.device_put(values, replicated), "s": jax.device_put(values, sharded),
            "host": np.int32(step), "n": jax.device_put(np.int32(step), replicated)}
def check(restored, step):
    for name, leaf in state(step).items():
        got = restored.state[name]
        if isinstance(leaf, jax.Array):
            assert got.sharding == leaf.sharding, name
            for a, b in zip(got.addressable_shards, leaf.addressable_shards, strict=True):
                np.testing.assert_array_equal(a.data, b.data)
        else:
            np.testing.assert_array_equal(got, leaf)
store = CheckpointStore(folder)
if "save" in sys.argv:
    for step in (1, 2, 3, 3): store.save(step, state(step), {"step": step})
    store.wait()
    assert store.steps() == (2, 3), store.steps()
    restored = store.restore(state(0))
    check(restored, 3)
    assert restored.skipped == ()
    newest = max(os.listdir(folder))
    if count > 1:
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices("read")
    if process == 0:
        with open(f"{folder}/{newest}/manifest.json", "r+b") as file: file.write(b"X")
restored = store.restore(state(0))
check(restored, 2)
assert [step for step, _ in restored.skipped] == [3]
try: store.restore(state(0), step=7)
except Exception as error: assert "no checkpoint of step 7" in str(error), error
else: raise AssertionError
store.close()
with StopSignal() as stop:
    if process == count - 1 and count > 1: __import__("signal").raise_signal(15)
    assert stop.requested_anywhere() == (count > 1)
print("done", flush=True)
if count > 1: jax.distributed.shutdown()
"""


def run_workers(folder: Path, count: int, *arguments: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(i), str(count), str(port), str(folder), *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=120) for worker in workers]
    for worker, (out, err) in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, err[-3000:]
        assert out.splitlines()[-1] == "done"


def test_two_processes_save_and_any_number_restores(tmp_path: Path) -> None:
    run_workers(tmp_path, 2, "save")
    run_workers(tmp_path, 1)


@pytest.mark.slow
def test_one_process_saves_and_two_restore(tmp_path: Path) -> None:
    run_workers(tmp_path, 1, "save")
    run_workers(tmp_path, 2)


def test_the_manifest_is_readable(tmp_path: Path) -> None:
    """Another program can check a step: plain JSON with one SHA-256 a file."""
    save_all(tmp_path, (1,))
    folder = tmp_path / "step_00000001"
    document = json.loads((folder / "manifest.json").read_text())
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(document["files"]) == names - {"manifest.json"}
    assert document["leaves"]["params/conv/kernel"] == {
        "shape": [3, 3, 4, 8], "dtype": "float32",
    }  # fmt: skip
