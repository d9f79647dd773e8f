"""A run that was stopped before its first evaluation: its newest checkpoint is used, everywhere."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import harmonic_jax
from harmonic_jax.__main__ import main
from harmonic_jax.config import ConfigError
from harmonic_jax.training.checkpoint import CheckpointError
from harmonic_jax.training.initialise import open_origin
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import read_run
from harmonic_jax.training.sharding import data_mesh, replicated
from tests.inference.tiny_run import run_config, write_run

COMMANDS = {
    "eval": "eval {run}",
    "export": "export {run} --to onnx --out {out}",
    "export-weights": "export-weights {run} --out {out}.safetensors",
    "card": "export-weights {run} --out {out} --card",
    "predict": "predict {picture} --run {run} --out {out}",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("not") / "evaluated"
    return write_run(folder, run_config(), is_evaluated=False)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("best") / "alone", run_config())


def words(command: str, run: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "picture.png").write_bytes(b"")
    places = {"run": run, "out": tmp_path / "out", "picture": tmp_path / "picture.png"}
    return [word.format(**places) for word in COMMANDS[command].split()]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_newest_checkpoint_is_offered(command: str, run: Path, tmp_path, capsys) -> None:
    assert main(words(command, run, tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: no checkpoint in {run}/best")
    assert "newest checkpoint opens with --last" in error
    assert f"--init {run}/checkpoints" in error
    assert error.count("\n") == 1


def test_load_and_init_too(run: Path) -> None:
    sharding = replicated(data_mesh(jax.devices()[:1]))
    with pytest.raises(CheckpointError, match=r"opens with --last \(last=True\)"):
        harmonic_jax.load(run)
    assert harmonic_jax.load(run, last=True).step == 4
    with pytest.raises(CheckpointError, match=f"--init {run}/checkpoints"):
        open_origin(run, sharding)
    started = open_origin(run / "checkpoints", sharding)
    known = read_run(RunFolder(run), sharding=sharding, last=True)
    assert started.step == 4
    jax.tree.map(np.testing.assert_array_equal, started.variables, known.variables)
    with pytest.raises(ConfigError, match="holds no run"):
        open_origin(run.parent / "checkpoints", sharding)


def test_where_there_is_only_a_best_last_is_left_out(imported: Path, tmp_path, capsys) -> None:
    assert main([*words("export", imported, tmp_path), "--last"]) == 1
    assert "its best variables open without --last" in capsys.readouterr().err


def test_compare_says_how_to_evaluate(run: Path, capsys) -> None:
    assert main(["compare", str(run), str(run)]) == 1
    assert "`harmonic-jax eval RUN --report DIR`" in capsys.readouterr().err


def test_a_run_without_any_checkpoint(tmp_path, capsys) -> None:
    folder = tmp_path / "begun"
    RunFolder(folder).open(run_config())
    assert json.loads((folder / "config.json").read_text())
    assert main(["eval", str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"error: no checkpoint in {folder}/best. Where")
