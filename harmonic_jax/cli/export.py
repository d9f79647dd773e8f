"""`python -m harmonic_jax export RUN --to onnx|stablehlo|safetensors --out DIR`."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from harmonic_jax.cli.command import FAILURES, run_command
from harmonic_jax.config import ConfigError
from harmonic_jax.config.checks import check_count
from harmonic_jax.config.training import BATCH_SIZES
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
from harmonic_jax.training.restore import SavedRun, read_run
from harmonic_jax.training.run_dir import RunDir
from harmonic_jax.training.sharding import data_mesh, replicated


def main(args: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    parsed = _parser().parse_args(args)
    return run_command(lambda: _main(parsed), failures=(*FAILURES, ValueError))


def _main(parsed: argparse.Namespace) -> int:
    run = read_run(RunDir(parsed.run), sharding=replicated(data_mesh()), last=parsed.last)
    parsed.out.mkdir(parents=True, exist_ok=True)
    console = Terminal()
    try:
        for line in _export(parsed, run):
            console.print(line)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'harmonic-jax[export]'"
        ) from None
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harmonic_jax export",
        description="Write a trained detector for other programs (docs/export.md).",
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
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


def _export(args: argparse.Namespace, run: SavedRun) -> list[str]:
    match args.to:
        case "safetensors":
            return _export_weights(args.out, run, RunDir(args.run))
        case "onnx":
            return _export_onnx(args.out, run, _function(args, run))
        case _:
            return _export_stablehlo(args.out, run, _function(args, run), args.platforms)


def _export_stablehlo(
    folder: Path, run: SavedRun, function: InferenceFunction, platforms: Sequence[str]
) -> list[str]:
    path, described = folder / "detector.jax", folder / "detector.json"
    write_bytes(path, export_stablehlo(function, platforms=platforms).serialize())
    write_text(described, json.dumps(_about(run, function), indent=2) + "\n")
    return [
        f"written: {path}",
        f"written: {described}",
        f"inputs: {_shown(function)}",
        f"run it: jax.export.deserialize(open({str(path)!r}, 'rb').read()).call(*inputs)",
    ]


def _export_onnx(folder: Path, run: SavedRun, function: InferenceFunction) -> list[str]:
    from harmonic_jax.export.onnx import write_onnx

    path = folder / "detector.onnx"
    about = {name: json.dumps(value) for name, value in _about(run, function).items()}
    outputs = write_onnx(function, path, about=about)
    return [
        f"written: {path}, class names in its metadata",
        f"inputs: {_shown(function)}",
        f"outputs: {', '.join(outputs)}",
        f"run it: onnxruntime.InferenceSession({str(path)!r}).run(None, inputs)",
    ]


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


def _export_weights(folder: Path, run: SavedRun, run_dir: RunDir) -> list[str]:
    path, card = folder / "detector.safetensors", folder / "README.md"
    for file in (path, card):
        if file.exists():
            raise FileExistsError(f"{file} exists; nothing is overwritten")
    number = write_weights(run, path)
    evaluated = [
        row for row in run_dir.read_log() if row["kind"] == "eval" and row["step"] == run.step
    ]
    metrics = evaluated[-1] if evaluated else {}
    write_text(card, model_card(run, name=path.name, metrics=metrics))
    return [f"written: {path}, {number} arrays", f"written: {card}"]
