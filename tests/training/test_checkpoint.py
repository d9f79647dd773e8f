"""Checkpoints: exact round trips, decay, refusals, full disks, kills."""

import dataclasses
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from harmonic_jax.training.arrays import named_leaves
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


def test_the_state_may_be_donated_or_changed_at_once(tmp_path: Path) -> None:
    """The save goes on in the background; it must not see what the next step writes."""

    def fresh() -> dict[str, Any]:
        return {f"leaf{i}": jnp.full((300, 400), float(i)) for i in range(8)}

    donating = jax.jit(
        lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0
    )
    jax.block_until_ready(donating(fresh()))
    wanted = {"device": fresh(), "host": np.zeros(1_000_000)}
    with CheckpointStore(tmp_path, keep=2) as store:
        for number in range(2):
            state, host = fresh(), np.zeros(1_000_000)
            store.save(number, {"device": state, "host": host}, {})
            host += 1
            for _ in range(3):
                state = donating(state)
            jax.block_until_ready(state)
            assert_same_bits(store.restore(abstract(wanted)).state, wanted)


def test_others_can_read_a_step(tmp_path: Path) -> None:
    """Nobody is locked in: arrays are an ordinary orbax checkpoint, the manifest plain JSON."""
    save_all(tmp_path, (1,))
    folder = tmp_path / "step_00000001"
    leaves = named_leaves(make_state(1))
    target = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    stored = ocp.load(folder / "arrays", target)
    np.testing.assert_array_equal(stored["params/conv/bias"], np.zeros(8))
    document = json.loads((folder / "manifest.json").read_text())
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(document["files"]) == names - {"manifest.json"}
    assert document["leaves"]["params/conv/kernel"] == {"shape": [3, 3, 4, 8], "dtype": "float32"}


# What is kept.


def test_the_newest_steps_stay(tmp_path: Path) -> None:
    save_all(tmp_path, (10, 20, 30, 40), keep=3)
    store = CheckpointStore(tmp_path)
    assert store.steps() == (20, 30, 40)
    assert store.latest_step() == 40
    assert sorted(os.listdir(tmp_path))[0] == ".lock"
    assert len(os.listdir(tmp_path)) == 4


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
    flip_bit(tmp_path / "step_00000002" / "manifest.json", 900)
    assert store.read_metadata() == METADATA | {"step": 1}


# Decay.


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
        ({}, "the state has no leaf"),
        ({"a": jnp.zeros(0)}, "leaf 'a' has no elements"),
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
    with pytest.raises(CheckpointError, match="has gs:/ in its name"):
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


def test_a_leftover_of_the_same_step_is_no_obstacle(tmp_path: Path) -> None:
    """Readers leave it where it is, the next writer removes it."""
    for name in (".saving_00000001", ".trash_step_00000001"):
        (tmp_path / name / "arrays").mkdir(parents=True)
        (tmp_path / name / "arrays" / "file").write_text("half")
    save_all(tmp_path, (1,))
    assert sorted(os.listdir(tmp_path)) == [".lock", "step_00000001"]
