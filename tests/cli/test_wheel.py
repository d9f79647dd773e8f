"""What `pip install harmonic_jax-*.whl` gives: the command from any folder, and pure modules."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import harmonic_jax
from harmonic_jax.cli.configs import list_configs
from tests.cli.conftest import ROOT, Command

# What jax itself needs; with `.libs` beside those that bring libraries.
WITH_JAX = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy")


def test_the_version_stands_in_one_place(installed: Path) -> None:
    (info,) = installed.glob("harmonic_jax-*.dist-info")
    assert info.name == f"harmonic_jax-{harmonic_jax.__version__}.dist-info"
    assert f"## {harmonic_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_holds_the_configs_and_no_tests(installed: Path) -> None:
    names = {path.stem for path in (installed / "harmonic_jax" / "configs").glob("*.py")}
    assert names == set(list_configs())
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {
        "bin", "harmonic_jax",
    }  # fmt: skip
    assert (installed / "harmonic_jax" / "py.typed").exists()
    assert (installed / "harmonic_jax" / "data" / "scenes" / "LICENSE-fashion-mnist").exists()


def test_the_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    """Pages, pictures and data too: what is missing there breaks a command of a user's alone."""
    inside = ROOT / "harmonic_jax"
    names = {
        str(path.relative_to(inside))
        for path in inside.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    missing = {name for name in names if not (installed / "harmonic_jax" / name).exists()}
    assert not missing


def test_the_wheel_holds_published_detectors(installed: Path, command: Command) -> None:
    folder = installed / "harmonic_jax" / "published" / "stand_in"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "README.md"}
    done = command("export-weights", "stand_in", "--out", "x", "--card")
    assert done.returncode == 1
    assert f"weights file {folder}/model.safetensors is a text" in done.stderr
    done = command("export-weights", "nothing", "--out", "x", "--card")
    assert re.search("in this install of harmonic_jax: .*stand_in", done.stderr)


def test_the_command_lists_the_configs(installed: Path, command: Command) -> None:
    listed = command("train")
    assert listed.returncode == 2
    assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == list(list_configs())


@pytest.mark.parametrize(
    "module", ["harmonic_jax.losses", "harmonic_jax.ops", "harmonic_jax.metrics.coco"]
)
def test_beside_a_bare_jax(installed: Path, tmp_path, module: str) -> None:
    """In an environment that has nothing but jax and numpy."""
    packages = Path(jax.__file__).parent.parent
    for name in (*WITH_JAX, "numpy.libs", "scipy.libs"):
        if (packages / name).exists():
            (tmp_path / name).symlink_to(packages / name)
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import {module}; print({module}.__file__)"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(installed))
