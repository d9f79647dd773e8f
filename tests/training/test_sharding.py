"""Batch sizes against devices and memory: refused, or rounded up, before anything is read; and
wrong variables of the environment, and users without a home: a line, or no difference."""

import dataclasses
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh

from harmonic_jax.cli import evaluate
from harmonic_jax.config import Config, ConfigError, DataConfig, TrainConfig
from harmonic_jax.data.tfds import open_builders
from harmonic_jax.files import cache_folder
from harmonic_jax.inference import load
from harmonic_jax.inference.inputs import find_inputs
from harmonic_jax.training.sharding import (
    check_batch_size,
    check_devices,
    eval_batch_size,
)
from tests.cli.coco import write_coco
from tests.training.tiny import tiny_config

ROOT = Path(__file__).parent.parent.parent


def mesh_of(size: int) -> Any:
    return AbstractMesh((size,), ("data",))


def with_batch(size: int, **fields: Any) -> Config:
    return tiny_config(train=TrainConfig(batch_size=size, **fields))


@pytest.mark.parametrize(
    ("size", "parts", "words"),
    [
        (6, 1, r"train.batch_size is 6; it must be a multiple of 4: 4 devices"),
        (20, 2, r"train.batch_size is 20; .* of 8: 4 devices x 2 accumulation parts"),
    ],
)
def test_a_batch_that_the_devices_do_not_divide(size: int, parts: int, words: str) -> None:
    config = with_batch(size)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=parts))
    with pytest.raises(ConfigError, match=words):
        check_batch_size(config, mesh_of(4))


def test_a_batch_of_evaluation_is_rounded_up() -> None:
    sizes = [eval_batch_size(with_batch(8, eval_batch_size=n), mesh_of(4)) for n in (1, 4, 5, 9)]
    assert sizes == [4, 4, 8, 12]
    assert eval_batch_size(with_batch(6), mesh_of(4)) == 8


@pytest.mark.parametrize("size", [0, -1, 10**9, True, 1.0])
def test_load_checks_the_batch_size_first(size: Any) -> None:
    with pytest.raises(ConfigError, match=rf"batch_size is {size}; it must be a whole number in"):
        load("/nowhere", batch_size=size)


# Devices.


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    check_devices.cache_clear()
    yield
    check_devices.cache_clear()


@pytest.mark.parametrize("name", ["JAX_PLATFORMS", "JAX_PLATFORM_NAME"])
@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no backend 'cuda'\nmore")])
def test_a_platform_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """JAX asserts where it was told of a GPU and has none."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    for variable in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "cuda")
    with pytest.raises(ConfigError, match=f"{name} is 'cuda': JAX finds no such") as told:
        check_devices()
    assert "\n" not in str(told.value)
    monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=r"^JAX finds no device to compute on"):
        check_devices()


def test_files_are_evaluated_without_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the login node of a cluster, say."""

    def fail() -> None:
        raise AssertionError

    for name in ("devices", "process_index", "process_count", "local_devices"):
        monkeypatch.setattr(jax, name, fail)
    folder = write_coco(tmp_path / "data", "valid")
    (tmp_path / "found.json").write_text(
        '[{"image_id": 0, "category_id": 1, "bbox": [5, 5, 30, 20], "score": 0.5}]'
    )
    words = ["--predictions", tmp_path / "found.json"]
    words += ["--annotations", folder / "annotations" / "instances_valid.json"]
    assert evaluate.main(list(map(str, words))) == 0
    assert "IoU .50" in capsys.readouterr().out


def test_a_variable_that_jax_refuses_when_it_is_imported() -> None:
    environment = os.environ | {"JAX_ENABLE_X64": "maybe", "MPLBACKEND": "nothing"}
    command = [sys.executable, "-c", "import harmonic_jax.cli"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX does not start with a variable of this environment")
    assert "JAX_ENABLE_X64" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user whom the system does not know, in a container say; with a folder to work in."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


def test_a_user_without_a_home(homeless, tmp_path: Path) -> None:
    assert cache_folder() is None
    with pytest.raises(Exception, match=r"is not prepared under tensorflow_datasets \(data.root"):
        open_builders(DataConfig(name="coco/2017"))
    with pytest.raises(ConfigError, match="~/photos: there is no such file"):
        find_inputs(["~/photos"])
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_is_whole_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/harmonic_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() is None
