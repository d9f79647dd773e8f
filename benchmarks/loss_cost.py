"""What HarDet costs: the train step with and without it, in turns, and the memory of both.

    python -m benchmarks.loss_cost [NAME ..] [--size 256] [--batch 4] [--repeats 30] [--json FILE]

One detector, one batch, one machine: only the loss differs. Besides whole steps, of which the loss
is a small part, XLA's own counts are printed: arithmetic, and the memory that a step needs
besides its arguments. They do not vary from run to run.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.detector_cases import NAMES, make_case, random_batch
from harmonic_jax.cli.command import use_both_cores
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import TrainState, build_detector, init_state, init_variables
from harmonic_jax.training.step import make_train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=[])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, help="also append the numbers to this file")
    args = parser.parse_args()
    use_both_cores()
    print(f"{args.batch} images of {args.size} x {args.size} (SSD: 300), {jax.devices()[0]}")
    for name in args.names or NAMES:
        row = _compare(name, args.size, args.batch, args.repeats)
        if args.json is not None:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _compare(name: str, size: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Prints a comparison, and returns it as a row of benchmarks/results/loss_cost.jsonl."""
    steps = {hardet: _Step(name, size, batch_size, hardet) for hardet in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(repeats):
        for hardet in (False, True) if turn % 2 else (True, False):
            seconds[hardet].append(steps[hardet].run())
    plain, full = (statistics.median(seconds[hardet]) for hardet in (False, True))
    # The two of a turn met the same disturbance: their ratio says more than that of the medians.
    ratios = [b / a - 1 for a, b in zip(seconds[False], seconds[True], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{name:24} plain {plain * 1e3:9.1f} ms   HarDet {full * 1e3:9.1f} ms   "
        f"{middle:+.1%} (quartiles {low:+.1%} to {high:+.1%})"
    )
    for what, unit, scale in (("flops", "GFLOP", 1e9), ("temporary bytes", "MB", 1e6)):
        before, after = (steps[hardet].counts[what] for hardet in (False, True))
        print(
            f"{'':24} {what}: {before / scale:.1f} and {after / scale:.1f} {unit} "
            f"({after / before - 1:+.2%})"
        )
    counts = {
        f"{what} {side}": steps[hardet].counts[what]
        for what in steps[True].counts
        for hardet, side in ((False, "baseline"), (True, "hardet"))
    }
    return {
        "detector": name,
        "size": 300 if name == "ssd300_vgg16" else size,
        "batch": batch_size,
        "device": jax.devices()[0].device_kind,
        "repeats": repeats,
        "seconds baseline": plain,
        "seconds hardet": full,
        "ratio quartiles": [low, middle, high],
        **counts,
    }


class _Step:
    """A compiled train step with its state."""

    def __init__(self, name: str, size: int, batch_size: int, hardet: bool) -> None:
        case = make_case(name, batch_size=batch_size, size=(size, size), hardet=hardet)
        mesh = data_mesh()
        detector = build_detector(case.config, case.num_classes)
        optimizer = make_optimizer(case.config.optim, case.config.train)
        variables = init_variables(detector, seed=0, sharding=replicated(mesh))
        self._state: TrainState = init_state(
            variables, optimizer, ema=False, sharding=replicated(mesh)
        )
        self._batch = put_batch(random_batch(batch_size, case.size, case.num_classes), mesh)
        step = make_train_step(detector, optimizer, mesh)
        self._step: Any = step.lower(self._state, self._batch).compile()  # type: ignore[attr-defined]
        self.counts = {
            "flops": float(self._step.cost_analysis()["flops"]),
            "temporary bytes": float(self._step.memory_analysis().temp_size_in_bytes),
        }
        self.run()  # warm

    def run(self) -> float:
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
