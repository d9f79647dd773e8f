"""A small folder in COCO layout, and commands run as a user types them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from harmonic_jax.cli import train
from tests.cli.untrained import replace_network

ROOT = Path(__file__).parent.parent.parent
_SHORT = (
    *("--model.backbone.depth", "10", "--model.backbone.width", "8", "--model.channels", "16"),
    *("--data.short-sides", "64", "--data.max-side", "64", "--train.batch-size", "2"),
    *("--train.steps", "2", "--train.eval-every", "0", "--optim.warmup-steps", "0"),
)
SMALL = (
    *("--model.levels", "5", "5", "--model.head-convs", "2", "--model.anchors.scales", "0.5"),
    *_SHORT,
)
SMALL_RUNS = {
    "retinanet": ("retinanet_r18_scenes", *SMALL, "--model.prior", "0.3"),
    "rtdetr": (
        *("rtdetr_r18_finetune", "--init", "None", "--model.backbone.norm", "batch", *_SHORT),
        *("--model.ffn", "16", "--model.decoder-ffn", "16", "--model.decoder-channels", "16"),
        *("--model.decoder-layers", "2", "--model.num-queries", "12", "--data.max-objects", "6"),
        *("--model.num-heads", "2"),
    ),
}
"""Config and options of two steps of a small detector."""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with one or two rectangles each; the same for training and evaluation."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "pictures").mkdir()
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(6):
        picture = rng.integers(0, 90, (60, 64, 3), dtype=np.uint8)
        for _ in range(1 + i % 2):
            x, y, w, h = (int(v) for v in rng.integers((2, 2, 16, 16), (30, 26, 30, 30)))
            picture[y : y + h, x : x + w] = rng.integers(150, 255, 3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + i,
                    "category_id": 3 + 4 * (i % 2),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        cv2.imwrite(str(folder / "pictures" / f"{i}.png"), picture)
        images.append({"id": 10 + i, "file_name": f"{i}.png", "height": 60, "width": 64})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "odd"}, {"id": 7, "name": "even"}],
    }
    (folder / "annotations" / "instances_pictures.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel of this checkout was installed to, with a detector in it."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("harmonic_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    published = source / "harmonic_jax" / "published" / "stand_in"
    published.mkdir(parents=True)
    for name in ("model.safetensors", "README.md"):
        (published / name).write_text("stand-in")
    build = ["wheel", "--no-build-isolation", "--wheel-dir", folder, source]
    install = ["install", "--find-links", folder, "--no-index", "--target", folder / "site"]
    for words in (build, [*install, "harmonic-jax"]):
        pip = [sys.executable, "-m", "pip", *map(str, words), "--no-deps", "--quiet"]
        subprocess.run(pip, check=True)
    return folder / "site"


@pytest.fixture(scope="session")
def command(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs the installed command in a folder outside of the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, installed / "bin" / "harmonic-jax", *map(str, args)],
            cwd=folder,
            env=os.environ | {"COLUMNS": "200", "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs have no network; see tests/cli/untrained.py."""
    replace_network(monkeypatch)


Trained = Callable[..., tuple[int, str, Path]]


@pytest.fixture
def trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Trained:
    """Trains on the splits `train` and `valid` of a folder: status, what was printed, the run."""

    def run(data: Path) -> tuple[int, str, Path]:
        folder = tmp_path / "run"
        words = [
            "retinanet_r18_scenes",
            "--data.format=coco",
            "--data.train-split=train",
            "--data.eval-split=valid",
        ]
        words += [f"--data.root={data}", f"--run-dir={folder}", *SMALL]
        status = train.main(words)
        shown = capsys.readouterr()
        return status, shown.out + shown.err, folder

    return run
