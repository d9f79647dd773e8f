"""Opening a run, a folder or one file: what is written is read, and what was changed or made
otherwise is refused in a line before anything is built."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import harmonic_jax
from harmonic_jax.config import ConfigError
from harmonic_jax.pretrained import WeightsError, detector_layout, write_state_dict
from harmonic_jax.pretrained.convert import export_state
from harmonic_jax.pretrained.files import read_metadata
from harmonic_jax.training import saved_run
from harmonic_jax.training.checkpoint import CheckpointError
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import (
    SavedRun,
    header_of,
    open_detector,
    read_run,
    read_weights,
    write_weights,
)
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import build_detector
from tests.inference.tiny_run import run_config, write_run
from tests.training.test_step_folders import forge, put
from tests.training.tiny import flip_bit_of_largest, random_variables, tiny_config

CLASSES = ("sock", "N/A", "hat", "N/A")

# A folder.


@pytest.fixture(scope="module")
def written_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("written") / "run", run_config())


@pytest.fixture
def folder(written_folder: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(written_folder, tmp_path / "run")))


def opened(folder: RunFolder) -> SavedRun:
    return read_run(folder, sharding=replicated(data_mesh(jax.devices()[:1])))


def test_the_config_is_that_of_the_checkpoint(folder: RunFolder) -> None:
    """Whatever a second run, or a person, left in config.json."""
    folder.config.write_text("{}")
    assert opened(folder).config == run_config()
    folder.config.unlink()
    with pytest.raises(ConfigError, match="holds no run"):
        opened(folder)


@pytest.mark.parametrize("damage", ["arrays", "gone"])
def test_a_damaged_best_is_named_and_the_newest_checkpoint_offered(
    folder: RunFolder, damage: str
) -> None:
    if damage == "gone":
        shutil.rmtree(folder.best)
    else:
        flip_bit_of_largest(folder.best)
    with pytest.raises(CheckpointError) as error:
        opened(folder)
    message = str(error.value)
    assert f"checkpoint in {folder.best}" in message
    assert "--last" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("class_names", None, "got `null` - at `$.class_names`"),
        ("category_ids", [1, 2, 2], "category_ids must be a different number for each class"),
        ("config", {"type": "os"}, "config.type is 'os'"),
    ],
)
def test_metadata_made_by_hand(folder: RunFolder, key: str, value: Any, words: str) -> None:
    """What is checked is in the table for files below."""
    forge(next(folder.best.glob("step_*")), put("metadata", key, value=value))
    with pytest.raises(ConfigError) as error:
        opened(folder)
    assert words in str(error.value)
    assert f"in the manifest of {folder.best}: " in str(error.value)


# A file.


@pytest.fixture(scope="module")
def run() -> SavedRun:
    detector = build_detector(tiny_config(), len(CLASSES))
    variables = random_variables(detector, seed=3)
    metadata = {"AP": 0.25, "category_ids": [3, 1, 4, 15]}
    return SavedRun(detector.config, CLASSES, detector, variables, 40, metadata)


@pytest.fixture(scope="module")
def written(run: SavedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "detector.safetensors"
    write_weights(run, path)
    return path


def read(path: Path) -> SavedRun:
    return read_weights(path, sharding=replicated(data_mesh()))


def assert_same(a: SavedRun, b: SavedRun) -> None:
    assert (a.config, a.class_names, a.step) == (b.config, b.class_names, b.step)
    assert a.metadata == b.metadata
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)


def test_both_layouts_are_read(run: SavedRun, written: Path, tmp_path: Path) -> None:
    assert_same(read(written), run)
    assert [p.name for p in written.parent.iterdir()] == ["detector.safetensors"]
    layout = detector_layout(run.config.model, len(CLASSES))
    state_dict = export_state(run.variables.params, run.variables.model_state, layout)
    write_state_dict(tmp_path / "w.safetensors", state_dict, metadata=header_of(run))
    (tmp_path / "w.safetensors").rename(tmp_path / "weights")  # whatever it is called
    assert_same(open_detector(tmp_path / "weights", sharding=replicated(data_mesh())), run)


def test_arrays_that_are_missing_or_not_finite(written: Path, tmp_path: Path) -> None:
    header, content = read_metadata(written), safetensors.numpy.load_file(written)
    first = sorted(content)[0]
    path = tmp_path / "changed.safetensors"
    changed = content | {first: np.full_like(content[first], np.inf)}
    safetensors.numpy.save_file(changed, path, metadata=header)
    with pytest.raises(WeightsError, match=rf"changed\.safetensors are broken: {first} holds NaN"):
        harmonic_jax.load(path)
    del content[first]
    safetensors.numpy.save_file(content, path, metadata=header)
    with pytest.raises(WeightsError, match=f"leaf '{first}' of the state is not in"):
        read(path)


def test_files_of_others_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "my file.safetensors"

    safetensors.numpy.save_file({"a": np.zeros(2)}, path)
    with pytest.raises(WeightsError, match=f"import-weights '{path}' --to MODEL --out RUN"):
        read(path)
    pth = tmp_path / "w.pth"
    pth.write_bytes(b"PK\x03\x04 and so on")  # PyTorch need not be there to say this
    with pytest.raises(WeightsError, match=r"import-weights .* --to MODEL --out RUN"):
        read(pth)
    pth.write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="a web page"):
        read(pth)
    for name in ("none.safetensors", "none.pth"):
        with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
            open_detector(tmp_path / name, sharding=replicated(data_mesh()))
    with pytest.raises(ConfigError, match="none holds no run"):
        open_detector(tmp_path / "none", sharding=replicated(data_mesh()))


HUGE = 10**20
CHANGES: dict[str, tuple[str, Any, str]] = {
    "no classes": ("class_names", [], "length >= 1 - at `$.class_names`"),
    "half a letter": ("class_names", ["a", "\ud800", "c", "d"], "surrogates not allowed"),
    "a class twice": ("class_names", ["a", "b", "a", "d"], "class name 'a' is there twice"),
    "too many classes": ("class_names", [str(i) for i in range(100_001)], "length <= 100000"),
    "a step below 0": ("step", -1, "at `$.step`"),
    "true for a step": ("step", True, "at `$.step`"),
    "null for metadata": ("metadata", None, "at `$.metadata`"),
    "vast ids": ("metadata.category_ids", [1, 2, 3, HUGE], "at `$.category_ids[3]`"),
    "names in a list": ("metadata.torchvision_names", ["a"], "at `$.torchvision_names`"),
    "a module": ("config.model.type", "os", "config.model.type is 'os'"),
    "10,000 convolutions": ("config.model.head_convs", 10_000, "model.head_convs is 10000"),
    "a vast width": ("config.model.backbone.width", HUGE, "backbone.width"),
    "another width": ("config.model.backbone.width", 64, "does not hold the detector"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_file_says_of_itself_is_checked_before_anything_is_built(
    written: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, value, words = CHANGES[name]
    about = json.loads(read_metadata(written)["detector"])
    put(*where.split("."), value=value)(about)
    path = with_header(written, tmp_path, json.dumps(about))
    if "does not hold" not in words:
        monkeypatch.setattr(saved_run, "build_detector", None)
    with pytest.raises((WeightsError, ConfigError)) as caught:
        read(path)
    text = str(caught.value)
    assert words in text
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 600


TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "no JSON": lambda about: "{",
    "a list": lambda about: "[1, 2]",
    "deep": lambda about: "[" * 100_000,
    **{
        f"without {field}": lambda about, field=field: json.dumps(
            {name: value for name, value in about.items() if name != field}
        )
        for field in ("config", "class_names", "step", "metadata")
    },
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_header_that_is_damaged(written: Path, tmp_path: Path, name: str) -> None:
    about = json.loads(read_metadata(written)["detector"])
    path = with_header(written, tmp_path, TEXTS[name](about))
    with pytest.raises(WeightsError, match=r"changed\.safetensors: what it says of itself is"):
        harmonic_jax.load(path)


def test_another_format_is_named(written: Path, tmp_path: Path) -> None:
    path = with_header(written, tmp_path, "{}", format="harmonic_jax detector 2")
    with pytest.raises(WeightsError, match="has the format 'harmonic_jax detector 2'; this"):
        read(path)


def with_header(written: Path, folder: Path, about: str, **more: str) -> Path:
    """A copy of a file that says something else of itself."""
    path = folder / "changed.safetensors"
    header = read_metadata(written) | {"detector": about} | more
    safetensors.numpy.save_file(safetensors.numpy.load_file(written), path, metadata=header)
    return path
