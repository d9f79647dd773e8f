"""Weights in one file that says what they are, and the command that writes it."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import harmonic_jax
from harmonic_jax.cli import export as command
from harmonic_jax.export import read_weights, write_weights
from harmonic_jax.export.model_card import model_card
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.config_json import config_to_json
from harmonic_jax.training.restore import SavedRun
from harmonic_jax.training.run_dir import RunDir
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import build_detector, init_variables
from tests.training.tiny import tiny_config

CLASSES = ("sock", "shoe", "hat")


@pytest.fixture(scope="module")
def run() -> SavedRun:
    detector = build_detector(tiny_config(), len(CLASSES))
    variables = init_variables(detector, seed=3, sharding=replicated(data_mesh()))
    return SavedRun(detector.config, CLASSES, detector, variables, 40, {"AP": 0.25})


def test_what_is_written_is_read(run: SavedRun, tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    number = write_weights(run, path)
    again = read_weights(path, sharding=replicated(data_mesh()))
    assert number == len(safetensors.numpy.load_file(path)) > 10
    assert (again.config, again.class_names, again.step) == (run.config, run.class_names, 40)
    assert again.metadata == run.metadata
    jax.tree.map(np.testing.assert_array_equal, again.variables, run.variables)
    assert [p.name for p in tmp_path.iterdir()] == ["detector.safetensors"]


def test_files_that_are_something_else(run: SavedRun, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(2)}, foreign)
    with pytest.raises(WeightsError, match="no detector of harmonic_jax"):
        read_weights(foreign, sharding=replicated(data_mesh()))
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"0" * 64)
    with pytest.raises(WeightsError, match=r"noise\.safetensors cannot be read"):
        read_weights(noise, sharding=replicated(data_mesh()))

    path = tmp_path / "short.safetensors"
    write_weights(run, path)
    with safetensors.safe_open(path, "numpy") as file:
        header = file.metadata()
    content = safetensors.numpy.load_file(path)
    lost = sorted(content)[0]
    del content[lost]
    safetensors.numpy.save_file(content, path, metadata=header)
    with pytest.raises(WeightsError, match=f"leaf '{lost}' of the state is not in"):
        read_weights(path, sharding=replicated(data_mesh()))


def test_the_card_says_what_it_is(run: SavedRun) -> None:
    card = model_card(run, name="x.safetensors", metrics={"AP": 0.25, "AP50": 0.5, "step": 40})
    assert "RetinaNet, trained with HarDet" in card
    assert "sock, shoe, hat" in card
    assert "| AP50 | 0.500 |" in card
    assert 'harmonic_jax.load("x.safetensors")' in card
    baseline = dataclasses.replace(run.config.loss, hardet=False)
    plain = dataclasses.replace(run, config=dataclasses.replace(run.config, loss=baseline))
    card = model_card(plain, name="x.safetensors", metrics={})
    assert "the baseline's losses" in card
    assert "Not evaluated yet." in card


def test_the_command(run: SavedRun, tmp_path: Path, capsys) -> None:
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_text(json.dumps(config_to_json(run.config)))
    with CheckpointStore(folder.best, keep=1) as store:
        store.save(40, run.variables, {"class_names": list(CLASSES), "AP": 0.25})
    out = tmp_path / "out"
    arguments = [str(folder.path), "--to", "safetensors", "--out", str(out)]
    assert command.main(arguments) == 0
    assert "detector.safetensors" in capsys.readouterr().out
    assert (out / "README.md").read_text().startswith(f"# {run.config.name}\n")
    loaded = harmonic_jax.load(out / "detector.safetensors", nms="agnostic")
    assert (loaded.class_names, loaded.step) == (CLASSES, 40)
    assert loaded.config.model.postprocess.nms == "agnostic"
    assert command.main(arguments) == 1
    assert "nothing is overwritten" in capsys.readouterr().err
