"""A small folder in COCO layout, and commands run as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent


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
def command():
    def run(*args: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=ROOT,
            env=os.environ | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
