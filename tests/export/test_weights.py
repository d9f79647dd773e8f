"""A detector handed on: the card for people, and the command that writes it."""

import dataclasses
import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

import harmonic_jax
from harmonic_jax.cli import export as command
from harmonic_jax.export import write_weights
from harmonic_jax.export.model_card import model_card
from harmonic_jax.training.saved_run import SavedRun, open_detector
from harmonic_jax.training.sharding import data_mesh, replicated
from tests.inference.tiny_run import CLASSES, run_config, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("exported") / "run", run_config())


@pytest.fixture(scope="module")
def run(folder: Path) -> SavedRun:
    return open_detector(folder, sharding=replicated(data_mesh()))


def test_the_card_says_what_it_is(run: SavedRun) -> None:
    card = model_card(run, name="x.safetensors", metrics={"AP": 0.25, "AP50": 0.5, "step": 40})
    assert "RetinaNet, trained with HarDet" in card
    assert "a, b, c" in card
    assert "| AP50 | 0.500 |" in card
    assert 'harmonic_jax.load("x.safetensors")' in card
    baseline = dataclasses.replace(run.config.loss, hardet=False)
    plain = dataclasses.replace(run, config=dataclasses.replace(run.config, loss=baseline))
    card = model_card(plain, name="x.safetensors", metrics={})
    assert "the baseline's losses" in card
    assert "Not evaluated yet." in card


def test_the_command(run: SavedRun, folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    arguments = [str(folder), "--to", "safetensors", "--out", str(out)]
    assert command.main(arguments) == 0
    assert "detector.safetensors" in capsys.readouterr().out
    assert (out / "README.md").read_text().startswith(f"# {run.config.name}\n")
    loaded = harmonic_jax.load(out / "detector.safetensors", nms="agnostic")
    assert (loaded.class_names, loaded.step) == (CLASSES, 4)
    assert loaded.config.model.postprocess.nms == "agnostic"
    again = [str(out / "detector.safetensors"), *arguments[1:-1], str(tmp_path / "again")]
    assert command.main(again) == 0  # a file of a run is as good as its folder
    first, second = (load_file(p / "detector.safetensors") for p in (out, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("to", ["safetensors", "onnx", "stablehlo"])
def test_nothing_is_overwritten_whatever_is_written(
    to: str, folder: Path, tmp_path: Path, capsys
) -> None:
    """Nor is anything read or compiled before that is known: the folder of the run is none."""
    for name in command._NAMES[to]:
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine")
        assert command.main([str(tmp_path / "none"), "--to", to, "--out", str(out)]) == 1
        assert f"{name} exists; nothing is overwritten" in capsys.readouterr().err
        assert [(p.name, p.read_text()) for p in out.iterdir()] == [(name, "mine")]


def test_where_nothing_can_be_written(
    folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = [str(folder), "--to", "safetensors", "--out", str(out)]
    out.write_text("mine")
    assert command.main(arguments) == 1
    assert f"{out} is a file; choose a folder" in capsys.readouterr().err
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "MiB free" in error
    assert not list(out.iterdir())  # not the small file alone


@pytest.mark.parametrize("to", ["safetensors", "onnx", "stablehlo"])
def test_broken_weights_are_not_handed_on(run: SavedRun, to: str, tmp_path: Path, capsys) -> None:
    leaves, structure = jax.tree.flatten(run.variables)
    broken = [leaf.at[..., 0].set(jnp.nan) if i == 2 else leaf for i, leaf in enumerate(leaves)]
    path = tmp_path / "broken.safetensors"
    write_weights(dataclasses.replace(run, variables=structure.unflatten(broken)), path)
    out = tmp_path / "out"
    assert command.main([str(path), "--to", to, "--out", str(out)]) == 1
    assert "are broken: params/" in capsys.readouterr().err
    assert not out.exists()
