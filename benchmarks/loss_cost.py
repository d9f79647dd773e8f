"""What HarDet costs: the train step with and without it, in turns, and the memory of both.

    python -m benchmarks.loss_cost configs/retinanet_lite0_voc.py .. [--batch 8] [--json FILE]

One detector, one batch of noise in the config's first shape, one machine: only the loss differs.
The ratio is the median over turns, with its 95 % interval (of order statistics, so no
distribution is assumed). Besides whole steps, of which the loss is a small part, XLA's own counts
are printed: arithmetic, and the memory that a step needs besides its arguments. They do not vary
from run to run.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.detector_cases import random_batch
from harmonic_jax.cli.command import prepare_processor
from harmonic_jax.cli.configs import config_from_args
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import TrainState, build_detector, init_state, init_variables
from harmonic_jax.training.step import make_train_step

NUM_CLASSES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also append the numbers to this file")
    args = parser.parse_args()
    prepare_processor()
    for path in args.configs:
        row = _compare(path, args.batch, args.repeats)
        if args.json is not None:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median between the bounds of its 95 % interval.

    >>> median_interval(range(101))
    (40, 50, 60)
    """
    ordered, n = sorted(values), len(values)
    reach = 0.98 * math.sqrt(n)  # of a binomial: 1.96 standard deviations
    low, high = math.floor((n - 1) / 2 - reach), math.ceil((n - 1) / 2 + reach)
    return ordered[max(low, 0)], statistics.median(ordered), ordered[min(high, n - 1)]


def _compare(config: Path, batch_size: int, repeats: int) -> dict[str, Any]:
    """Prints a comparison, and returns it as a row of benchmarks/results/loss_cost.jsonl."""
    steps = {hardet: _Step(config, batch_size, hardet) for hardet in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(repeats):
        for hardet in (False, True) if turn % 2 else (True, False):
            seconds[hardet].append(steps[hardet].run())
    plain, full = (statistics.median(seconds[hardet]) for hardet in (False, True))
    # The two of a turn met the same disturbance: their ratio says more than that of the medians.
    ratios = [b / a - 1 for a, b in zip(seconds[False], seconds[True], strict=True)]
    low, middle, high = median_interval(ratios)
    print(
        f"{config.stem:24} plain {plain * 1e3:9.1f} ms   HarDet {full * 1e3:9.1f} ms   "
        f"{middle:+.2%} ({low:+.2%} to {high:+.2%})",
        flush=True,
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
        "detector": config.stem,
        "size": list(steps[True].size),
        "batch": batch_size,
        "device": jax.devices()[0].device_kind,
        "repeats": repeats,
        "seconds baseline": plain,
        "seconds hardet": full,
        "ratio interval": [low, middle, high],
        **counts,
    }


class _Step:
    """A compiled train step with its state."""

    def __init__(self, path: Path, batch_size: int, hardet: bool) -> None:
        chosen = "--loss.hardet" if hardet else "--loss.no-hardet"
        config = config_from_args([str(path), chosen, "--model.backbone.weights", "None"])
        mesh = data_mesh()
        detector = build_detector(config, NUM_CLASSES)
        optimizer = make_optimizer(config.optim, config.train)
        variables = init_variables(detector, seed=0, sharding=replicated(mesh))
        self._state: TrainState = init_state(
            variables, optimizer, ema=False, sharding=replicated(mesh)
        )
        self.size = config.data.buckets[0]
        self._batch = put_batch(random_batch(batch_size, self.size, NUM_CLASSES), mesh)
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
