"""`eval.py RUN`, or `eval.py --predictions P.json --annotations A.json`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harmonic_jax.cli.train import use_both_cores
from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.records import DataError, DetectionSource
from harmonic_jax.data.sources import open_source
from harmonic_jax.metrics.coco import coco_metrics, format_table
from harmonic_jax.metrics.results_json import load_coco_annotations, load_coco_results
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore, Restored
from harmonic_jax.training.evaluation import evaluate
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.report import write_report
from harmonic_jax.training.run_dir import RunDir
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import Detector, abstract_state, build_detector
from harmonic_jax.training.step import make_predict_step


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    parsed = _parser().parse_args(sys.argv[1:] if args is None else args)
    console = Console(soft_wrap=True)
    try:
        if parsed.run is not None:
            return _evaluate_run(parsed, console)
        return _evaluate_files(parsed, console)
    except (ConfigError, DataError, CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eval.py", description="Evaluate a run, or a COCO results file of any detector."
    )
    parser.add_argument("run", nargs="?", type=Path, help="the folder of a run, runs/NAME")
    parser.add_argument(
        "--last", action="store_true", help="the newest checkpoint instead of the best"
    )
    parser.add_argument("--root", help="where the data lies now, if it has moved")
    parser.add_argument("--split", help="the split to evaluate on (default: the config's)")
    parser.add_argument("--predictions", type=Path, help="detections in COCO results format")
    parser.add_argument("--annotations", type=Path, help="annotations in COCO format")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    return parser


def _evaluate_run(args: argparse.Namespace, console: Console) -> int:
    if args.predictions is not None or args.annotations is not None:
        raise ConfigError("give either a run or --predictions with --annotations, not both")
    use_both_cores()
    run_dir = RunDir(args.run)
    config = run_dir.read_config()
    data = dataclasses.replace(config.data, root=args.root or config.data.root)
    config = dataclasses.replace(config, data=data)
    split = args.split or config.data.eval_split
    source = open_source(config.data, split)
    detector, restored = _restore(run_dir, config, source, last=args.last)
    console.print(f"step {restored.step} of {run_dir.path} on {source.name}")
    mesh = data_mesh()
    variables = restored.state.for_evaluation if args.last else restored.state
    predict_step = make_predict_step(detector, mesh)
    evaluation = evaluate(predict_step, variables, source, config, mesh)
    _print_and_save(args, console, evaluation.metrics)
    console.print(f"images as they were loaded: {evaluation.skipped.format()}")
    folder = run_dir.path / f"eval_{split}_step{restored.step}"
    for path in write_report(folder, evaluation, source, data=config.data):
        console.print(f"written: {path}")
    return 0


def _restore(
    run_dir: RunDir, config: Config, source: DetectionSource, *, last: bool
) -> tuple[Detector, Restored]:
    """The best variables of a run, or its newest whole state."""
    store = CheckpointStore(run_dir.checkpoints if last else run_dir.best)
    known = store.read_metadata()["class_names"]
    if list(source.class_names) != known:
        raise ConfigError(
            f"the run knows the classes {known}; {source.name} has {list(source.class_names)}"
        )
    detector = build_detector(config, len(known))
    optimizer = make_optimizer(config.optim, steps=config.train.steps)
    everywhere = replicated(data_mesh())
    shapes = abstract_state(detector, optimizer, sharding=everywhere)
    return detector, store.restore(shapes if last else shapes.variables)


def _evaluate_files(args: argparse.Namespace, console: Console) -> int:
    if args.predictions is None or args.annotations is None:
        raise ConfigError(
            "give the folder of a run, or both --predictions P.json and --annotations A.json"
        )
    truth = load_coco_annotations(args.annotations)
    _print_and_save(args, console, coco_metrics(truth, load_coco_results(args.predictions, truth)))
    return 0


def _print_and_save(args: argparse.Namespace, console: Console, metrics: dict[str, float]) -> None:
    console.print(format_table(metrics), markup=False, highlight=False)
    if args.json is not None:
        args.json.write_text(json.dumps(metrics, indent=2) + "\n")
        console.print(f"written: {args.json}")
