"""`harmonic-jax compare A B`: two detectors on the same images, number by number."""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional

from harmonic_jax.cli.command import command, print_and_save
from harmonic_jax.cli.consistency import images_of_folder, images_of_source
from harmonic_jax.cli.options import UsageError
from harmonic_jax.coco_format.files import read_coco_file
from harmonic_jax.config import ConfigError, DataConfig
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sources import open_source
from harmonic_jax.files import check_writable, make_folder
from harmonic_jax.metrics.consistency.compare import compare_samples, format_comparison
from harmonic_jax.metrics.consistency.sampling import RESAMPLES, Samples, sample_metrics
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.files import load_coco_annotations, load_coco_results, load_raw
from harmonic_jax.metrics.matching import IouType
from harmonic_jax.metrics.tables import GroundTruthTable
from harmonic_jax.report import Images, write_comparison
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.evaluation import without_unknown_masks
from harmonic_jax.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare two detectors on the same images.

    A and B are each the folder of a run (its report's detections, and its data set; boxes before
    NMS too after `eval RUN --report RUN/report`), a folder that
    `eval --report DIR` wrote (its detections, boxes before NMS and annotations), or a COCO results
    file, with --annotations. Several runs a side, seeds of one training: --a RUN .. --b RUN ..
    """

    pair: Positional[tuple[Path, ...]] = ()
    """A and B: one run a side."""
    a: tuple[Path, ...] = ()
    """Several runs."""
    b: tuple[Path, ...] = ()
    """Several others."""
    annotations: Path | None = None
    """Of the images, in COCO format."""
    iou_type: IouType = "bbox"
    """Overlaps of boxes, or with segm those of masks."""
    root: str | None = None
    """Where the data of the runs lies now, if it has moved."""
    json: Path | None = None
    """File to write all numbers to."""
    report: Path | None = None
    """Folder to write comparison.html to: differences, curves, and images where A and B differ."""
    images: Path | None = None
    """Folder with the images of the annotations, for --report, where there is no run."""
    resamples: Annotated[int, "[1, 100000]"] = RESAMPLES
    """Of the images, for the intervals."""


@dataclasses.dataclass(frozen=True)
class _Side:
    """What a path on the command line stands for."""

    path: Path
    detections: Path
    raw: Path | None = None
    annotations: Path | None = None
    run: RunFolder | None = None


@command(Options, "compare")
def main(options: Options) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    if options.json is not None:
        check_writable(options.json)
    if options.report is not None:
        make_folder(options.report)
    elif options.images is not None:
        raise UsageError("--images goes with --report DIR")
    a, b = ([_side(path) for path in paths] for paths in _paths(options))
    truth = _truth([*a, *b], options)
    is_of_boxes = options.iou_type == "bbox"
    images = _images([*a, *b], options) if options.report is not None else None
    has_raw = is_of_boxes and all(side.raw is not None for side in [*a, *b])
    samples = [[_sample(side, truth, options, raw=has_raw) for side in part] for part in (a, b)]
    result = compare_samples(*samples)
    names = [", ".join(str(side.path) for side in part) for part in (a, b)]
    text = format_comparison(result, names=(names[0], names[1]))
    if not has_raw:
        reason = "not both sides have boxes before NMS" if is_of_boxes else "it is lost in boxes"
        text += f"\n\nWhat NMS loses is not compared: {reason}."
    print_and_save(Terminal(), text, result, options.json)
    if options.report is not None and images is not None:
        cases = [[_study(side, truth, options) for side in part] for part in (a, b)]
        title = f"A: {names[0]}; B: {names[1]}"
        file = write_comparison(options.report, result, cases, images, title=title)
        Terminal().print(f"written: {file}")
    return 0


def _paths(options: Options) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    if len(options.pair) == 2 and not options.a and not options.b:
        return options.pair[:1], options.pair[1:]
    if not options.pair and options.a and options.b:
        return options.a, options.b
    raise UsageError("give two runs, or several a side: compare A B, or compare --a A A --b B B")


def _side(path: Path) -> _Side:
    """Raises ConfigError where there is nothing to compare at this path."""
    if path.is_file():
        return _Side(path, path)
    run = RunFolder(path)
    is_run = run.config.exists()
    folder = run.report if is_run else path
    found = folder / "detections.json"
    if not found.exists():
        what = f"has no {found}" if is_run else "is no run, nor a results file"
        raise ConfigError(
            f"{path} {what}, nor a folder that `harmonic-jax eval RUN --report DIR` wrote, which "
            "may be compared in place of a run"
        )
    files = (folder / "raw_boxes.npz", folder / "annotations.json")
    raw, annotations = (file if file.exists() else None for file in files)
    return _Side(path, found, raw, annotations, run if is_run else None)


def _truth(sides: list[_Side], options: Options) -> GroundTruthTable:
    """The one ground truth of all sides; refuses different ones."""
    masks = options.iou_type == "segm"
    if options.annotations is not None:
        return load_coco_annotations(options.annotations, masks=masks)
    known = {}
    for side in sides:
        if side.run is not None:
            known[side.path] = _of_run(side.run, options)
        elif side.annotations is not None:
            known[side.path] = load_coco_annotations(side.annotations, masks=masks)
    if not known:
        raise ConfigError("two results files need --annotations FILE, of the images they are of")
    (first, truth), *others = known.items()
    for path, other in others:
        if not _same(truth, other):
            raise ConfigError(f"{first} and {path} were evaluated on different images or objects")
    return truth


def _source(run: RunFolder, options: Options) -> tuple[DataConfig, DetectionSource]:
    data = run.read_config().data
    data = dataclasses.replace(data, root=options.root or data.root)
    return data, open_source(data, data.eval_split)


def _of_run(run: RunFolder, options: Options) -> GroundTruthTable:
    _, source = _source(run, options)
    names, ids = source.class_names, source.category_ids
    truth = GroundTruthTable.from_records(source.records, names, ids, source.federation)
    return without_unknown_masks(truth) if options.iou_type == "segm" else truth


def _images(sides: list[_Side], options: Options) -> Images:
    run = next((side.run for side in sides if side.run is not None), None)
    if run is not None:
        data, source = _source(run, options)
        return images_of_source(source, max_pixels=data.max_pixels)
    file = options.annotations or next(side.annotations for side in sides if side.annotations)
    return images_of_folder(read_coco_file(file, segmentations=False), options.images)


def _same(a: GroundTruthTable, b: GroundTruthTable) -> bool:
    """Whether two tables hold the same objects of the same images, in any order."""

    def rows(table: GroundTruthTable) -> np.ndarray:
        category = np.array(table.category_ids, np.int64)[table.labels]
        columns = np.column_stack([table.image_id, category, table.boxes.round(3)])
        return columns[np.lexsort(columns.T)]

    if set(a.image_ids.tolist()) != set(b.image_ids.tolist()):
        return False
    of_a, of_b = rows(a), rows(b)
    return of_a.shape == of_b.shape and bool(np.allclose(of_a, of_b, atol=0.01))


def _sample(side: _Side, truth: GroundTruthTable, options: Options, *, raw: bool) -> Samples:
    case = _study(side, truth, options, raw=side.raw if raw else None)
    return sample_metrics(case, resamples=options.resamples, seed=0)


def _study(
    side: _Side, truth: GroundTruthTable, options: Options, *, raw: Path | None = None
) -> Study:
    found = load_coco_results(side.detections, truth, masks=options.iou_type == "segm")
    boxes = None if raw is None else load_raw(raw, truth)
    return Study(truth, found, boxes, options.iou_type)
