"""Checkpoints: exact round trips, what is kept, refusals, full disks."""

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from harmonic_jax.training import arrays
from harmonic_jax.training.arrays import named_leaves
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from tests.training.test_step_folders import STATE, save

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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with CheckpointStore(folder) as store:
        store.save(1, make_state(1), METADATA)
    return folder


# Round trips.


def test_a_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    state = make_state(3)
    with CheckpointStore(tmp_path / "new" / "folder") as store:
        store.save(3, state, METADATA)
        restored = store.restore(abstract(state))
    assert_same_bits(restored.state, state)
    assert restored.step == 3
    assert restored.metadata == METADATA
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


def test_others_can_read_a_step(saved: Path) -> None:
    """Nobody is locked in: arrays are an ordinary orbax checkpoint, the manifest plain JSON."""
    folder = saved / "step_00000001"
    leaves = named_leaves(make_state(1))
    target = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    stored = ocp.load(folder / "arrays", target)
    np.testing.assert_array_equal(stored["params/conv/bias"], np.zeros(8))
    document = json.loads((folder / "manifest.json").read_text())
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(document["files"]) == names - {"manifest.json"}
    assert document["leaves"]["params/conv/kernel"] == {"shape": [3, 3, 4, 8], "dtype": "float32"}


# What is kept.


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (((10, 20, 30, 40),), (20, 30, 40)),
        (((10, 20, 30), (15,)), (10, 15)),  # a course that was given up
        (((10, 20), (20, 20)), (10, 20)),
    ],
)
def test_the_newest_steps_stay(
    tmp_path: Path, saved: tuple[tuple[int, ...], ...], expected: tuple[int, ...]
) -> None:
    store = CheckpointStore(tmp_path)
    for number, steps in enumerate(saved):
        with CheckpointStore(tmp_path, keep=3) as writing:
            for step in steps:
                writing.save(step, {"number": np.array(number)}, {"step": step})
        assert store.steps()[-1] == store.latest_step() == steps[-1]
        assert store.restore({"number": np.array(0)}).state == {"number": number}
        assert store.read_metadata() == {"step": steps[-1]}
    assert store.steps() == expected
    assert len(os.listdir(tmp_path)) == len(expected) + 1  # the lock


def test_an_empty_store(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "nothing")
    assert store.latest_step() is None
    assert store.steps() == ()
    for read in (lambda: store.restore(STATE), store.read_metadata):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .*nothing$"):
            read()
    assert not (tmp_path / "nothing").exists()


def test_a_step_that_is_dropped_while_it_is_read_gives_way_to_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)
    read, newer = arrays.read, iter([2, 3])

    def read_late(folder: Path, leaves: Any) -> Any:
        for step in itertools.islice(newer, 1):
            save(tmp_path, step, keep=1)
        return read(folder, leaves)

    monkeypatch.setattr(arrays, "read", read_late)
    assert CheckpointStore(tmp_path).restore(STATE).metadata == {"step": 3}


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
def test_another_state_is_refused_by_its_first_leaf(saved: Path, change: Any, line: str) -> None:
    with pytest.raises(CheckpointError) as error:
        CheckpointStore(saved).restore(abstract(change(make_state())))
    assert str(error.value) == f"{saved / 'step_00000001'} does not fit: {line}"


def test_two_leaves_of_one_name_are_refused(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store, pytest.raises(ValueError, match="are called 'a/b'"):
        store.save(1, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, {})


# What cannot be read, or used, is not saved.


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


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(np.nan, "float32"), (np.inf, "float64"), (-np.inf, "bfloat16"), (np.nan, "float16")],
)
def test_what_is_not_finite_is_not_saved(tmp_path: Path, value: float, dtype: str) -> None:
    good = {"a": np.ones(2), "b": np.ones(3, jnp.dtype(dtype))}
    bad = good | {"b": np.array([0, value, 1]).astype(jnp.dtype(dtype))}
    with CheckpointStore(tmp_path) as store:
        store.save(1, good, {})
        with pytest.raises(CheckpointError, match=r"leaf 'b' is not finite .* step 2, which is n"):
            store.save(2, bad, {})
        assert store.restore(good).step == 1


# Names.


@pytest.mark.parametrize(
    "name",
    ["a [b]", "[0-9]", "**", "a ?%20#&", "$HOME \"'", "line\nend", "größe 日本", "x" * 255, "~"],
)
def test_any_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Orbax globs the path as it is, and seals without the arrays that it did not find.

    Behind a link, by a relative name.
    """
    (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(name)
    monkeypatch.chdir(tmp_path)
    save(Path("link"), 1, 2)
    monkeypatch.chdir("/")
    restored = CheckpointStore(tmp_path / name).restore(STATE)
    assert restored.step == 2
    np.testing.assert_array_equal(restored.state["params/kernel"], STATE["params/kernel"])


@pytest.mark.parametrize("name", ["back\\slash", "gs:", os.fsdecode(b"\xff")])
def test_a_name_that_orbax_cannot_use_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot hold checkpoints: its name has"):
        CheckpointStore(tmp_path / name)
    assert os.listdir(tmp_path) == []


# Disks that refuse.


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = CheckpointStore(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError) as error:
        store.claim()
    assert str(error.value) == f"cannot write to {tmp_path}/file/checkpoints: Not a directory"


def test_a_failed_save_is_reported_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store = CheckpointStore(tmp_path)
    store.save(1, STATE, {})
    store.wait()
    monkeypatch.setattr("harmonic_jax.training.step_folders.seal", refuse)
    store.save(2, STATE, {})
    with pytest.raises(CheckpointError, match=r"step 2 to .*: No space left on device"):
        store.save(3, STATE, {})
    monkeypatch.undo()
    store.save(3, STATE, {})
    store.close()
    assert store.steps() == (1, 3)
