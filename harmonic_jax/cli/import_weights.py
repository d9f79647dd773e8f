"""`harmonic-jax import-weights FILE --to MODEL --out RUN`."""

import contextlib
import dataclasses
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tyro.conf import Positional

from harmonic_jax.cli.command import command, quoted
from harmonic_jax.cli.options import UsageError
from harmonic_jax.config import Config, ConfigError, ResNetConfig, TrainConfig
from harmonic_jax.data.folders import read_class_names
from harmonic_jax.pretrained import (
    WeightsError,
    detector_layout,
    load_detector,
    read_state_dict,
    write_state_dict,
)
from harmonic_jax.pretrained.convert import check_classifier, remainder
from harmonic_jax.pretrained.models import CLASSIFIERS, DETECTORS, PLACEHOLDER, PublishedDetector
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.config_json import config_to_json
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import Variables, abstract_variables, build_detector

_MODELS = (*DETECTORS, *CLASSIFIERS)
KEPT = "not_in_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Options:
    """Make a run of a state dict of torchvision's, to evaluate or to fine-tune."""

    file: Positional[Path]
    """.safetensors, or PyTorch's .pth."""
    to: Literal[_MODELS]  # type: ignore[valid-type]
    """torchvision's name: of a detector, or of a classifier, whose file is checked only."""
    out: Path | None = None
    """Folder of the run, made here."""
    class_names: Path | None = None
    """Text file with the name of each class of the detector on a line, without the background of
    softmax detectors; None: torchvision's COCO classes."""
    norm_eps: float | None = None
    """Epsilon of the backbone's norms; None: that of the published COCO weights, 0 for the first
    versions, 1e-5 for _v2."""


@command(Options, "import-weights")
def main(options: Options) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    console, file = Terminal(), options.file
    if options.to in CLASSIFIERS:
        of_detector = {"--out": options.out, "--class-names": options.class_names}
        for option, value in (of_detector | {"--norm-eps": options.norm_eps}).items():
            if value is not None:
                raise UsageError(f"{option} goes with a detector; {options.to} is a classifier")
        check_classifier(file, CLASSIFIERS[options.to])
        usage = f"--model.backbone.weights {quoted(file)}"
        console.print(f"{file} fits {options.to}. Train on it with {usage}")
        return 0
    if options.out is None:
        raise ConfigError("--out is missing; it must name the folder of the run to make")
    if options.out.exists():
        raise ConfigError(f"{options.out} exists; choose another folder with --out")
    foreign = _with_options(DETECTORS[options.to], options)
    state_dict = read_state_dict(file)
    run_dir, train = str(options.out), TrainConfig(eval_batch_size=4)
    config = Config(options.to, foreign.data, foreign.model, train=train, run_dir=run_dir)
    try:
        with _becoming(options.out) as folder:
            line = import_run(state_dict, config, foreign, RunFolder(folder))
    except WeightsError as error:
        raise WeightsError(
            f"weights file {file}: {error} (here it has {len(foreign.class_names)} classes; "
            "--class-names FILE says others, in the order of its labels)"
        ) from error
    console.print(f"{options.out}: {line}")
    name = quoted(options.out)
    console.print(f"evaluate it with: harmonic-jax eval {name} --root COCO_FOLDER")
    console.print(f"fine-tune it with: harmonic-jax train CONFIG --init {name}")
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
    foreign: PublishedDetector,
    run_dir: RunFolder,
) -> str:
    """Writes a run whose best checkpoint, of step 0, holds the weights of a state dict.

    What the model has no place for (counters, outputs for background) is written beside it, so
    that an export gives the same state dict again. Returns a line that says what was read.

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
    renamed = {layout.renamed(name): name for name in state_dict}
    run_dir.open(config)
    if kept:
        write_state_dict(run_dir.path / KEPT, kept)
    metadata = {
        "config": config_to_json(config),
        "class_names": list(foreign.class_names),
        "category_ids": list(foreign.category_ids),
        "torchvision_names": {today: old for today, old in renamed.items() if today != old},
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


def _with_options(foreign: PublishedDetector, options: Options) -> PublishedDetector:
    model, eps = foreign.model, options.norm_eps
    if eps is not None:
        if not isinstance(model.backbone, ResNetConfig):
            raise ConfigError(f"--norm-eps is {eps}; torchvision's SSD has no norms")
        backbone = dataclasses.replace(model.backbone, norm_eps=eps)
        foreign = dataclasses.replace(foreign, model=dataclasses.replace(model, backbone=backbone))
    if options.class_names is not None:
        names = read_class_names(options.class_names, repeatable=PLACEHOLDER)
        ids = tuple(range(len(names)))
        foreign = dataclasses.replace(foreign, class_names=names, category_ids=ids)
    return foreign
