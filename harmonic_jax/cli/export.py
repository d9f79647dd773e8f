"""`python -m harmonic_jax export RUN --to onnx|stablehlo|safetensors --out DIR`."""

import argparse
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from harmonic_jax.__main__ import run_script
from harmonic_jax.checks import check_count
from harmonic_jax.cli.arguments import Parser
from harmonic_jax.cli.command import FAILURES, run_command
from harmonic_jax.config import BATCH_SIZES, ConfigError
from harmonic_jax.export import (
    PLATFORMS,
    InferenceFunction,
    export_stablehlo,
    on_canvas,
    on_frames,
    write_weights,
)
from harmonic_jax.export.model_card import model_card
from harmonic_jax.files import write_bytes, write_text
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun, open_detector
from harmonic_jax.training.sharding import data_mesh, replicated

_NAMES = {
    "safetensors": ("detector.safetensors", "README.md"),
    "onnx": ("detector.onnx",),
    "stablehlo": ("detector.jax", "detector.json"),
}


def main(args: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    failures = (*FAILURES, ValueError)
    return run_command(lambda: _main(_parser().parse_args(args)), failures=failures)


def _main(parsed: argparse.Namespace) -> int:
    targets = _free_targets(parsed.out, _NAMES[parsed.to])
    run = open_detector(parsed.run, sharding=replicated(data_mesh()), last=parsed.last)
    console = Terminal()
    try:
        for line in _export(parsed, run, targets):
            console.print(line)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'harmonic-jax[export]'"
        ) from None
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m harmonic_jax export",
        description="Write a trained detector for other programs (docs/export.md).",
    )
    parser.add_argument("run", type=Path, help="the folder of a run, or a file of one")
    parser.add_argument(
        "--to",
        choices=("onnx", "stablehlo", "safetensors"),
        required=True,
        help="a program for any ONNX runtime, a program that JAX alone runs, or the weights with a "
        "model card",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument(
        "--last", action="store_true", help="the newest checkpoint instead of the best"
    )
    shapes = parser.add_argument_group("programs")
    shapes.add_argument("--batch-size", type=int, default=1, help="images of a call")
    shapes.add_argument(
        "--frame",
        type=_size,
        metavar="HxW",
        help="take images of this size and resize them inside; otherwise images must be resized "
        "and padded as in training, to --bucket",
    )
    shapes.add_argument(
        "--bucket", type=_size, metavar="HxW", help="padded size (default: the config's first)"
    )
    shapes.add_argument(
        "--platforms", nargs="+", choices=PLATFORMS, default=PLATFORMS, help="of stablehlo"
    )
    return parser


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write HEIGHTxWIDTH, 480x640 say")
    return int(match[1]), int(match[2])


def _free_targets(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files to write, none of which is there yet."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose a folder with --out")
    targets = [folder / name for name in names]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists; nothing is overwritten")
    return targets


def _export(args: argparse.Namespace, run: SavedRun, targets: Sequence[Path]) -> list[str]:
    """Writes the files, all or none; returns what is said of them."""
    function = None if args.to == "safetensors" else _function(args, run)
    args.out.mkdir(parents=True, exist_ok=True)
    if function is None:
        said = _export_weights(targets[0], targets[1], run, RunFolder(args.run))
    elif args.to == "onnx":
        said = _export_onnx(targets[0], run, function)
    else:
        said = _export_stablehlo(targets[0], targets[1], run, function, args.platforms)
    return [f"written: {target}" for target in targets] + said


def _export_stablehlo(
    path: Path,
    described: Path,
    run: SavedRun,
    function: InferenceFunction,
    platforms: Sequence[str],
) -> list[str]:
    with _beside(described, json.dumps(_about(run, function), indent=2) + "\n"):
        write_bytes(path, export_stablehlo(function, platforms=platforms).serialize())
    return [
        f"inputs: {_shown(function)}",
        f"run it: jax.export.deserialize(open({str(path)!r}, 'rb').read()).call(*inputs)",
    ]


def _export_onnx(path: Path, run: SavedRun, function: InferenceFunction) -> list[str]:
    from harmonic_jax.export.onnx import write_onnx

    about = {name: json.dumps(value) for name, value in _about(run, function).items()}
    outputs = write_onnx(function, path, about=about)
    return [
        "class names: in its metadata",
        f"inputs: {_shown(function)}",
        f"outputs: {', '.join(outputs)}",
        f"run it: onnxruntime.InferenceSession({str(path)!r}).run(None, inputs)",
    ]


@contextlib.contextmanager
def _beside(path: Path, text: str) -> Iterator[None]:
    """Writes the small file of two; it goes again if the large one cannot be written."""
    write_text(path, text)
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _about(run: SavedRun, function: InferenceFunction) -> dict[str, object]:
    """What is written beside a program."""
    inputs = {name: f"{s.dtype}{list(s.shape)}" for name, s in function.inputs.items()}
    return {"class_names": run.class_names, "step": run.step, "inputs": inputs}


def _shown(function: InferenceFunction) -> str:
    return ", ".join(f"{name} {s.dtype}{list(s.shape)}" for name, s in function.inputs.items())


def _function(args: argparse.Namespace, run: SavedRun) -> InferenceFunction:
    check_count("--batch-size", args.batch_size, BATCH_SIZES)
    if args.frame is not None and args.bucket is not None:
        raise ConfigError("give --frame or --bucket, not both")
    if args.frame is not None:
        height, width = args.frame
        return on_frames(
            run.detector, run.variables, batch_size=args.batch_size, height=height, width=width
        )
    bucket = args.bucket or run.config.data.buckets[0]
    return on_canvas(run.detector, run.variables, batch_size=args.batch_size, bucket=bucket)


def _export_weights(path: Path, card: Path, run: SavedRun, run_dir: RunFolder) -> list[str]:
    evaluated = [
        row for row in run_dir.read_log() if row["kind"] == "eval" and row["step"] == run.step
    ]
    metrics = evaluated[-1] if evaluated else {}
    with _beside(card, model_card(run, name=path.name, metrics=metrics)):
        number = write_weights(run, path)
    return [f"{number} arrays", f"use it: harmonic_jax.load({str(path)!r})"]


if __name__ == "__main__":
    run_script("export")
