"""`python -m harmonic_jax predict IMAGES.. --run RUN`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from harmonic_jax.__main__ import run_script
from harmonic_jax.checks import check_number
from harmonic_jax.cli.arguments import Parser
from harmonic_jax.cli.command import (
    EXIT_FAILED,
    EXIT_STOPPED,
    FAILURES,
    complain,
    run_command,
)
from harmonic_jax.cli.inference_options import add_inference_options, tta_of
from harmonic_jax.cli.train import use_both_cores
from harmonic_jax.inference import load
from harmonic_jax.inference.augmentation import settled
from harmonic_jax.inference.inputs import find_inputs, is_video
from harmonic_jax.inference.output import DETECTIONS, IMAGES, PICTURES, OutputFolder
from harmonic_jax.inference.predictions import Predictor, Summary
from harmonic_jax.terminal import Terminal, track
from harmonic_jax.training.compilation import use_compilation_cache
from harmonic_jax.training.watchdog import StopSignal

_NAMED = 20


def main(args: Sequence[str]) -> int:
    """Returns the exit status: 0 done; 1 failed, nothing read or a file not written; 3 stopped."""
    failures = (*FAILURES, ValueError)
    return run_command(lambda: _predict(_parser().parse_args(args)), failures=failures)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m harmonic_jax predict",
        description="Find objects in images and videos: results in COCO format, and pictures.",
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="IMAGES", help="files, folders, globs ('photos/**/*.jpg')"
    )
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run")
    parser.add_argument(
        "--last", action="store_true", help="the newest checkpoint instead of the best"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder to write to (%(default)s)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        help="what scores less is left out, of the files too (%(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images at a time (%(default)s)")
    parser.add_argument("--no-pictures", action="store_true", help="results only")
    parser.add_argument(
        "--stored-pixels",
        action="store_true",
        help="do not turn photos as EXIF says: boxes as in COCO's and VOC's annotations",
    )
    add_inference_options(parser)
    return parser


def _predict(args: argparse.Namespace) -> int:
    use_both_cores()
    console = Terminal()
    check_number("--score-threshold", args.score_threshold, "[0, 1]")
    tta = tta_of(args)
    inputs = find_inputs(args.inputs)
    use_compilation_cache()
    detector = load(
        args.run,
        last=args.last,
        nms=args.nms,
        nms_sigma=args.nms_sigma,
        batch_size=_batch_size(args.batch_size, inputs.paths),
        upright=not args.stored_pixels,
    )
    if tta is not None:
        tta = settled(tta, detector.config)
    folder = OutputFolder(
        args.out,
        inputs.paths,
        class_names=detector.class_names,
        category_ids=detector.category_ids,
        draws=not args.no_pictures,
    )
    with StopSignal() as stop:
        predictor = Predictor(
            detector,
            folder=folder,
            score_threshold=args.score_threshold,
            tta=tta,
            track=track,
            stops=lambda: stop.requested,
        )
        try:
            predictor.run(inputs.paths)
            stopped_by = stop.name if predictor.is_stopped else None
        except KeyboardInterrupt:
            stopped_by = stop.name or "SIGINT"
        finally:  # whatever happens, what was found is kept
            folder.save(predictor.summary.images, predictor.summary.found)
    if inputs.left_out:
        console.print(f"left out: {inputs.told()}")
    _tell(console, predictor.summary, folder)
    if stopped_by:
        complain(f"stopped by {stopped_by}; what was found so far is written to {folder.path}")
        return EXIT_STOPPED
    return EXIT_FAILED if predictor.summary.unwritten or not predictor.summary.images else 0


def _batch_size(wanted: int, paths: Sequence[Path]) -> int:
    """Not more than there is to do: rows without an image cost as much as those with one."""
    return wanted if any(map(is_video, paths)) else min(wanted, len(paths))


def _tell(console: Terminal, summary: Summary, folder: OutputFolder) -> None:
    for what, lines in (
        ("skipped", summary.skipped),
        ("cut short", summary.cut),
        ("not written", summary.unwritten),
    ):
        for line in lines[:_NAMED]:
            console.print(f"{what}: {line}")
        if len(lines) > _NAMED:
            console.print(f"{what}: {len(lines) - _NAMED} more")
    objects = summary.objects()
    listing = ", ".join(f"{count} {name}" for name, count in objects.most_common(10))
    counts = [
        f"{len(summary.images)} images, {objects.total()} objects"
        + (f" ({listing}{', ..' if len(objects) > 10 else ''})" if listing else "")
    ]
    counts += [f"{len(summary.skipped)} files skipped"] * bool(summary.skipped)
    counts += [f"{len(summary.unwritten)} not written"] * bool(summary.unwritten)
    console.print("; ".join(counts))
    if summary.num_timed and summary.seconds > 0:
        console.print(
            f"{summary.num_timed / summary.seconds:.1f} images/s, decoding and drawing included, "
            "the first batch of each shape left out"
        )
    pictures = f", {summary.num_pictures} in {PICTURES}/" if summary.num_pictures else ""
    console.print(f"written to {folder.path}: {DETECTIONS}, {IMAGES}{pictures}")


if __name__ == "__main__":
    run_script("predict")
