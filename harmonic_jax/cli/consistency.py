"""The consistency report of `eval`: boxes before NMS, pictures, and the files that are written."""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from harmonic_jax.coco_format.files import CocoFile, images_of
from harmonic_jax.coco_format.values import as_int64, side, text
from harmonic_jax.config import ConfigError, DataConfig
from harmonic_jax.data.decode import ImageError, decode_image, decode_record
from harmonic_jax.data.file_names import NamedFiles
from harmonic_jax.data.image_file import read_image_file
from harmonic_jax.data.records import DataError, DetectionSource
from harmonic_jax.files import write_text
from harmonic_jax.inference.detector import with_postprocess
from harmonic_jax.json_file import read_json, shown
from harmonic_jax.metrics.at_score import Rows, confusion_table, slice_table
from harmonic_jax.metrics.consistency.report import format_report, report_of
from harmonic_jax.metrics.consistency.sampling import sample_metrics
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.files import save_coco_annotations, save_coco_results, save_raw
from harmonic_jax.metrics.matching import IouType
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, concatenate_detections
from harmonic_jax.report import Images, write_page
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.terminal import printable
from harmonic_jax.training.evaluation import with_labels
from harmonic_jax.training.saved_run import SavedRun
from harmonic_jax.training.sharding import replicated
from harmonic_jax.training.state import Variables
from harmonic_jax.training.step import make_predict_step

MOST_RAW_BOXES = 2000


class RawPredictions:
    """A predict step that keeps what a detector finds in the images before NMS as well.

    NMS at IoU 1 removes nothing. What comes before it stays as the config has it: the score
    threshold, and the best candidates of each level or class. They have no masks.
    `labels` are those of its classes in the source, from `match_classes`.
    """

    def __init__(
        self, run: SavedRun, labels: np.ndarray, source: DetectionSource, mesh: Mesh
    ) -> None:
        raw = with_postprocess(run, nms="class", nms_iou=1.0, max_detections=MOST_RAW_BOXES)
        step = make_predict_step(run.detector, mesh)
        raw_step = make_predict_step(raw.detector, mesh, masks=False)

        @functools.partial(jax.jit, out_shardings=replicated(mesh))
        def both(variables: Variables, batch: Batch) -> tuple[Detections, Detections, jax.Array]:
            # Two programs of one network: the compiler sees it, and computes the network once.
            found, index = step(variables, batch)
            return found, raw_step(variables, batch)[0], index

        self.step = both
        self._labels = labels
        self._image_ids = np.array([record.image_id for record in source.records], np.int64)
        self._tables: list[DetectionTable] = []
        self._num_full = 0

    def __call__(self, variables: Variables, batch: Batch) -> tuple[Detections, jax.Array]:
        found, raw, index = self.step(variables, batch)
        raw, rows = jax.device_get((raw, index))
        raw = with_labels(raw, self._labels)
        self._num_full += int(raw.valid.all(axis=1).sum())
        ids = self._image_ids[np.clip(rows, 0, len(self._image_ids) - 1)]  # empty slots: no boxes
        table = DetectionTable.from_padded(ids, raw.boxes, raw.scores, raw.labels, raw.valid)
        self._tables.append(table)
        return found, index

    def found(self) -> tuple[DetectionTable, int]:
        """The best `MOST_RAW_BOXES` of each image, and how many images have so many: they may have
        had more."""
        return concatenate_detections(self._tables), self._num_full


def write_consistency(
    folder: Path,
    truth: GroundTruthTable,
    found: DetectionTable,
    raw: DetectionTable | None,
    *,
    num_full: int = 0,
    iou_type: IouType = "bbox",
    resamples: int,
    images: Images,
    title: str,
    at_score: Rows,
    slices: str | None,
) -> tuple[dict[str, Any], list[Path]]:
    """Computes the report and writes it, as files and as a page; and what `compare` reads without
    the data set: annotations and detections in COCO format (boxes; masks with "segm"), and boxes
    before NMS.

    The folder is made if absent, and files of an earlier report in it are replaced. Of `num_full`
    images not all boxes before NMS are there, perhaps. `at_score` is of `class_table`; with it
    come what is taken for what at that score and IoU, and the slices by the rule of `slices_of`.
    """
    notes: tuple[str, ...] = ()
    if iou_type == "segm":
        notes = ("every IoU is of masks; boxes before NMS have none: what NMS loses is not known",)
    elif raw is None:
        notes = ("boxes before NMS were not given: what NMS loses is not known",)
    elif num_full:
        notes = (
            f"of {num_full} images only the best {MOST_RAW_BOXES} boxes before NMS were kept: "
            "what NMS loses there may be more",
        )
    if iou_type == "bbox":
        truth = dataclasses.replace(truth, masks=None)
        found = dataclasses.replace(found, masks=None)
    case, pooled = Study(truth, found, raw, iou_type), at_score[0]
    confusion = confusion_table(case, score=pooled["score"], iou=pooled["iou"])
    tables = {"at_score": at_score, "confusion": confusion}
    if slices is not None:
        parts, told = slices_of(slices, images, truth.original_ids)
        best, notes = pooled["best_score"] or 0.0, (*notes, *told)
        tables["slices"] = slice_table(case, parts, score=best, resamples=resamples)
    samples = sample_metrics(case, resamples=resamples, seed=0)
    report = report_of(case, samples, notes=notes)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("consistency.json", "consistency.txt", "annotations.json", "detections.json")
    files = [folder / name for name in names]
    write_text(files[0], json.dumps(report, indent=2, allow_nan=False) + "\n")
    write_text(files[1], printable(format_report(report)) + "\n")
    save_coco_annotations(files[2], truth, images.names)
    save_coco_results(files[3], found, truth.category_ids, truth.original_ids)
    raw_file = folder / "raw_boxes.npz"
    raw_file.unlink(missing_ok=True)
    if case.raw is not None:
        save_raw(raw_file, case.raw, truth.category_ids)
        files.append(raw_file)
    files += [write_rows(folder / f"{name}.csv", rows) for name, rows in tables.items() if rows]
    return report, files + write_page(folder, case, report | tables, images, title=title)


def write_rows(path: Path, rows: Rows) -> Path:
    """Writes a table as comma-separated values."""
    text = io.StringIO()
    lines = [rows[0], *(row.values() for row in rows)]
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(path, text.getvalue())
    return path


def slices_of(
    rule: str, images: Images, original_ids: Mapping[int, int | str]
) -> tuple[dict[str, list[int]], list[str]]:
    """The ids of the images by "size" (of the longer side), by "folder", or by the tags of a JSON
    file, {file name or id: [tag, ..]}; and, if so, a note that it names others.
    """
    tags = {} if rule in ("size", "folder") else read_json(rule, unique_keys=True)
    legal = "it must be {image: [tag, ..], ..}"
    if not isinstance(tags, dict):
        raise ConfigError(f"{rule} is {shown(tags)}; {legal}")
    for key, given in tags.items():
        if not isinstance(given, list) or not all(isinstance(tag, str) for tag in given):
            raise ConfigError(f"{rule}: {key} is {shown(given)}; {legal}")
    slices: dict[str, list[int]] = {}
    names = {key: images.names.get(key, "") for key in {**images.sizes, **images.names}}
    own_ids = {key: str(original_ids.get(key, key)) for key in names}
    for key, name in names.items():
        given = [*tags.get(name, ()), *tags.get(own_ids[key], ())] or ["untagged"]
        if rule == "size":
            side = max(images.sizes.get(key, (0,)))
            given = [f"longer side up to {1 << (side - 1).bit_length()}" if side else "unknown"]
        elif rule == "folder":
            given = [str(PurePosixPath(name.replace("\\", "/")).parent)]
        for tag in given:
            slices.setdefault(tag, []).append(key)
    others = sorted(tags.keys() - names.values() - set(own_ids.values()))
    told = [f"{len(others)} names in {rule} are of no image, as {others[0]!r}"] if others else []
    return slices, told


def images_of_source(source: DetectionSource, *, max_pixels: int) -> Images:
    """The images of a data set; those that cannot be decoded are left out."""
    place = {record.image_id: i for i, record in enumerate(source.records)}
    sizes = {record.image_id: (record.height, record.width) for record in source.records}
    names = {record.image_id: record.file_name for record in source.records}
    decode = functools.partial(decode_record, source, max_pixels=max_pixels)
    return _images(lambda key: decode(place[key]).image, names, sizes)


def images_of_folder(file: CocoFile, folder: Path | None) -> Images:
    """The images that a COCO annotation file names.

    Args:
      file: its images have been checked already.
      folder: where the image files lie; None: their names and sizes alone.

    Raises:
      DataError: none of them is there.
    """
    entries = {as_int64(key): entry for key, entry in images_of(file, lambda fault: None).items()}
    names = {key: e["file_name"] for key, e in entries.items() if text(e.get("file_name"))}
    stated = {key: (side(e.get("height")), side(e.get("width"))) for key, e in entries.items()}
    sizes = {key: (height, width) for key, (height, width) in stated.items() if height and width}
    if folder is None:
        return Images(None, names, sizes)
    files = NamedFiles(folder)
    found = {key: files.find(name) for key, name in names.items()}
    paths = {key: folder / file[0] for key, file in found.items() if file}
    if not paths:
        example = shown(next(iter(names.values()), None))
        raise DataError(
            f"--images {folder} holds none of the images that {file.name} names (as {example})"
        )
    decode = functools.partial(decode_image, max_pixels=DataConfig().max_pixels)

    def pixels(key: int) -> np.ndarray:
        return decode(read_image_file(paths[key]), annotated_size=sizes.get(key)).image

    return _images(pixels, names, sizes)


def _images(
    decode: Callable[[int], np.ndarray],
    names: dict[int, str],
    sizes: dict[int, tuple[int, int]],
) -> Images:
    def pixels(key: int) -> np.ndarray | None:
        try:
            return decode(key)
        except (KeyError, OSError, ImageError):
            return None

    return Images(pixels, names, sizes)
