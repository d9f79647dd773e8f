"""`harmonic-jax export RUN --to onnx|stablehlo --out DIR`, and `export-weights RUN --out PLACE`."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional

from harmonic_jax.checks import require
from harmonic_jax.cli.command import command
from harmonic_jax.cli.import_weights import KEPT
from harmonic_jax.cli.options import UsageError
from harmonic_jax.config import ConfigError
from harmonic_jax.export import (
    PLATFORMS,
    BatchSize,
    InferenceFunction,
    export_stablehlo,
    on_canvas,
    on_frames,
    write_weights,
)
from harmonic_jax.export.model_card import model_card
from harmonic_jax.files import read_lines, write_bytes, write_text
from harmonic_jax.metrics.coco import format_table
from harmonic_jax.pretrained import detector_layout, write_state_dict
from harmonic_jax.pretrained.convert import StoredAs, as_dtype, export_state
from harmonic_jax.pretrained.files import check_target, read_tensors
from harmonic_jax.pretrained.hub import WEIGHTS_FILE
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.arrays import named_leaves
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun, header_of, open_detector, without_places
from harmonic_jax.training.sharding import data_mesh, replicated

_NAMES = {
    "onnx": ("detector.onnx",),
    "stablehlo": ("detector.jax", "detector.json"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a trained detector for other programs (docs/export.md)."""

    run: Positional[Path]
    """A run's folder or file; or retinanet_lite0_voc, hf:OWNER/NAME, torchvision:NAME."""
    to: Literal["onnx", "stablehlo"]
    """A program for any ONNX runtime, or one that JAX alone runs."""
    out: Path
    """The folder to write to."""
    last: bool = False
    """The newest checkpoint instead of the best."""
    batch_size: Annotated[BatchSize, "[1, 65536]"] = "any"
    """Images of a call of a program. `any`: as many as there are, computed one after another."""
    frame: str | None = None
    """HEIGHTxWIDTH: programs take images of this size and resize them inside; otherwise images
    must be resized and padded as in training, to --bucket."""
    bucket: str | None = None
    """HEIGHTxWIDTH: padded size; None: the config's first."""
    dtype: StoredAs = "float32"
    """In which float32 weights are stored; they are computed with in float32."""
    platforms: tuple[Literal[PLATFORMS], ...] = PLATFORMS  # type: ignore[valid-type]
    """Of stablehlo."""


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """Write a run's weights: a file for torchvision (of RT-DETR for transformers), or a folder for
    the Hugging Face Hub."""

    run: Positional[Path]
    """A run's folder or file; or retinanet_lite0_voc, hf:OWNER/NAME, torchvision:NAME."""
    out: Path
    """The .safetensors file to write, in their layout; with --card, the folder."""
    card: bool = False
    """Write a folder to publish: model.safetensors, with names of our own, and a model card."""
    dtype: StoredAs = "float32"
    """In which float32 numbers are stored; they are read as float32."""
    license: str | None = None
    """Of the weights, as the Hub calls it (apache-2.0, cc-by-4.0, other); goes with --card."""
    notes: Path | None = None
    """A file in Markdown whose text ends the card; goes with --card."""
    last: bool = False
    """The newest checkpoint instead of the best."""


@command(Options, "export")
def main(options: Options) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    if options.to == "onnx" and options.platforms != PLATFORMS:
        raise UsageError("--platforms goes with --to stablehlo")
    require(len(options.platforms) > 0, "--platforms", "empty", f"some of {', '.join(PLATFORMS)}")
    targets = _free_targets(options.out, _NAMES[options.to])
    run = open_detector(options.run, sharding=replicated(data_mesh()), last=options.last)
    try:
        lines = _write(options, run, targets)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'harmonic-jax[export]'"
        ) from None
    for line in (*(f"written: {target}" for target in targets), *lines):
        Terminal().print(line)
    return 0


@command(WeightsOptions, "export-weights")
def main_weights(options: WeightsOptions) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    if options.card:
        return _publish(options)
    if options.license or options.notes:
        raise UsageError("--license and --notes go with --card")
    check_target(options.out)
    run = open_detector(options.run, sharding=replicated(data_mesh()), last=options.last)
    state_dict = as_dtype(torchvision_state_dict(run, options.run), options.dtype)
    write_state_dict(options.out, state_dict, metadata=header_of(run))
    console, name = Terminal(), repr(str(options.out))
    console.print(f"written: {options.out}, {len(state_dict)} tensors")
    console.print(f"read it with: model.load_state_dict(safetensors.torch.load_file({name}))")
    return 0


def _publish(options: WeightsOptions) -> int:
    """Writes a folder that can be uploaded as it is; returns the exit status."""
    weights, card = _free_targets(options.out, (WEIGHTS_FILE, "README.md"))
    notes = "" if options.notes is None else "\n".join(read_lines(options.notes))
    opened = open_detector(options.run, sharding=replicated(data_mesh()), last=options.last)
    run, rows = without_places(opened), RunFolder(options.run).read_log()
    found = [row for row in rows if row["kind"] == "eval" and row["step"] == run.step]
    table, name = format_table(found[-1]) if found else "", options.out.resolve().name
    text = model_card(run, name=name, table=table, license=options.license, notes=notes)
    options.out.mkdir(parents=True, exist_ok=True)
    with _beside(card, text):
        number = write_weights(run, weights, dtype=options.dtype)
    size = f"{number} arrays, {weights.stat().st_size / 1e6:.1f} MB"
    use = f"use it: harmonic_jax.load({str(options.out)!r})"
    Terminal().print(f"written: {weights}, {size}\nwritten: {card}\n{use}")
    return 0


def _free_targets(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files to write, none of which is there yet."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose a folder with --out")
    targets = [folder / name for name in names]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists; nothing is overwritten")
    return targets


def _write(options: Options, run: SavedRun, targets: Sequence[Path]) -> list[str]:
    """Writes the files, all or none; returns what is said of them."""
    path = targets[0]
    function = _function(options, run)
    inputs = _described(function.inputs)
    about = {"class_names": run.class_names, "step": run.step, "inputs": inputs}
    options.out.mkdir(parents=True, exist_ok=True)
    if options.to == "stablehlo":
        with _beside(targets[1], json.dumps(about, indent=2) + "\n"):
            program = export_stablehlo(function, platforms=options.platforms)
            write_bytes(path, program.serialize())
        kind, outputs = "", jax.tree.unflatten(program.out_tree, program.out_avals)
        call = f"jax.export.deserialize(open({str(path)!r}, 'rb').read()).call(*inputs)"
    else:
        from harmonic_jax.export.onnx import OPSET, write_onnx

        texts = {name: json.dumps(value) for name, value in about.items()}
        outputs = write_onnx(function, path, about=texts)
        kind = f", opset {OPSET}, class names inside"
        call = f"onnxruntime.InferenceSession({str(path)!r}).run(None, inputs)"
    return [
        f"size: {path.stat().st_size / 1e6:.1f} MB{kind}",
        *(
            f"{title}: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"
            for title, shapes in (("inputs", inputs), ("outputs", _described(outputs)))
        ),
        f"run it: {call}",
    ]


def _described(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


@contextlib.contextmanager
def _beside(path: Path, text: str) -> Iterator[None]:
    """Writes the small file of two; it goes again if the large one cannot be written."""
    write_text(path, text)
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _size(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    require(match is not None, option, text, "HEIGHTxWIDTH, 480x640 say")
    return int(match[1]), int(match[2])  # type: ignore[index]


def _function(options: Options, run: SavedRun) -> InferenceFunction:
    frame, bucket = _size("--frame", options.frame), _size("--bucket", options.bucket)
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(run.variables).items()}
    leaves = map(jnp.asarray, as_dtype(arrays, options.dtype).values())
    variables = jax.tree.unflatten(jax.tree.structure(run.variables), leaves)
    size = options.batch_size
    if frame is not None and bucket is not None:
        raise UsageError("give --frame or --bucket, not both")
    if frame is not None:
        height, width = frame
        return on_frames(run.detector, variables, batch_size=size, height=height, width=width)
    bucket = bucket or run.config.data.buckets[0]
    return on_canvas(run.detector, variables, batch_size=size, bucket=bucket)


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
