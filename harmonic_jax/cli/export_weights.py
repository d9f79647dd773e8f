"""`python -m harmonic_jax export-weights RUN --out FILE.safetensors`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harmonic_jax.__main__ import run_script
from harmonic_jax.cli.arguments import Parser
from harmonic_jax.cli.command import FAILURES, run_command
from harmonic_jax.cli.import_weights import KEPT
from harmonic_jax.pretrained import detector_layout, write_state_dict
from harmonic_jax.pretrained.convert import export_state
from harmonic_jax.pretrained.files import check_target, read_tensors
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun, header_of, open_detector
from harmonic_jax.training.sharding import data_mesh, replicated


def main(args: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    failures = (*FAILURES, ValueError)
    return run_command(lambda: _main(_parser().parse_args(args)), failures=failures)


def _main(parsed: argparse.Namespace) -> int:
    check_target(parsed.out)
    run = open_detector(parsed.run, sharding=replicated(data_mesh()), last=parsed.last)
    state_dict = _state_dict(run, parsed.run)
    write_state_dict(parsed.out, state_dict, metadata=header_of(run))
    console = Terminal()
    console.print(f"written: {parsed.out}, {len(state_dict)} tensors")
    name = repr(str(parsed.out))
    console.print(f"read it with: model.load_state_dict(safetensors.torch.load_file({name}))")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m harmonic_jax export-weights",
        description="Write a run's weights with torchvision's names and layouts.",
    )
    parser.add_argument("run", type=Path, help="the folder of a run, or a file of one")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--last", action="store_true", help="the newest checkpoint instead of the best"
    )
    return parser


def export_run(run_dir: RunFolder, *, last: bool = False) -> dict[str, np.ndarray]:
    """The state dict of a run in torchvision's layout; of an imported run, the one it came from.

    Raises:
      WeightsError: torchvision has no such detector, or a weight is NaN or inf.
      ConfigError: the folder holds no run.
      CheckpointError: it holds no undamaged checkpoint.
    """
    run = open_detector(run_dir.path, sharding=replicated(data_mesh()), last=last)
    return _state_dict(run, run_dir.path)


def _state_dict(run: SavedRun, path: Path) -> dict[str, np.ndarray]:
    layout = detector_layout(run.config.model, len(run.class_names))
    kept = path / KEPT
    originals = read_tensors(kept) if kept.exists() else {}
    state_dict = export_state(
        run.variables.params, run.variables.model_state, layout, originals=originals
    )
    old_names = run.metadata.get("torchvision_names", {})
    return {old_names.get(name, name): array for name, array in state_dict.items()}


if __name__ == "__main__":
    run_script("export-weights")
