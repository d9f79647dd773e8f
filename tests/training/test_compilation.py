"""Everything is compiled before the first step, nothing twice, and nothing outside its folder."""

import dataclasses
import io
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from harmonic_jax.config import AugmentConfig, Config, DataConfig, TrainConfig
from harmonic_jax.data.loader import eval_batches, train_batches
from harmonic_jax.structures import Batch
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.compilation import (
    compile_programs,
    delete_oldest,
    run_programs,
    use_compilation_cache,
)
from harmonic_jax.training.log import TrainProgress
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated, split_batch
from harmonic_jax.training.state import TrainState, Variables
from tests.data.fake_source import FakeSource, mixed_source
from tests.training.tiny import tiny_config

DATA = DataConfig(short_sides=(48, 64), max_side=96, max_objects=5, augment=AugmentConfig())


def jitted_steps(mesh):
    """Two functions that look at all they get, as the real steps do."""

    def total(batch: Batch) -> jax.Array:
        return sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(batch))

    def train_step(state: TrainState, batch: Batch):
        params = {"w": state.variables.params["w"] + total(batch)}
        return TrainState(state.step + 1, Variables(params, {}), (), None), {"loss": total(batch)}

    def predict_step(variables: Variables, batch: Batch):
        return variables.params["w"] * total(batch), batch.record_index

    everywhere, split = replicated(mesh), split_batch(mesh)
    return (
        jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(everywhere, split),
            out_shardings=(everywhere, everywhere),
        ),
        jax.jit(predict_step, in_shardings=(everywhere, split), out_shardings=everywhere),
    )


def start(config: Config, source: FakeSource):
    mesh = data_mesh(jax.devices()[:1])
    train_step, predict_step = jitted_steps(mesh)
    state = TrainState(jnp.zeros((), jnp.int32), Variables({"w": jnp.ones(3)}, {}), (), None)
    state = jax.device_put(state, replicated(mesh))
    programs = run_programs(config, mesh, state, (train_step, source), (predict_step, source))
    return mesh, train_step, predict_step, state, programs


@pytest.fixture
def compiled():
    """The names of what JAX compiles while the test runs."""
    names: list[str] = []

    def listen(event: str, seconds: float, **facts: object) -> None:
        if "backend_compile" in event:
            names.append(str(facts.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_no_step_of_a_run_compiles(compiled: list[str]) -> None:
    source, shown = mixed_source(8, 4), io.StringIO()
    config = dataclasses.replace(
        tiny_config(train=TrainConfig(steps=6, batch_size=4, eval_batch_size=2)), data=DATA
    )
    mesh, train_step, predict_step, state, programs = start(config, source)
    compile_programs(programs, TrainProgress(6, images_per_step=4, console=Terminal(file=shown)))
    lines = shown.getvalue().splitlines()
    assert lines[0] == "compiling 4 programs before the first step"
    assert [line.split(" ... ")[0] for line in lines[1:]] == [
        "train step, landscape 64 x 96",
        "train step, portrait 96 x 64",
        "inference, landscape 64 x 96",
        "inference, portrait 96 x 64",
        "compiling done",
    ]
    assert int(state.step) == 0  # nothing ran, nothing was donated

    compiled.clear()
    shapes = set()
    with train_batches(source, DATA, batch_size=4, seed=0, num_steps=6) as batches:
        for batch in batches:
            shapes.add(batch.images.shape)
            old = state
            state, _ = train_step(state, put_batch(batch, mesh))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    with eval_batches(source, DATA, batch_size=2) as batches:
        for batch in batches:
            predict_step(state.for_evaluation, put_batch(batch, mesh))
    assert shapes == {(4, 64, 96, 3), (4, 96, 64, 3)}
    assert compiled == []
    assert train_step._cache_size() == predict_step._cache_size() == 2


# One portrait image fills a batch of four in its fourth epoch, which two steps do not reach.
@pytest.mark.parametrize(("portraits", "more"), [(0, []), (1, ["inference, portrait 96 x 64"])])
def test_only_what_will_be_called_is_compiled(portraits: int, more: list[str]) -> None:
    config = dataclasses.replace(tiny_config(train=TrainConfig(steps=2, batch_size=4)), data=DATA)
    *_, programs = start(config, mixed_source(8, portraits))
    names = ["train step, landscape 64 x 96", "inference, landscape 64 x 96", *more]
    assert [program.name for program in programs] == names


def test_masks_are_part_of_a_training_batch_only() -> None:
    data = dataclasses.replace(DATA, masks=True, mask_size=28)
    config = dataclasses.replace(tiny_config(train=TrainConfig(steps=9, batch_size=4)), data=data)
    *_, programs = start(config, mixed_source(8, 0))
    train, predict = (program.arguments[1].ground_truth.masks for program in programs)
    assert train.values.shape == (4, 5, 28, 28)
    assert train.frames.shape == (4, 5, 4)
    assert predict is None


@pytest.fixture
def no_cache():
    """As a user's process starts: nothing is said of a cache. Afterwards all is as before."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("said", [None, "", "elsewhere"])
def test_the_cache_is_on_unless_jax_was_told_otherwise(
    no_cache, monkeypatch, tmp_path: Path, said: str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_compilation_cache_dir", said)
    folder = use_compilation_cache()
    if said is None:
        assert folder == tmp_path / "home" / "harmonic_jax" / "compiled"
        assert folder.is_dir()
    else:
        assert folder is None
        assert not list(tmp_path.iterdir())
    expected = said if said is not None else str(folder)
    assert jax.config.jax_compilation_cache_dir == expected
    assert jax.config.jax_enable_compilation_cache


@pytest.mark.parametrize("why", ["a file", "no home"])
def test_a_cache_that_cannot_be_written_costs_a_line(
    no_cache, monkeypatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    words = f"{tmp_path}/file/harmonic_jax/compiled: Not a dir"
    if why == "no home":
        monkeypatch.setattr("harmonic_jax.training.compilation.cache_folder", lambda: None)
        words = "there is no home folder"
    assert use_compilation_cache() is None
    (line,) = caplog.messages
    assert line.startswith(f"compiled programs are not kept: {words}")


def test_the_longest_unused_programs_are_deleted(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "old", "oldest"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))
    delete_oldest(tmp_path, keep_bytes=30)
    assert len(list(tmp_path.iterdir())) == 3
    delete_oldest(tmp_path, keep_bytes=25)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}
