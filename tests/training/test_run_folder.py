"""When a folder may be used: never over another run, always over one that came to nothing."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.config_json import config_to_json
from harmonic_jax.training.run_folder import RunFolder
from tests.training.tiny import tiny_config

OURS = tiny_config()
OTHER = dataclasses.replace(OURS, name="other")


def save(folder: Path, config: Config, step: int = 5) -> None:
    with CheckpointStore(folder) as store:
        store.save(step, {"leaf": np.ones(1)}, {"config": config_to_json(config)})


def write_log(run_dir: RunFolder, *rows: dict[str, Any]) -> None:
    run_dir.log.write_text("".join(json.dumps({"kind": "train", **row}) + "\n" for row in rows))


@pytest.fixture
def run_dir(tmp_path: Path) -> RunFolder:
    """A run that was started, and holds nothing yet."""
    run_dir = RunFolder(tmp_path / "run")
    assert not run_dir.open(OURS)
    return run_dir


def test_a_run_that_was_refused_at_its_start_can_be_corrected(run_dir: RunFolder) -> None:
    for folder in (run_dir.checkpoints, run_dir.best):
        folder.mkdir()
        (folder / ".lock").touch()
    assert not run_dir.open(OTHER)
    assert run_dir.read_config() == OTHER


def test_a_run_with_checkpoints_is_continued_or_refused(run_dir: RunFolder) -> None:
    for folder in (run_dir.best, run_dir.checkpoints):
        save(folder, OURS)
        words = f"in {folder.name}/, with another config .name: 'tiny' there, 'other' now"
        with pytest.raises(ConfigError, match=words):
            run_dir.open(OTHER)
    assert run_dir.open(OURS)


def test_a_run_killed_before_its_first_checkpoint_starts_again(run_dir: RunFolder) -> None:
    run_dir.checkpoints.mkdir()
    write_log(run_dir, {"step": 1}, {"step": 2 * OURS.train.checkpoint_every})
    with pytest.raises(ConfigError, match="name: 'tiny' there, 'other' now"):
        run_dir.open(OTHER)
    often = dataclasses.replace(OURS.train, checkpoint_every=1)  # which may change
    assert not run_dir.open(dataclasses.replace(OURS, train=often))


@pytest.mark.parametrize(
    "leave",
    [
        lambda run: (run.report.mkdir(), (run.report / "metrics.json").touch()),
        lambda run: save(run.best, OURS),
        lambda run: write_log(run, {"step": 1}, {"step": 1, "kind": "eval"}),
        lambda run: write_log(run, {"step": 2 * OURS.train.checkpoint_every + 1}),
    ],
)
@pytest.mark.parametrize("is_emptied", [False, True])
def test_without_checkpoints_what_came_after_them_is_not_overwritten(
    run_dir: RunFolder, leave: Callable[[RunFolder], None], is_emptied: bool
) -> None:
    if is_emptied:
        run_dir.checkpoints.mkdir()
    leave(run_dir)
    before = sorted(run_dir.path.rglob("*"))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"checkpoints holds no checkpoint, but there is"):
            run_dir.open(OURS)
    assert sorted(run_dir.path.rglob("*")) == before


# Folders of something else, and none at all.


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not a run of ours"), RunFolder(tmp_path).opened(OURS):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_no_folder_is_refused(tmp_path: Path, is_link: bool) -> None:
    path = tmp_path / "run"
    if is_link:
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text("a file")
    with pytest.raises(ConfigError, match="run is no folder; choose another"):
        RunFolder(path).open(OURS)


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = RunFolder(tmp_path / "run")
    link.path.symlink_to(tmp_path / "disk")
    with link.opened(OURS):
        save(link.checkpoints, OURS)
    assert link.open(OURS)
    assert link.path.is_symlink()
    assert (tmp_path / "disk" / "checkpoints" / "step_00000005").is_dir()


def test_a_url_is_no_folder() -> None:
    with pytest.raises(ConfigError, match="must be a local or mounted folder"):
        RunFolder.of(dataclasses.replace(OURS, run_dir="gs://bucket/run"))


def test_a_name_that_checkpoints_cannot_have_is_refused_before_it_is_made(tmp_path: Path) -> None:
    refused = pytest.raises(CheckpointError, match="cannot hold checkpoints")
    with refused, RunFolder(tmp_path / "back\\slash").opened(OURS):
        pass
    assert os.listdir(tmp_path) == []


# config.json.


@pytest.mark.parametrize("damage", ["other", "cut", "gone"])
def test_the_config_of_the_checkpoints_decides(run_dir: RunFolder, damage: str) -> None:
    """config.json of a run that another one overwrote, or that was lost, is written anew."""
    save(run_dir.checkpoints, OURS)
    if damage == "other":
        run_dir.config.write_text(json.dumps(config_to_json(OTHER)))
    elif damage == "cut":
        run_dir.config.write_text(run_dir.config.read_text()[:100])
    else:
        run_dir.config.unlink()
    with pytest.raises(ConfigError, match="name: 'tiny' there, 'other' now"):
        run_dir.open(OTHER)
    assert run_dir.open(OURS)
    assert run_dir.read_config() == OURS


# Two at once.

ANOTHER_PROCESS = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_second_run_in_the_folder_changes_nothing(run_dir: RunFolder) -> None:
    """It is refused whatever its config is, before it writes its config.json."""
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(run_dir.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline()
        for config in (OTHER, OURS):
            refused = pytest.raises(OSError, match="another process is writing there")
            with refused as error, run_dir.opened(config):
                pass
            assert error.value.filename == str(run_dir.path)
        assert run_dir.read_config() == OURS
        running.communicate()
    with run_dir.opened(OTHER):
        assert run_dir.read_config() == OTHER


# Links.


@pytest.mark.parametrize("name", [".lock", "config.json"])
def test_what_a_link_points_to_is_not_touched(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    run_dir = RunFolder(tmp_path / "run")
    run_dir.open(OURS)
    (run_dir.path / name).unlink(missing_ok=True)
    (run_dir.path / name).symlink_to(precious)
    if name == ".lock":
        with (
            pytest.raises(OSError, match="Too many levels of symbolic links"),
            run_dir.opened(OTHER),
        ):
            pass
    else:
        with run_dir.opened(OTHER):
            assert not run_dir.config.is_symlink()
    assert precious.read_text() == "precious"


def test_a_report_behind_a_link_is_not_replaced(run_dir: RunFolder, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    run_dir.report.symlink_to(precious)
    save(run_dir.checkpoints, OURS)
    with run_dir.opened(OURS):
        assert not run_dir.report.exists()
    assert precious.exists()


def test_a_report_that_is_no_folder_is_refused_before_the_first_step(run_dir: RunFolder) -> None:
    run_dir.report.touch()
    with pytest.raises(ConfigError, match=r"report is no folder, and the run's report goes there"):
        run_dir.open(OURS)
