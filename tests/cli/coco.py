"""Folders in COCO layout, made for a test."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np


def write_coco(
    folder: Path,
    split: str,
    *,
    names: Sequence[str] = ("a", "b", "c"),
    number: int = 2,
    broken: Sequence[int] = (),
    seed: int = 0,
    files: Sequence[str] | None = None,
) -> Path:
    """A split of images of 40 x 60 pixels with one object each, of one class after the other.

    Args:
      folder: made if absent; further splits may be added.
      split: its name.
      names: of the classes, with the ids 1, 2, ..
      number: of images.
      broken: the images that no decoder reads.
      seed: of the pixels.
      files: names of the images; None: 0.png, 1.png, ..
    """
    files = [f"{i}.png" for i in range(number)] if files is None else files
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    rng = np.random.default_rng(seed)
    for i, name in enumerate(files):
        image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        data = cv2.imencode(".png", image)[1].tobytes()
        (folder / split / name).parent.mkdir(exist_ok=True)
        (folder / split / name).write_bytes(data[:60] if i in broken else data)
    content = {
        "images": [
            {"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(files)
        ],
        "annotations": [
            {
                "id": i + 1, "image_id": i, "category_id": 1 + i % len(names),
                "bbox": [5, 5, 30, 20], "area": 600, "iscrowd": 0,
            }
            for i in range(len(files))
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
    }  # fmt: skip
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
