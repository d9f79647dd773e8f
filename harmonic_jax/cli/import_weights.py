"""`python -m harmonic_jax import-weights FILE --to MODEL --out RUN`."""

import argparse
import contextlib
import dataclasses
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from harmonic_jax.__main__ import run_script
from harmonic_jax.cli.arguments import Parser
from harmonic_jax.cli.command import FAILURES, quoted, run_command
from harmonic_jax.config import (
    Config,
    ConfigError,
    ModelConfig,
    ResNetConfig,
    TrainConfig,
)
from harmonic_jax.data.folders import read_class_names
from harmonic_jax.pretrained import (
    WeightsError,
    detector_layout,
    load_detector,
    read_state_dict,
    write_state_dict,
)
from harmonic_jax.pretrained.convert import check_classifier, remainder
from harmonic_jax.pretrained.layout import Layout
from harmonic_jax.pretrained.models import CLASSIFIERS, DETECTORS, PLACEHOLDER, TorchvisionDetector
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.config_json import config_to_json
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import Variables, abstract_variables, build_detector

KEPT = "not_in_model.safetensors"


def main(args: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    failures = (*FAILURES, ValueError)
    return run_command(lambda: _main(_parser().parse_args(args)), failures=failures)


def _main(args: argparse.Namespace) -> int:
    return _check(args.file, args.to) if args.to in CLASSIFIERS else _import(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m harmonic_jax import-weights",
        description="Make a run of a state dict of torchvision's, to evaluate or to fine-tune.",
    )
    parser.add_argument("file", type=Path, help=".safetensors, or .pth (needs PyTorch)")
    parser.add_argument(
        "--to",
        required=True,
        choices=(*DETECTORS, *CLASSIFIERS),
        metavar="MODEL",
        help=f"torchvision's name: a detector ({', '.join(DETECTORS)}), or a classifier, whose "
        f"file is checked only ({', '.join(CLASSIFIERS)})",
    )
    parser.add_argument("--out", type=Path, help="folder of the run, made here")
    parser.add_argument(
        "--class-names",
        type=Path,
        help="text file with the name of each class of the detector on a line, without the "
        "background of softmax detectors (default: torchvision's COCO classes)",
    )
    parser.add_argument(
        "--norm-eps",
        type=float,
        help="epsilon of the backbone's norms (default: that of the published COCO weights: 0 "
        "for the first versions, 1e-5 for _v2)",
    )
    return parser


def _check(file: Path, name: str) -> int:
    check_classifier(file, CLASSIFIERS[name])
    Terminal().print(
        f"{file} fits {name}. Train on it with --model.backbone.weights {quoted(file)}"
    )
    return 0


def _import(args: argparse.Namespace) -> int:
    if args.out is None:
        raise ConfigError("--out is missing; it must name the folder of the run to make")
    if args.out.exists():
        raise ConfigError(f"{args.out} exists; choose another folder with --out")
    foreign = _with_options(DETECTORS[args.to], args)
    state_dict = read_state_dict(args.file)
    config = Config(
        name=args.to,
        data=foreign.data,
        model=foreign.model,
        train=TrainConfig(eval_batch_size=4),
        run_dir=str(args.out),
    )
    console, name = Terminal(), quoted(args.out)
    try:
        with _becoming(args.out) as folder:
            line = import_run(state_dict, config, foreign, RunFolder(folder))
    except WeightsError as error:
        raise WeightsError(f"weights file {args.file}: {error}") from error
    console.print(f"{args.out}: {line}")
    console.print(f"evaluate it with: python -m harmonic_jax eval {name} --root COCO_FOLDER")
    console.print(f"fine-tune it with: python -m harmonic_jax train CONFIG.py --init {name}")
    return 0


@contextlib.contextmanager
def _becoming(folder: Path) -> Iterator[Path]:
    """A folder beside another, which becomes it if the block ends well, and goes if not."""
    partial = folder.with_name(f".import-{secrets.token_hex(4)}")
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def import_run(
    state_dict: dict[str, np.ndarray],
    config: Config,
    foreign: TorchvisionDetector,
    run_dir: RunFolder,
) -> str:
    """Writes a run whose best checkpoint, of step 0, holds the weights of a state dict.

    What the model has no place for (counters, outputs for background) is written beside it, so
    that an export gives the same state dict again.

    Returns:
      A line that says what was read.

    Raises:
      WeightsError: the state dict does not fit; nothing is written.
    """
    num_classes = len(foreign.class_names)
    shapes = abstract_variables(
        build_detector(config, num_classes), sharding=replicated(data_mesh())
    )
    fitted = load_detector(shapes.params, shapes.model_state, state_dict, config.model, num_classes)
    layout = detector_layout(config.model, num_classes)
    kept = remainder(*fitted, state_dict, layout)
    run_dir.open(config)
    if kept:
        write_state_dict(run_dir.path / KEPT, kept)
    metadata = {
        "config": config_to_json(config),
        "class_names": list(foreign.class_names),
        "category_ids": list(foreign.category_ids),
        "torchvision_names": _old_names(state_dict, layout),
    }
    with CheckpointStore(run_dir.best, keep=1) as store:
        store.save(0, Variables(*fitted), metadata)
    count = sum(leaf.size for leaf in jax.tree.leaves(fitted))
    halves = sum(array.dtype.itemsize == 2 for array in state_dict.values())
    return (
        f"{len(state_dict)} tensors, {count:,} numbers in the model, "
        f"{num_classes} classes; {len(kept)} tensors kept as they are for the export"
        + (f"; {halves} tensors of 16 bits are float32 here" if halves else "")
    )


def _old_names(state_dict: dict[str, np.ndarray], layout: Layout) -> dict[str, str]:
    """Today's name -> that in the file, where they differ."""
    renamed = {layout.renamed(name): name for name in state_dict}
    return {today: name for today, name in renamed.items() if today != name}


def _with_eps(model: ModelConfig, eps: float) -> ModelConfig:
    if not isinstance(model.backbone, ResNetConfig):
        raise ConfigError(f"--norm-eps is {eps}; torchvision's SSD has no norms")
    return dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, norm_eps=eps))


def _with_options(foreign: TorchvisionDetector, args: argparse.Namespace) -> TorchvisionDetector:
    if args.norm_eps is not None:
        foreign = dataclasses.replace(foreign, model=_with_eps(foreign.model, args.norm_eps))
    if args.class_names is not None:
        names = read_class_names(args.class_names, repeatable=PLACEHOLDER)
        foreign = dataclasses.replace(
            foreign, class_names=names, category_ids=tuple(range(len(names)))
        )
    return foreign


if __name__ == "__main__":
    run_script("import-weights")
