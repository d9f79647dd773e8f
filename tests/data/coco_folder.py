"""Writes small folders in COCO's layout, and reads them."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from harmonic_jax.config import DataConfig
from harmonic_jax.data.coco import read_coco
from harmonic_jax.data.folders import FolderSource

CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}]


def image(identity: Any, name: Any, **fields: Any) -> dict[str, Any]:
    return {"id": identity, "file_name": name, "height": 30, "width": 40} | fields


def thing(identity: Any, image_id: Any, bbox: Any = (1, 2, 3, 4), **fields: Any) -> dict[str, Any]:
    entry = {"id": identity, "image_id": image_id, "bbox": bbox, "category_id": 9, "iscrowd": 0}
    return entry | fields


def write(
    root: Path,
    images: list[Any],
    annotations: list[Any],
    *,
    categories: Any = CATEGORIES,
    files: tuple[str, ...] = ("a.png", "b.png"),
) -> Path:
    """A split `train` with images of 30 x 40 pixels; the path of its annotations."""
    path = root / "annotations" / "instances_train.json"
    path.parent.mkdir(parents=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    for name in files:
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / "train" / name)
    return path


def read(root: Path, split: str = "train", *, masks: bool = False) -> FolderSource:
    return read_coco(root, split, DataConfig(masks=masks))


def counts(source: Any) -> dict[str, int]:
    return {rule: finding.count for rule, finding in source.report.findings.items()}
