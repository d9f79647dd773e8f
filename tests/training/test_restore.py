"""Opening a run whose files were changed: what is wrong is said in a line, and what still opens."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.training.checkpoint import CheckpointError
from harmonic_jax.training.config_json import config_to_json
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun, read_run
from harmonic_jax.training.sharding import data_mesh, replicated
from tests.inference.tiny_run import CLASSES, run_config, write_run
from tests.training.test_checkpoint_folders import forge, put


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("written") / "run", run_config())


@pytest.fixture
def run_dir(written: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(written, tmp_path / "run")))


def step_of(run_dir: RunFolder) -> Path:
    return next(run_dir.best.glob("step_*"))


def opened(run_dir: RunFolder) -> SavedRun:
    return read_run(run_dir, sharding=replicated(data_mesh(jax.devices()[:1])))


def test_a_run_is_opened(run_dir: RunFolder) -> None:
    run = opened(run_dir)
    assert (run.step, run.class_names, run.config) == (4, CLASSES, run_config())


def test_another_config_than_that_of_the_checkpoint_is_refused(run_dir: RunFolder) -> None:
    """As a second run left it that was started in the same folder."""
    config = run_dir.read_config()
    train = dataclasses.replace(config.train, seed=7, log_every=3)
    run_dir.config.write_text(json.dumps(config_to_json(dataclasses.replace(config, train=train))))
    with pytest.raises(ConfigError) as error:
        opened(run_dir)
    message = str(error.value)
    assert message.startswith(f"{run_dir.config} is not the config that {run_dir.best} was made")
    assert "(train.seed: 7 in config.json, 0 in the checkpoint)" in message


def test_what_may_differ_may(run_dir: RunFolder) -> None:
    config = run_dir.read_config()
    moved = dataclasses.replace(
        config, run_dir="elsewhere", data=dataclasses.replace(config.data, root="/moved")
    )
    run_dir.config.write_text(json.dumps(config_to_json(moved)))
    assert opened(run_dir).config.data.root == "/moved"


@pytest.mark.parametrize("damage", ["manifest", "arrays", "gone"])
@pytest.mark.parametrize("has_checkpoints", [True, False])
def test_a_damaged_best_is_named_and_the_newest_checkpoint_offered(
    run_dir: RunFolder, damage: str, has_checkpoints: bool
) -> None:
    if has_checkpoints:
        shutil.copytree(run_dir.best, run_dir.checkpoints)
    victim = step_of(run_dir) / "manifest.json"
    if damage == "gone":
        shutil.rmtree(run_dir.best)
    else:
        if damage == "arrays":
            files = [path for path in step_of(run_dir).rglob("*") if path.is_file()]
            victim = max(files, key=lambda path: path.stat().st_size)
        raw = bytearray(victim.read_bytes())
        raw[len(raw) // 2] ^= 1
        victim.write_bytes(raw)
    with pytest.raises(CheckpointError) as error:
        opened(run_dir)
    message = str(error.value)
    assert f"checkpoint in {run_dir.best}" in message
    assert ("--last" in message) == has_checkpoints
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("class_names", None, "class_names must be a list of names"),
        ("class_names", [], "class_names must be a list of names"),
        ("class_names", "cat", "class_names must be a list of names"),
        ("class_names", ["a", 3, "c"], "class_names must be a list of names"),
        ("class_names", {"a": 1}, "class_names must be a list of names"),
        ("category_ids", 3, "category_ids must be a number a class"),
        ("category_ids", [1, 2], "category_ids must be a number a class"),
        ("category_ids", [1, 2, "3"], "category_ids must be a number a class"),
        ("config", None, "config is None; it must be an object"),
        ("config", [], r"config is \[\]; it must be an object"),
        ("config", {"type": "os"}, "config.type is 'os'"),
        ("class_names", ["a"], "category_ids must be a number a class"),
    ],
)
def test_metadata_made_by_hand(run_dir: RunFolder, key: str, value: Any, words: str) -> None:
    forge(step_of(run_dir), put("metadata", key, value=value))
    with pytest.raises((ConfigError, CheckpointError), match=words) as error:
        opened(run_dir)
    assert str(run_dir.best) in str(error.value)
