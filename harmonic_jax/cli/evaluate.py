"""`eval.py RUN`, or `eval.py --predictions P.json --annotations A.json`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from harmonic_jax.cli.train import use_both_cores
from harmonic_jax.config import ConfigError
from harmonic_jax.data.sources import DataError, open_source
from harmonic_jax.metrics.coco import coco_metrics, format_coco_table
from harmonic_jax.metrics.results_json import load_coco_annotations, load_coco_results
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.evaluation import evaluate
from harmonic_jax.training.report import write_report
from harmonic_jax.training.run_dir import RunDir
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import build_detector, init_variables
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
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {error}", highlight=False)
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
    source = open_source(config.data, args.split or config.data.eval_split)
    with CheckpointStore(run_dir.checkpoints if args.last else run_dir.best) as store:
        known = store.read_metadata()["class_names"]
        if list(source.class_names) != known:
            raise ConfigError(f"the run knows the classes {known}, {source.name} has others")
        detector = build_detector(config, len(known))
        mesh = data_mesh()
        shapes = jax.eval_shape(lambda: init_variables(detector, seed=0, sharding=replicated(mesh)))
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)), shapes
        )
        restored = store.restore(abstract)
    console.print(f"step {restored.step} of {run_dir.path} on {source.name}")
    evaluation = evaluate(make_predict_step(detector, mesh), restored.state, source, config, mesh)
    return _finish(args, console, evaluation)


def _evaluate_files(args: argparse.Namespace, console: Console) -> int:
    if args.predictions is None or args.annotations is None:
        raise ConfigError(
            "give the folder of a run, or both --predictions P.json and --annotations A.json"
        )
    truth = load_coco_annotations(args.annotations)
    metrics = coco_metrics(truth, load_coco_results(args.predictions, truth))
    console.print(format_coco_table(metrics))
    if args.json is not None:
        args.json.write_text(json.dumps(metrics, indent=2) + "\n")
    return 0
