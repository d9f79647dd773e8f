"""`harmonic-jax eval RUN`, or `eval --predictions P.json --annotations A.json`."""

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from harmonic_jax.cli.command import INPUT_FAILURES, command, print_and_save, run_as_process
from harmonic_jax.cli.consistency import (
    RawPredictions,
    images_of_folder,
    images_of_source,
    slices_of,
    write_consistency,
    write_rows,
)
from harmonic_jax.cli.options import FLAT, UsageError, given_options
from harmonic_jax.cli.predict import InferenceOptions
from harmonic_jax.coco_format.files import CocoFile, read_coco_file
from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.data.sources import open_source
from harmonic_jax.files import check_writable, make_folder
from harmonic_jax.inference.augmentation import AugmentedPredict
from harmonic_jax.inference.detector import with_nms
from harmonic_jax.metrics.at_score import Rows, class_table
from harmonic_jax.metrics.coco import coco_metrics, format_table, mask_metrics
from harmonic_jax.metrics.consistency.report import format_overall
from harmonic_jax.metrics.consistency.sampling import RESAMPLES
from harmonic_jax.metrics.files import (
    MaskError,
    ground_truth_from_coco,
    load_coco_results,
    load_raw,
    with_masks,
)
from harmonic_jax.metrics.params import COCO_PARAMS, CocoParams
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.pretrained.hub import is_published
from harmonic_jax.report import Images
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.compilation import use_compilation_cache
from harmonic_jax.training.evaluation import (
    MatchedPredictions,
    classes_found,
    evaluate,
    match_classes,
    without_unknown_masks,
)
from harmonic_jax.training.processes import ProcessOptions, is_primary, run_on_all, run_on_primary
from harmonic_jax.training.results import write_results
from harmonic_jax.training.saved_run import open_detector
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.step import make_predict_step
from harmonic_jax.training.watchdog import exit_on_lost_process, process_watchdog

_MASKS = {None: None, "bbox": False, "segm": True}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What goes with a run alone."""

    last: bool = False
    """The newest checkpoint instead of the best."""
    root: Annotated[str | None, arg(aliases=("--data.root",))] = None
    """Where the data lies now, if it has moved."""
    format: Literal["tfds", "coco", "voc", "yolo"] | None = None
    """Of other data."""
    name: str | None = None
    """The TFDS name of other data."""
    batch_size: Annotated[int | None, "[1, 65536]"] = None
    """Images at a time."""
    split: str | None = None
    """The split to evaluate on; None: the config's."""
    out: Path | None = None
    """Folder for the report; None: one in the run's folder, named after the data, the split, the
    step and the options."""


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """What goes with a results file alone."""

    predictions: Path | None = None
    """Detections in COCO results format."""
    annotations: Path | None = None
    """Annotations in COCO format."""
    raw_predictions: Path | None = None
    """Boxes before NMS that belong to --predictions, for --report."""
    images: Path | None = None
    """Folder with the images of --annotations, for the pictures of --report."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate a run, or a COCO results file of any detector."""

    run: Positional[Path | None] = None
    """The folder of a run, runs/NAME, or a file of one; retinanet_lite0_voc, hf:OWNER/NAME and
    torchvision:NAME are published detectors."""
    of_run: Annotated[RunOptions, FLAT] = RunOptions()
    of_files: Annotated[FileOptions, FLAT] = FileOptions()
    iou_type: Literal["bbox", "segm"] | None = None
    """Of files boxes or masks alone; None: boxes, and masks where every entry of both has one. Of
    --report the overlaps of boxes, or with segm those of masks."""
    coco: Annotated[CocoParams, FLAT] = COCO_PARAMS
    score_threshold: Annotated[float, "[-1e30, 1e30]"] = 0.5
    """Of precision, recall and F1, and of what is taken for what in --report."""
    match_iou: Annotated[float, "(0, 1]"] = 0.5
    """Of a true positive, in these."""
    slices: str | None = None
    """For --report: size or folder of the images, or a JSON file, {file name or id: [tag, ..]}."""
    json: Path | None = None
    """File to write the numbers to."""
    report: Path | None = None
    """Folder to write how scores and boxes agree to (docs/consistency.md)."""
    resamples: Annotated[int, "[0, 100000]"] = RESAMPLES
    """Of the images, for the intervals of --report."""
    inference: Annotated[InferenceOptions, FLAT] = InferenceOptions()
    processes: Annotated[ProcessOptions, FLAT] = ProcessOptions()


@command(Options, "eval")
def main(options: Options) -> int:
    """Returns the exit status: 0 done, 1 failed with a message, 4 another process is lost."""
    _check(options)
    evaluate_it = _evaluate_files if options.run is None else _evaluate_run
    return run_as_process(
        options.processes,
        lambda console: evaluate_it(options, console),
        failures=INPUT_FAILURES,
        needs_devices=options.run is not None,
    )


def _check(options: Options) -> None:
    """Refuses options that do not go together, by a UsageError that names them."""
    files = options.of_files
    if options.run is None:
        if files.predictions is None or files.annotations is None:
            raise UsageError(
                "give the folder of a run, or both --predictions P.json and --annotations A.json"
            )
        for option in (*given_options(options.of_run), *given_options(options.inference)):
            raise UsageError(f"{option} goes with a run, not with --predictions")
    else:
        for option in given_options(files):
            raise UsageError(f"{option} goes with --predictions and --annotations, not with a run")
        if options.iou_type is not None and options.report is None:
            raise UsageError("--iou-type goes with --predictions, or with --report DIR of a run")
    if options.iou_type == "segm" and files.raw_predictions:
        raise UsageError("--raw-predictions are boxes: they go with --iou-type bbox")
    if options.report is None and (files.raw_predictions or files.images):
        option = "--raw-predictions" if files.raw_predictions else "--images"
        raise UsageError(f"{option} goes with --report DIR")
    if options.slices is not None:
        if options.report is None:
            raise UsageError("--slices goes with --report DIR")
        slices_of(options.slices, Images(), {})  # a wrong file is told before the evaluation


def _evaluate_files(options: Options, console: Terminal) -> int:
    if not is_primary():
        return 0
    paths = options.of_files
    assert paths.predictions is not None
    assert paths.annotations is not None
    file = read_coco_file(paths.annotations, segmentations=options.iou_type != "bbox")
    truth = ground_truth_from_coco(file)
    images = images_of_folder(file, paths.images) if options.report is not None else None
    try:
        found = load_coco_results(paths.predictions, truth, masks=_MASKS[options.iou_type])
    except MaskError as error:
        hint = "; --iou-type bbox evaluates the boxes alone" if options.iou_type is None else ""
        raise ConfigError(f"{error}{hint}") from error
    _check_outputs(options)
    metrics: dict[str, Any] = {}
    if options.iou_type != "segm":
        metrics = coco_metrics(truth, found, params=options.coco)
    if found.masks is not None:  # drawing the annotated ones takes seconds: not without need
        truth = _drawn(options, console, file, truth)
        metrics |= {} if truth.masks is None else mask_metrics(truth, found, options.coco)
    at_score = _tell(options, console, metrics, truth, found)
    if images is not None:
        raw = None if paths.raw_predictions is None else load_raw(paths.raw_predictions, truth)
        title = f"{paths.predictions.name} on {paths.annotations.name}"
        _write_agreement(options, console, at_score, truth, found, raw, images=images, title=title)
    return 0


def _tell(options: Options, console: Terminal, metrics: dict[str, Any], *tables: Any) -> Rows:
    """Prints and saves the numbers. Those at a score are of masks if --iou-type says so and all
    have one."""
    truth, found = options.coco.select(*tables)
    is_masked = options.iou_type == "segm" and truth.masks and found.masks
    at_score = metrics["at_score"] = class_table(
        truth, found, score=options.score_threshold, iou=options.match_iou,
        iou_type="segm" if is_masked else "bbox",
    )  # fmt: skip
    if truth.federation:
        console.print("federated annotations: the protocol is LVIS's (docs/metrics.md)\n")
    print_and_save(console, format_table(metrics), metrics, options.json)
    return at_score


def _drawn(
    options: Options, console: Terminal, file: CocoFile, truth: GroundTruthTable
) -> GroundTruthTable:
    """The table with its masks; without, and why, where the annotations are not all masks."""
    must = options.iou_type == "segm"
    try:
        drawn = with_masks(truth, file)
    except MaskError as error:
        if must:
            raise
        console.print(f"masks are left out: {error}\n")
        return truth
    if must and drawn.masks is None:
        raise ConfigError(f"{file.name}: no annotation has a segmentation")
    return drawn


def _evaluate_run(options: Options, console: Terminal) -> int:
    """What can be refused is refused first; then the numbers, and what may fail behind them."""
    assert options.run is not None
    chosen, inference = options.of_run, options.inference
    tta = inference.augmentation()
    use_compilation_cache()
    mesh = data_mesh()
    run = open_detector(options.run, sharding=replicated(mesh), last=chosen.last)
    run = with_nms(run, inference.nms, inference.nms_sigma)
    config = run_on_all(lambda: _with_options(run.config, chosen))
    split = chosen.split or config.data.eval_split
    source = run_on_all(lambda: open_source(config.data, split), primary_first=True)
    labels = match_classes(run.class_names, source.class_names, found=classes_found(source))
    name = f"eval_{data_slug(source.name, config.data, split)}_step{run.step}"
    place = options.run if options.run.is_dir() else options.run.parent
    place = Path() if is_published(options.run) else place
    folder = chosen.out or place / f"{name}{inference.suffix}{_params_suffix(options.coco)}"
    run_on_primary(lambda: _check_outputs(options, folder))
    console.print(f"step {run.step} of {options.run} on {source.name}")
    if source.report.findings:  # what is dropped is not in the numbers
        console.print(source.report.format())
    has_raw = options.report is not None and tta is None and options.iou_type != "segm"
    raw_step = None
    if tta is not None:
        step = AugmentedPredict(run.detector, mesh, tta).on_source(source)
    elif has_raw and run.config.model.postprocess.has_nms:
        step = raw_step = RawPredictions(run, labels, source, mesh)
    else:
        step = make_predict_step(run.detector, mesh)
    predict_step = MatchedPredictions(step, labels)
    with process_watchdog(config.train.step_timeout) as watchdog, exit_on_lost_process():
        what = (predict_step, run.variables, source, config, mesh)
        evaluation = evaluate(*what, watchdog=watchdog, params=options.coco)
        if is_primary():
            truth, metrics = evaluation.ground_truth, evaluation.metrics
            truth = without_unknown_masks(truth) if options.iou_type == "segm" else truth
            tables = (truth, evaluation.detections)
            at_score = _tell(options, console, metrics, *tables)
            console.print(f"images as they were loaded:\n{evaluation.loaded.format()}")
            if evaluation.warning:
                console.print(evaluation.warning)
            if predict_step.other_classes:
                console.print(
                    f"dropped {predict_step.num_dropped} detections of the "
                    f"{predict_step.other_classes} classes that {source.name} does not have"
                )
            with watchdog.paused():
                files = [write_rows(folder / "at_score.csv", at_score)]
                files += write_results(folder, evaluation, source, data=config.data)
                _print_files(console, files)
    if options.report is not None and is_primary():
        raw, num_full = None, 0
        if raw_step is not None:
            raw, num_full = raw_step.found()
        elif has_raw:
            raw = dataclasses.replace(evaluation.detections, masks=None)
        images = images_of_source(source, max_pixels=config.data.max_pixels)
        title = f"{options.run.name}, step {run.step}, on {source.name}"
        about: Any = {"num_full": num_full, "images": images, "title": title}
        _write_agreement(options, console, at_score, *tables, raw, **about)
    return 0


def data_slug(name: str, data: DataConfig, split: str) -> str:
    """Names a folder after data and split: no two have the same, whatever they are called.

    >>> data_slug("coco:photos:val", DataConfig(format="coco", root="/photos"), "val")[:-6]
    'coco_photos_val_'
    """
    root = os.path.realpath(data.root) if data.root is not None else ""
    facts = "\0".join([data.format, data.name, root, split])
    digest = hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{re.sub(r'[^a-zA-Z0-9.+-]+', '_', name)[:80]}_{digest[:6]}"


def _params_suffix(params: CocoParams) -> str:
    """Names a folder after other settings than COCO's; empty for those."""
    facts = [sorted(map(str, v)) if isinstance(v, frozenset) else v for v in vars(params).values()]
    digest = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()
    return "" if params == COCO_PARAMS else f"_params_{digest[:6]}"


def _check_outputs(options: Options, folder: Path | None = None) -> None:
    """Tries what the options name to be written; an OSError names what cannot be."""
    if options.json is not None:
        check_writable(options.json)
    for place in (options.report, folder):
        if place is not None:
            make_folder(place)


def _write_agreement(
    options: Options,
    console: Terminal,
    at_score: Rows,
    truth: GroundTruthTable,
    found: DetectionTable,
    raw: DetectionTable | None,
    **about: Any,
) -> None:
    """Writes how scores and boxes agree to the folder of --report, and prints the overall part."""
    assert options.report is not None
    raw = None if raw is None else options.coco.select(truth, raw)[1]
    truth, found = options.coco.select(truth, found)
    about |= {"resamples": options.resamples, "slices": options.slices, "at_score": at_score}
    about["iou_type"] = options.iou_type or "bbox"
    report, files = write_consistency(options.report, truth, found, raw, **about)
    console.print(f"\n{format_overall(report)}")
    _print_files(console, files)


def _print_files(console: Terminal, files: list[Path]) -> None:
    for path in files:
        console.print(f"written: {path}")


def _with_options(config: Config, options: RunOptions) -> Config:
    """The run's config with another place of the data, or other data."""
    data = dataclasses.replace(
        config.data,
        format=options.format or config.data.format,
        name=options.name or config.data.name,
        root=options.root or config.data.root,
        eval_share=None if options.format or options.name else config.data.eval_share,
    )
    if options.name is not None and data.format != "tfds":
        raise ConfigError(
            f"--name {options.name} goes with --format tfds; this data is {data.format}"
        )
    train = config.train
    if options.batch_size is not None:
        train = dataclasses.replace(train, eval_batch_size=options.batch_size)
    return dataclasses.replace(config, data=data, train=train)
