"""`eval.py RUN`, or `eval.py --predictions P.json --annotations A.json`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harmonic_jax.__main__ import run_script
from harmonic_jax.checks import check_count
from harmonic_jax.cli.arguments import Parser
from harmonic_jax.cli.command import FAILURES, run_command
from harmonic_jax.cli.evaluate_run import evaluate_run
from harmonic_jax.cli.evaluation_output import check_outputs, print_and_save, write_agreement
from harmonic_jax.cli.inference_options import add_inference_options
from harmonic_jax.cli.processes import add_process_options, process_options, run_as_process
from harmonic_jax.cli.report_images import images_of_folder
from harmonic_jax.cli.train import use_both_cores
from harmonic_jax.coco_format.annotations import CocoFile, read_coco_file
from harmonic_jax.config import BATCH_SIZES, ConfigError
from harmonic_jax.metrics.coco import coco_metrics, mask_metrics
from harmonic_jax.metrics.consistency.bootstrap import RESAMPLES
from harmonic_jax.metrics.masks_json import MaskError
from harmonic_jax.metrics.raw_boxes import load_raw
from harmonic_jax.metrics.results_json import ground_truth_from_coco, load_coco_results, with_masks
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.processes import is_primary

_MASKS = {None: None, "bbox": False, "segm": True}
_OF_RUNS = (
    "--last", "--root", "--format", "--name", "--batch-size", "--split", "--out", "--nms",
    "--nms-sigma", "--tta",
)  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed with a message, 4 another process is lost."""
    words = sys.argv[1:] if args is None else args
    return run_command(lambda: _main(_parser().parse_args(words)))


def _main(args: argparse.Namespace) -> int:
    options = process_options(args)
    _check_options(args)
    body = _evaluate_files if args.run is None else evaluate_run
    use_both_cores()
    # ValueError: what the tables of detections and objects refuse.
    return run_as_process(
        options,
        lambda console: body(args, console),
        failures=(*FAILURES, ValueError),
        needs_devices=args.run is not None,
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="eval.py", description="Evaluate a run, or a COCO results file of any detector."
    )
    parser.add_argument(
        "run", nargs="?", type=Path, help="the folder of a run, runs/NAME, or a file of one"
    )
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
    parser.add_argument(
        "--iou-type",
        choices=("bbox", "segm"),
        help="boxes or masks alone, of --predictions; by default boxes, and masks where every "
        "entry of both files has one",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the report of a run to this folder (default: one in the run's folder, named "
        "after the data, the split, the step and the options)",
    )
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


def _check_options(args: argparse.Namespace) -> None:
    """Refuses options that do not go together.

    Raises:
      ConfigError: names two of them.
    """
    is_run = args.run is not None
    if is_run and (args.predictions is not None or args.annotations is not None):
        raise ConfigError("give either a run or --predictions with --annotations, not both")
    if not is_run and (args.predictions is None or args.annotations is None):
        raise ConfigError(
            "give the folder of a run, or both --predictions P.json and --annotations A.json"
        )
    for option in () if is_run else _OF_RUNS:
        value = getattr(args, option[2:].replace("-", "_"))
        if value is not None and value is not False:
            raise ConfigError(f"{option} goes with a run, not with --predictions")
    check_count("--resamples", args.resamples, "[0, 100000]")
    if args.batch_size is not None:
        check_count("--batch-size", args.batch_size, BATCH_SIZES)
    if is_run and args.iou_type is not None:
        raise ConfigError(f"--iou-type {args.iou_type} goes with --predictions")
    for option, value in (("--raw-predictions", args.raw_predictions), ("--images", args.images)):
        if value is not None and (args.report is None or args.predictions is None):
            raise ConfigError(f"{option} goes with --predictions and --report DIR")


def _evaluate_files(args: argparse.Namespace, console: Terminal) -> int:
    if not is_primary():
        return 0
    file = read_coco_file(args.annotations, segmentations=args.iou_type != "bbox")
    truth = ground_truth_from_coco(file)
    images = images_of_folder(file, args.images) if args.report is not None else None
    try:
        found = load_coco_results(args.predictions, truth, masks=_MASKS[args.iou_type])
    except MaskError as error:
        hint = "; --iou-type bbox evaluates the boxes alone" if args.iou_type is None else ""
        raise ConfigError(f"{error}{hint}") from error
    check_outputs(args)
    metrics = {} if args.iou_type == "segm" else coco_metrics(truth, found)
    if found.masks is not None:  # drawing the annotated ones takes seconds: not without need
        metrics |= _metrics_of_masks(file, truth, found, console, must=args.iou_type == "segm")
    print_and_save(args, console, metrics)
    if images is not None:
        raw = None if args.raw_predictions is None else load_raw(args.raw_predictions, truth)
        title = f"{args.predictions.name} on {args.annotations.name}"
        write_agreement(args, console, truth, found, raw, images, title)
    return 0


def _metrics_of_masks(
    file: CocoFile,
    truth: GroundTruthTable,
    found: DetectionTable,
    console: Terminal,
    *,
    must: bool,
) -> dict[str, float]:
    """The numbers of masks; none, and why, where the annotations are not all masks."""
    try:
        drawn = with_masks(truth, file)
    except MaskError as error:
        if must:
            raise
        console.print(f"masks are left out: {error}\n")
        return {}
    if must and drawn.masks is None:
        raise ConfigError(f"{file.name}: no annotation has a segmentation")
    return {} if drawn.masks is None else mask_metrics(drawn, found)


if __name__ == "__main__":
    run_script("eval")
