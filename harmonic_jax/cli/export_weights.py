"""`python -m harmonic_jax export-weights RUN --out FILE.safetensors`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harmonic_jax.cli.command import FAILURES, run_command
from harmonic_jax.cli.import_weights import KEPT
from harmonic_jax.pretrained import detector_layout, read_state_dict, write_state_dict
from harmonic_jax.pretrained.layout import export_state
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.restore import read_run
from harmonic_jax.training.run_dir import RunDir
from harmonic_jax.training.sharding import data_mesh, replicated


def main(args: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 1 failed with a message."""
    parsed = _parser().parse_args(args)
    return run_command(lambda: _main(parsed), failures=(*FAILURES, ValueError))


def _main(parsed: argparse.Namespace) -> int:
    state_dict = export_run(RunDir(parsed.run), last=parsed.last)
    write_state_dict(parsed.out, state_dict)
    console = Terminal()
    console.print(f"written: {parsed.out}, {len(state_dict)} tensors")
    name = repr(str(parsed.out))
    console.print(f"read it with: model.load_state_dict(safetensors.torch.load_file({name}))")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harmonic_jax export-weights",
        description="Write a run's weights with torchvision's names and layouts.",
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--last", action="store_true", help="the newest checkpoint instead of the best"
    )
    return parser


def export_run(run_dir: RunDir, *, last: bool = False) -> dict[str, np.ndarray]:
    """The state dict of a run in torchvision's layout; of an imported run, the one it came from.

    Raises:
      WeightsError: torchvision has no such detector.
      ConfigError: the folder holds no run.
      CheckpointError: it holds no undamaged checkpoint.
    """
    run = read_run(run_dir, sharding=replicated(data_mesh()), last=last)
    layout = detector_layout(run.config.model, len(run.class_names))
    kept = run_dir.path / KEPT
    originals = read_state_dict(kept) if kept.exists() else {}
    state_dict = export_state(run.variables.params, run.variables.rest, layout, originals=originals)
    old_names = run.metadata.get("torchvision_names", {})
    return {old_names.get(name, name): array for name, array in state_dict.items()}
