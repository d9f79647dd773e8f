"""The folder that `predict` writes: pictures, results in COCO format, and what their ids mean.

OUT/
  detections.json    COCO results: image_id, category_id, bbox, score (and segmentation)
  images.json        images and categories of these ids, in the form of a COCO annotation file;
                     its `info` lists the names in pictures/
  pictures/          an image each, and a video each, with what was found drawn on it
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.config import ConfigError
from harmonic_jax.files import write_text
from harmonic_jax.inference.detections import ImageDetections, detection_table
from harmonic_jax.inference.inputs import is_video, unique_names
from harmonic_jax.json_file import read_json
from harmonic_jax.metrics.files import save_coco_results

DETECTIONS, IMAGES, PICTURES = "detections.json", "images.json", "pictures"
_MADE_BY = "harmonic_jax predict"


class OutputFolder:
    """The folder of one `predict`, opened anew: what an earlier one wrote there is gone.

    Files that no `predict` wrote stay, those in pictures/ too.

    Args:
      folder: where to write; new, empty, or of an earlier prediction.
      inputs: the files that are read, none of which may lie where files are written.

    Attributes:
      pictures: the file for the picture or video of each input; empty where none are drawn.

    Raises:
      ConfigError: the folder holds something else.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Sequence[Path],
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        draws: bool = True,
    ) -> None:
        self.path = folder
        self._categories = tuple(zip(map(int, category_ids), class_names, strict=True))
        earlier = _earlier_pictures(folder)
        drawn = folder / PICTURES
        for path in inputs:
            if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(drawn)):
                raise ConfigError(
                    f"{path} is an input and lies where pictures are written; choose another "
                    "folder with --out"
                )
        folder.mkdir(parents=True, exist_ok=True)
        self.pictures: dict[Path, Path] = {}
        if draws:
            drawn.mkdir(exist_ok=True)
            foreign = {path.name for path in drawn.iterdir()} - set(earlier)
            videos = [path for path in inputs if is_video(path)]
            images = [path for path in inputs if not is_video(path)]
            for paths, suffix in ((images, ".jpg"), (videos, ".mp4")):
                names = unique_names(paths, suffix, foreign)
                self.pictures |= {p: drawn / n for p, n in zip(paths, names, strict=True)}
        # Both lists, until the earlier files are gone: this may end at any moment.
        self._listed = sorted({path.name for path in self.pictures.values()} | set(earlier))
        self.save([], [])
        for name in earlier:
            with contextlib.suppress(FileNotFoundError):
                (drawn / name).unlink()
        if not draws:
            with contextlib.suppress(OSError):
                drawn.rmdir()  # where nothing is left in it

    def save(
        self, images: Sequence[dict[str, Any]], found: Sequence[tuple[int, ImageDetections]]
    ) -> None:
        """Writes detections.json and images.json, each whole.

        Args:
          images: entries of COCO's `images`: id, file_name, width, height, and more.
          found: (image id, detections).
        """
        table = detection_table(sorted(found, key=lambda item: item[0]))
        save_coco_results(self.path / DETECTIONS, table, [id for id, _ in self._categories])
        content = {
            "info": {"made_by": _MADE_BY, PICTURES: self._listed},
            "images": sorted(images, key=lambda entry: entry["id"]),
            "categories": [{"id": id, "name": name} for id, name in self._categories],
            "annotations": [],
        }
        write_text(self.path / IMAGES, json.dumps(content))


def _earlier_pictures(folder: Path) -> list[str]:
    """Names in pictures/ that an earlier prediction listed; refuses a folder of something else."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose a folder with --out")
    if not folder.exists() or not any(folder.iterdir()):
        return []
    try:
        info = read_json(folder / IMAGES)["info"]
        names = info.get(PICTURES, []) if info["made_by"] == _MADE_BY else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        names = None
    if not isinstance(names, list):
        raise ConfigError(
            f"{folder} holds files that are not of an earlier prediction; "
            "choose a new folder with --out"
        )
    # The file may come from elsewhere: no name may lead out of pictures/, or to a folder.
    plain = [name for name in names if isinstance(name, str) and name == os.path.basename(name)]
    return [name for name in plain if os.path.isfile(folder / PICTURES / name)]
