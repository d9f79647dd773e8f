"""`eval.py RUN`, or `eval.py --predictions P.json --annotations A.json`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harmonic_jax.cli.command import FAILURES, run_command
from harmonic_jax.cli.consistency import make_consistency
from harmonic_jax.cli.inference_options import add_inference_options, inference_suffix, tta_of
from harmonic_jax.cli.processes import add_process_options, process_options, run_as_process
from harmonic_jax.cli.raw_boxes import RawBoxes, detect_raw, load_raw, make_raw_step
from harmonic_jax.cli.report_images import images_of_folder, images_of_source
from harmonic_jax.cli.train import use_both_cores
from harmonic_jax.config import Config, ConfigError
from harmonic_jax.config.checks import check_count
from harmonic_jax.config.training import BATCH_SIZES
from harmonic_jax.data.sources import open_source
from harmonic_jax.files import write_text
from harmonic_jax.inference.augmented_evaluation import AugmentedPredictions
from harmonic_jax.inference.detector import with_nms
from harmonic_jax.metrics.coco import coco_metrics, format_table, mask_metrics
from harmonic_jax.metrics.consistency.bootstrap import RESAMPLES
from harmonic_jax.metrics.consistency.text import format_overall
from harmonic_jax.metrics.results_json import load_coco_annotations, load_coco_results
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.report import Images
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.classes import MatchedPredictions, match_classes
from harmonic_jax.training.compilation import use_compilation_cache
from harmonic_jax.training.departure import explained_loss
from harmonic_jax.training.distributed import is_primary, together
from harmonic_jax.training.evaluation import evaluate
from harmonic_jax.training.report import write_report
from harmonic_jax.training.restore import read_run
from harmonic_jax.training.run_dir import RunDir
from harmonic_jax.training.sharding import data_mesh, eval_batch_size, replicated
from harmonic_jax.training.step import make_predict_step
from harmonic_jax.training.watchdog import process_watchdog


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed with a message, 4 another process is lost."""
    parsed = _parser().parse_args(sys.argv[1:] if args is None else args)
    return run_command(lambda: _main(parsed))


def _main(args: argparse.Namespace) -> int:
    options = process_options(args)
    body = _evaluate_files if args.run is None else _evaluate_run
    use_both_cores()
    # ValueError: what the tables of detections and objects refuse.
    return run_as_process(
        options, lambda console: body(args, console), failures=(*FAILURES, ValueError)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eval.py", description="Evaluate a run, or a COCO results file of any detector."
    )
    parser.add_argument("run", nargs="?", type=Path, help="the folder of a run, runs/NAME")
    parser.add_argument(
        "--last", action="store_true", help="the newest checkpoint instead of the best"
    )
    parser.add_argument("--root", help="where the data lies now, if it has moved")
    parser.add_argument("--format", choices=("tfds", "coco", "voc"), help="of other data")
    parser.add_argument("--name", help="the TFDS name of other data")
    parser.add_argument("--batch-size", type=int, help="images at a time")
    parser.add_argument("--split", help="the split to evaluate on (default: the config's)")
    parser.add_argument("--predictions", type=Path, help="detections in COCO results format")
    parser.add_argument("--annotations", type=Path, help="annotations in COCO format")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write how scores and boxes agree to this folder (docs/consistency.md)",
    )
    parser.add_argument(
        "--raw-predictions",
        type=Path,
        metavar="FILE",
        help="boxes before NMS that belong to --predictions, for --report",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="the images of --annotations, for the pictures of --report",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        metavar="N",
        default=RESAMPLES,
        help="of the images, for the intervals of --report (%(default)s)",
    )
    add_inference_options(parser)
    add_process_options(parser)
    return parser


def _evaluate_run(args: argparse.Namespace, console: Terminal) -> int:
    if any(path is not None for path in (args.predictions, args.annotations)):
        raise ConfigError("give either a run or --predictions with --annotations, not both")
    _check_report(args)
    use_compilation_cache()
    run_dir = RunDir(args.run)
    config = together(lambda: _with_options(run_dir.read_config(), args))
    split = args.split or config.data.eval_split
    mesh = data_mesh()
    eval_batch_size(config, mesh)  # refuses one that is too large, before the data are read
    source = together(lambda: open_source(config.data, split), primary_first=True)
    run = read_run(run_dir, sharding=replicated(mesh), last=args.last)
    run, tta = with_nms(run, args.nms, args.nms_sigma), tta_of(args)
    labels = match_classes(run.class_names, source.class_names)
    console.print(f"step {run.step} of {run_dir.path} on {source.name}")
    step = (
        make_predict_step(run.detector, mesh)
        if tta is None
        else AugmentedPredictions(run.detector, mesh, source, tta)
    )
    predict_step = MatchedPredictions(step, labels)
    with process_watchdog(config.train.step_timeout) as watchdog, explained_loss():
        evaluation = evaluate(predict_step, run.variables, source, config, mesh, watchdog=watchdog)
        raw: RawBoxes | None = None
        if args.report is not None and tta is None:
            raw_step = MatchedPredictions(make_raw_step(run, mesh), labels)
            raw = detect_raw(raw_step, run.variables, source, config, mesh, watchdog=watchdog)
    if not is_primary():
        return 0
    _print_and_save(args, console, evaluation.metrics)
    console.print(f"images as they were loaded: {evaluation.skipped.format()}")
    num_others = int((labels < 0).sum())
    if num_others:
        console.print(
            f"dropped {predict_step.num_dropped} detections of the {num_others} of "
            f"{len(labels)} classes that {source.name} does not have"
        )
    folder = run_dir.path / f"eval_{split}_step{run.step}{inference_suffix(args)}"
    for path in write_report(folder, evaluation, source, data=config.data):
        console.print(f"written: {path}")
    if args.report is not None:
        images = images_of_source(source, max_pixels=config.data.max_pixels)
        title = f"{run_dir.path.name}, step {run.step}, on {source.name}"
        tables = (evaluation.ground_truth, evaluation.detections, raw)
        _report(args, console, *tables, images, title)
    return 0


def _check_report(args: argparse.Namespace) -> None:
    check_count("--resamples", args.resamples, "[0, 100000]")
    for option, value in (("--raw-predictions", args.raw_predictions), ("--images", args.images)):
        if value is not None and (args.report is None or args.predictions is None):
            raise ConfigError(f"{option} goes with --predictions and --report DIR")


def _report(
    args: argparse.Namespace,
    console: Terminal,
    truth: GroundTruthTable,
    found: DetectionTable,
    raw: RawBoxes | DetectionTable | None,
    images: Images,
    title: str,
) -> None:
    """Writes how scores and boxes agree, and prints the overall part."""
    report, files = make_consistency(
        args.report, truth, found, raw, resamples=args.resamples, images=images, title=title
    )
    console.print(f"\n{format_overall(report)}")
    for path in files:
        console.print(f"written: {path}")


def _with_options(config: Config, args: argparse.Namespace) -> Config:
    """The run's config with another place of the data, or other data."""
    data = dataclasses.replace(
        config.data,
        format=args.format or config.data.format,
        name=args.name or config.data.name,
        root=args.root or config.data.root,
    )
    train = config.train
    if args.batch_size is not None:
        check_count("--batch-size", args.batch_size, BATCH_SIZES)
        train = dataclasses.replace(train, eval_batch_size=args.batch_size)
    return dataclasses.replace(config, data=data, train=train)


def _evaluate_files(args: argparse.Namespace, console: Terminal) -> int:
    if args.predictions is None or args.annotations is None:
        raise ConfigError(
            "give the folder of a run, or both --predictions P.json and --annotations A.json"
        )
    _check_report(args)
    if not is_primary():
        return 0
    truth = load_coco_annotations(args.annotations)
    images = images_of_folder(args.annotations, args.images) if args.report is not None else None
    found = load_coco_results(args.predictions, truth)
    metrics = coco_metrics(truth, found)
    if found.masks is not None:  # drawing the annotated ones takes seconds: not without need
        truth = load_coco_annotations(args.annotations, masks=True)
        if truth.masks is not None:
            metrics |= mask_metrics(truth, found)
    _print_and_save(args, console, metrics)
    if images is not None:
        raw = None if args.raw_predictions is None else load_raw(args.raw_predictions, truth)
        title = f"{args.predictions.name} on {args.annotations.name}"
        _report(args, console, truth, found, raw, images, title)
    return 0


def _print_and_save(args: argparse.Namespace, console: Terminal, metrics: dict[str, float]) -> None:
    console.print(format_table(metrics))
    if args.json is not None:
        write_text(args.json, json.dumps(metrics, indent=2) + "\n")
        console.print(f"written: {args.json}")
