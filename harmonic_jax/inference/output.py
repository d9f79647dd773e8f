"""The folder that `predict` writes: pictures, results in COCO format, and what their ids mean.

OUT/
  detections.json    COCO results: image_id, category_id, bbox, score (and segmentation)
  images.json        images and categories of these ids, in the form of a COCO annotation file
  pictures/          an image each, and a video each, with what was found drawn on it
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.config import ConfigError
from harmonic_jax.files import write_text
from harmonic_jax.inference.detections import ImageDetections, detection_table
from harmonic_jax.metrics.results_json import save_coco_results

DETECTIONS, IMAGES, PICTURES = "detections.json", "images.json", "pictures"
_MADE_BY = "harmonic_jax predict"


def open_folder(folder: Path, inputs: Iterable[Path]) -> Path:
    """Makes the folder, or checks that it is one of ours, whose files may be replaced.

    Args:
      folder: where to write.
      inputs: the files that are read, none of which may lie where files are written.

    Raises:
      ConfigError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose a folder with --out")
    if folder.exists() and any(folder.iterdir()) and not _is_ours(folder):
        raise ConfigError(
            f"{folder} holds files that are not of an earlier prediction; "
            "choose a new folder with --out"
        )
    pictures = (folder / PICTURES).resolve()
    for path in inputs:
        if path.resolve().is_relative_to(pictures):
            raise ConfigError(
                f"{path} is an input and lies where pictures are written; choose another folder "
                "with --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / IMAGES, json.dumps({"info": {"made_by": _MADE_BY}, "images": []}))
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        content = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
        return bool(content["info"]["made_by"] == _MADE_BY)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_results(
    folder: Path,
    images: Sequence[dict[str, Any]],
    found: Sequence[tuple[int, ImageDetections]],
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> list[Path]:
    """Writes detections.json and images.json.

    Args:
      folder: made by `open_folder`.
      images: entries of COCO's `images`: id, file_name, width, height, and more.
      found: (image id, detections).
      class_names, category_ids: of the detector.

    Returns:
      The files.
    """
    results = folder / DETECTIONS
    ordered = sorted(found, key=lambda item: item[0])
    save_coco_results(results, detection_table(ordered), category_ids)
    categories = [
        {"id": int(category), "name": name}
        for category, name in zip(category_ids, class_names, strict=True)
    ]
    content = {
        "info": {"made_by": _MADE_BY},
        "images": sorted(images, key=lambda entry: entry["id"]),
        "categories": categories,
        "annotations": [],
    }
    write_text(folder / IMAGES, json.dumps(content))
    return [results, folder / IMAGES]
