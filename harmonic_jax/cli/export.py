"""`harmonic-jax export RUN --to onnx|stablehlo|safetensors --out DIR`."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import Positional

from harmonic_jax.checks import require
from harmonic_jax.cli.command import INPUT_FAILURES, run_command
from harmonic_jax.cli.import_weights import KEPT
from harmonic_jax.cli.options import UsageError, parse_options
from harmonic_jax.config import ConfigError
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
from harmonic_jax.pretrained import detector_layout, write_state_dict
from harmonic_jax.pretrained.convert import export_state
from harmonic_jax.pretrained.files import check_target, read_tensors
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun, header_of, open_detector
from harmonic_jax.training.sharding import data_mesh, replicated

_NAMES = {
    "safetensors": ("detector.safetensors", "README.md"),
    "onnx": ("detector.onnx",),
    "stablehlo": ("detector.jax", "detector.json"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a trained detector for other programs (docs/export.md)."""

    run: Positional[Path]
    """The folder of a run, or a file of one."""
    to: Literal["onnx", "stablehlo", "safetensors"]
    """A program for any ONNX runtime, a program that JAX alone runs, or the weights with a model
    card."""
    out: Path
    """The folder to write to."""
    last: bool = False
    """The newest checkpoint instead of the best."""
    batch_size: Annotated[int, "[1, 65536]"] = 1
    """Images of a call of a program."""
    frame: str | None = None
    """HEIGHTxWIDTH: programs take images of this size and resize them inside; otherwise images
    must be resized and padded as in training, to --bucket."""
    bucket: str | None = None
    """HEIGHTxWIDTH: padded size; None: the config's first."""
    platforms: tuple[Literal[PLATFORMS], ...] = PLATFORMS  # type: ignore[valid-type]
    """Of stablehlo."""


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """Write a run's weights with torchvision's names and layouts."""

    run: Positional[Path]
    """The folder of a run, or a file of one."""
    out: Path
    """The .safetensors file to write."""
    last: bool = False
    """The newest checkpoint instead of the best."""


def main(args: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    return run_command(
        lambda: _main(parse_options(Options, args, prog="harmonic-jax export")),
        failures=INPUT_FAILURES,
    )


def main_weights(args: Sequence[str]) -> int:
    """`export-weights`; returns the exit status."""
    prog = "harmonic-jax export-weights"
    return run_command(
        lambda: _main_weights(parse_options(WeightsOptions, args, prog=prog)),
        failures=INPUT_FAILURES,
    )


def _main(options: Options) -> int:
    targets = _free_targets(options.out, _NAMES[options.to])
    run = open_detector(options.run, sharding=replicated(data_mesh()), last=options.last)
    console = Terminal()
    try:
        for line in _export(options, run, targets):
            console.print(line)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'harmonic-jax[export]'"
        ) from None
    return 0


def _main_weights(options: WeightsOptions) -> int:
    check_target(options.out)
    run = open_detector(options.run, sharding=replicated(data_mesh()), last=options.last)
    state_dict = torchvision_state_dict(run, options.run)
    write_state_dict(options.out, state_dict, metadata=header_of(run))
    console = Terminal()
    console.print(f"written: {options.out}, {len(state_dict)} tensors")
    name = repr(str(options.out))
    console.print(f"read it with: model.load_state_dict(safetensors.torch.load_file({name}))")
    return 0


def _size(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    require(match is not None, option, text, "HEIGHTxWIDTH, 480x640 say")
    return int(match[1]), int(match[2])  # type: ignore[index]


def _free_targets(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files to write, none of which is there yet."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose a folder with --out")
    targets = [folder / name for name in names]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists; nothing is overwritten")
    return targets


def _export(options: Options, run: SavedRun, targets: Sequence[Path]) -> list[str]:
    """Writes the files, all or none; returns what is said of them."""
    function = None if options.to == "safetensors" else _function(options, run)
    options.out.mkdir(parents=True, exist_ok=True)
    if function is None:
        said = _export_weights(targets[0], targets[1], run, RunFolder(options.run))
    elif options.to == "onnx":
        said = _export_onnx(targets[0], run, function)
    else:
        said = _export_stablehlo(targets[0], targets[1], run, function, options.platforms)
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


def _function(options: Options, run: SavedRun) -> InferenceFunction:
    frame, bucket = _size("--frame", options.frame), _size("--bucket", options.bucket)
    size = options.batch_size
    if frame is not None and bucket is not None:
        raise UsageError("give --frame or --bucket, not both")
    if frame is not None:
        height, width = frame
        return on_frames(run.detector, run.variables, batch_size=size, height=height, width=width)
    bucket = bucket or run.config.data.buckets[0]
    return on_canvas(run.detector, run.variables, batch_size=size, bucket=bucket)


def _export_weights(path: Path, card: Path, run: SavedRun, run_dir: RunFolder) -> list[str]:
    evaluated = [
        row for row in run_dir.read_log() if row["kind"] == "eval" and row["step"] == run.step
    ]
    metrics = evaluated[-1] if evaluated else {}
    with _beside(card, model_card(run, name=path.name, metrics=metrics)):
        number = write_weights(run, path)
    return [f"{number} arrays", f"use it: harmonic_jax.load({str(path)!r})"]


def torchvision_state_dict(run: SavedRun, path: Path) -> dict[str, np.ndarray]:
    """A run's weights in torchvision's layout; of an imported run, the state dict it came from.

    Raises:
      WeightsError: torchvision has no such detector, or a weight is NaN or inf.
    """
    layout = detector_layout(run.config.model, len(run.class_names))
    kept = path / KEPT
    originals = read_tensors(kept) if kept.exists() else {}
    state_dict = export_state(
        run.variables.params, run.variables.model_state, layout, originals=originals
    )
    old_names = run.metadata.get("torchvision_names", {})
    return {old_names.get(name, name): array for name, array in state_dict.items()}
