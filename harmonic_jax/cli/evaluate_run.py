"""`eval.py RUN`: a run evaluated on its data or on other data."""

import argparse
import dataclasses
import hashlib
import os
import re
from pathlib import Path

from harmonic_jax.cli.evaluation_output import (
    check_outputs,
    print_and_save,
    print_files,
    write_agreement,
)
from harmonic_jax.cli.inference_options import inference_suffix, tta_of
from harmonic_jax.cli.raw_boxes import RawBoxes, detect_raw, make_raw_step
from harmonic_jax.cli.report_images import images_of_source
from harmonic_jax.config import Config, ConfigError, DataConfig
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sources import open_source
from harmonic_jax.files import make_folder
from harmonic_jax.inference.augmented_evaluation import AugmentedPredictions
from harmonic_jax.inference.detector import with_nms
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.compilation import use_compilation_cache
from harmonic_jax.training.evaluation import (
    Evaluation,
    MatchedPredictions,
    classes_found,
    evaluate,
    match_classes,
    write_report,
)
from harmonic_jax.training.processes import is_primary, run_on_all, run_on_primary
from harmonic_jax.training.saved_run import open_detector
from harmonic_jax.training.sharding import data_mesh, eval_batch_size, replicated
from harmonic_jax.training.step import make_predict_step
from harmonic_jax.training.watchdog import exit_on_lost_process, process_watchdog


def evaluate_run(args: argparse.Namespace, console: Terminal) -> int:
    """What can be refused is refused first; then the numbers, and what may fail behind them."""
    tta = tta_of(args)
    use_compilation_cache()
    mesh = data_mesh()
    run = open_detector(args.run, sharding=replicated(mesh), last=args.last)
    run = with_nms(run, args.nms, args.nms_sigma)
    config = run_on_all(lambda: _with_options(run.config, args))
    eval_batch_size(config, mesh)  # refuses one that is too large, before the data are read
    split = args.split or config.data.eval_split
    source = run_on_all(lambda: open_source(config.data, split), primary_first=True)
    labels = match_classes(run.class_names, source.class_names, found=classes_found(source))
    name = f"eval_{data_slug(source.name, config.data, split)}_step{run.step}"
    place = args.run if args.run.is_dir() else args.run.parent
    folder = args.out or place / f"{name}{inference_suffix(args)}"
    run_on_primary(lambda: _check_outputs(args, folder))
    console.print(f"step {run.step} of {args.run} on {source.name}")
    if source.report.findings:  # what is dropped is not in the numbers
        console.print(source.report.format())
    step = (
        make_predict_step(run.detector, mesh)
        if tta is None
        else AugmentedPredictions(run.detector, mesh, source, tta)
    )
    predict_step = MatchedPredictions(step, labels)
    with process_watchdog(config.train.step_timeout) as watchdog, exit_on_lost_process():
        evaluation = evaluate(predict_step, run.variables, source, config, mesh, watchdog=watchdog)
        if is_primary():
            _tell(args, console, evaluation, source, predict_step)
            with watchdog.paused():
                print_files(console, write_report(folder, evaluation, source, data=config.data))
        if args.report is None:
            return 0
        raw: RawBoxes | None = None
        if tta is None:
            raw_step = MatchedPredictions(make_raw_step(run, mesh), labels)
            raw = detect_raw(raw_step, run.variables, source, config, mesh, watchdog=watchdog)
    if is_primary():
        images = images_of_source(source, max_pixels=config.data.max_pixels)
        title = f"{args.run.name}, step {run.step}, on {source.name}"
        tables = (evaluation.ground_truth, evaluation.detections, raw)
        write_agreement(args, console, *tables, images, title)
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


def _check_outputs(args: argparse.Namespace, folder: Path) -> None:
    check_outputs(args)
    try:
        make_folder(folder)
    except OSError as error:
        hint = "" if args.out is not None else "; name another folder with --out DIR"
        raise ConfigError(f"{folder} cannot be written: {error.strerror}{hint}") from error


def _tell(
    args: argparse.Namespace,
    console: Terminal,
    evaluation: Evaluation,
    source: DetectionSource,
    predict_step: MatchedPredictions,
) -> None:
    print_and_save(args, console, evaluation.metrics)
    console.print(f"images as they were loaded:\n{evaluation.loaded.format()}")
    if evaluation.warning:
        console.print(evaluation.warning)
    if predict_step.other_classes:
        console.print(
            f"dropped {predict_step.num_dropped} detections of the {predict_step.other_classes} "
            f"classes that {source.name} does not have"
        )


def _with_options(config: Config, args: argparse.Namespace) -> Config:
    """The run's config with another place of the data, or other data."""
    data = dataclasses.replace(
        config.data,
        format=args.format or config.data.format,
        name=args.name or config.data.name,
        root=args.root or config.data.root,
    )
    if args.name is not None and data.format != "tfds":
        raise ConfigError(f"--name {args.name} goes with --format tfds; this data is {data.format}")
    train = config.train
    if args.batch_size is not None:
        train = dataclasses.replace(train, eval_batch_size=args.batch_size)
    return dataclasses.replace(config, data=data, train=train)
