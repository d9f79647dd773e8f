"""When a folder may be used: never over another run, always over one that came to nothing."""

import dataclasses
from pathlib import Path

import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.training.run_dir import RunDir
from tests.training.tiny import tiny_config

OTHER = dataclasses.replace(tiny_config(), name="other")


def test_a_run_that_was_refused_at_its_start_can_be_corrected(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    assert not run_dir.open(tiny_config())
    run_dir.checkpoints.mkdir()
    (run_dir.checkpoints / ".lock").touch()
    assert not run_dir.open(OTHER)
    assert run_dir.read_config() == OTHER


@pytest.mark.parametrize("trace", ["log", "checkpoints", "best"])
def test_a_run_that_began_is_continued_or_refused(tmp_path: Path, trace: str) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.open(tiny_config())
    if trace == "log":
        run_dir.log.touch()
    else:
        (run_dir.path / trace / "10").mkdir(parents=True)
    assert run_dir.open(tiny_config())
    with pytest.raises(ConfigError, match="name: 'tiny' there, 'other' now"):
        run_dir.open(OTHER)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not a run of ours"):
        RunDir(tmp_path).open(tiny_config())
