"""One GPU: training and inference of whole detectors and single operations, against PyTorch.

    python -m benchmarks.gpu [TASK ..] [--batch 16] [--repeats 7] [--json FILE]
    python -m benchmarks.gpu --dry-run        # tiny sizes on a processor: does it run at all?

Tasks: matmul, train-retinanet, infer-retinanet, train-ssd300, infer-ssd300, nms, matching, focal,
topk. RetinaNet has a ResNet-50 and images of 800 x 1344. Whole detectors compute in bfloat16:
ours with `train.precision = bfloat16`, torchvision's under autocast with channels last, once as it
is and once with torch.compile. Both sides have the same weights, images and objects.

Each side is a process of its own that prepares the task and then runs it in turns with the others;
what is printed are medians over the turns. `of matmul`: the arithmetic of ours, as counted before
compilation, a second, over the rate of the bfloat16 matrix product of this run.
"""

import argparse
import dataclasses
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TASKS = (
    *("matmul", "train-retinanet", "infer-retinanet", "train-ssd300", "infer-ssd300"),
    *("nms", "matching", "focal", "topk"),
)
SIDES = {
    "ours": ("benchmarks.gpu_ours", ()),
    "PyTorch": ("benchmarks.gpu_peer", ()),
    "torch.compile": ("benchmarks.gpu_peer", ("--compile",)),
}
MOST_APART = 0.1  # of the two sides' losses or counts: both round to bfloat16


class SideError(RuntimeError):
    """A side that cannot run; the message says why."""


@dataclasses.dataclass
class Row:
    """What was measured of one side."""

    task: str
    side: str
    milliseconds: float
    images_per_second: float | None
    speedup: float | None  # of ours over this side
    of_matmul: float | None
    peak_gib: float
    check: float | None

    def format(self) -> str:
        parts = [f"{self.task:16} {self.side:14} {self.milliseconds:9.3f} ms"]
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:8.1f} images/s")
        if self.of_matmul is not None:
            parts.append(f"{self.of_matmul:6.1%} of matmul")
        if self.side != "ours" and self.speedup is not None:
            parts.append(f"ours is {self.speedup:.2f}x as fast")
        if self.peak_gib:
            parts.append(f"{self.peak_gib:.1f} GiB")
        return "   ".join(parts)


class Side:
    """A process that runs one task when told to."""

    def __init__(self, module: str, arguments: Sequence[str], *, dry_run: bool, patience: float):
        # Memory only as needed: three sides share the card. The peer must not take any for JAX.
        settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if dry_run or module.endswith("peer"):
            settings["JAX_PLATFORMS"] = "cpu"
        if dry_run:
            settings["CUDA_VISIBLE_DEVICES"] = ""
        self._patience = patience
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, *(["--dry-run"] if dry_run else [])],
            cwd=Path(__file__).parent.parent,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ready(self) -> dict[str, float]:
        return self._answer()["ready"]

    def run(self, times: int) -> dict[str, float]:
        assert self._process.stdin is not None
        print(times, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self._patience)[0]:
            raise SideError(f"no answer in {self._patience:.0f} s")
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        raise SideError(lines[-1] if lines else f"exit status {self._process.returncode}")

    def close(self) -> None:
        try:
            self._process.communicate(timeout=10)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._log.close()


def main(args: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", choices=[[], *TASKS], default=[])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--batch", type=int, help="images of a detector (default: 16, SSD 32)")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to get ready")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a processor")
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    options = parser.parse_args(args)
    rows: list[Row] = []
    rate: float | None = None
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks or TASKS:
            found = _measure(task, options, Path(folder), rate)
            rows += found
            if task == "matmul" and found:
                seconds = min(row.milliseconds for row in found) / 1e3
                rate = (found[0].check or 0.0) / seconds
                print(f"{'':16} {rate / 1e12:.1f} TFLOP/s")
            if options.json is not None:
                options.json.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1))
    return rows


def _measure(task: str, options: argparse.Namespace, folder: Path, rate: float | None) -> list[Row]:
    """Starts the sides, lets them run in turns, and prints a line for each."""
    arguments = [task]
    if "-" in task:
        arguments += _weights(task.partition("-")[2], options, folder)
    if options.batch:
        arguments += ["--batch", str(options.batch)]
    times = 1 if options.dry_run else 10
    facts: dict[str, dict[str, float]] = {}
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in options.sides}
    sides: dict[str, Side] = {}

    def try_out(name: str, action: Callable[[Side], None]) -> None:
        """A side that fails is left out of what follows."""
        try:
            action(sides[name])
        except SideError as error:
            print(f"{task:16} {name:14} skipped: {error}", flush=True)
            sides.pop(name).close()
            del answers[name]

    try:
        for name in options.sides:  # one after the other: getting ready includes trying kernels
            module, more = SIDES[name]
            sides[name] = _open(module, [*arguments, *more], options)
            try_out(name, lambda side: facts.update({name: side.ready()}))  # noqa: B023
        _check(task, facts)
        for _ in range(options.repeats):
            for name in [*answers]:
                try_out(name, lambda side: answers[name].append(side.run(times)))  # noqa: B023
    finally:
        for side in sides.values():
            side.close()
    rows = _rows(task, facts, answers, times, rate)
    for row in rows:
        print(row.format(), flush=True)
    return rows


def _open(module: str, arguments: Sequence[str], options: argparse.Namespace) -> Side:
    return Side(module, arguments, dry_run=options.dry_run, patience=options.patience)


def _weights(name: str, options: argparse.Namespace, folder: Path) -> list[str]:
    """torchvision's random weights in a file, for both sides; nothing where PyTorch is absent."""
    file = folder / f"{name}.npz"
    if not file.exists():
        writer = _open("benchmarks.gpu_peer", [f"weights-{name}", "--weights", str(file)], options)
        try:
            writer.ready()
        except SideError as error:
            print(f"no common weights: {error}")
        finally:
            writer.close()
    return ["--weights", str(file)] if file.exists() else []


def _check(task: str, facts: dict[str, dict[str, float]]) -> None:
    """Whether the sides compute the same: a loss, a number of boxes, a sum."""
    values = {name: found["check"] for name, found in facts.items() if "check" in found}
    mine = values.get("ours")
    for name, value in values.items():
        if mine is not None and abs(value - mine) > MOST_APART * max(abs(mine), abs(value)):
            print(f"{task:16} {name:14} DISAGREES: {value:.6g}, ours {mine:.6g}")


def _rows(
    task: str,
    facts: dict[str, dict[str, float]],
    answers: dict[str, list[dict[str, float]]],
    times: int,
    rate: float | None,
) -> list[Row]:
    seconds = {
        name: statistics.median(answer["seconds"] for answer in found) / times
        for name, found in answers.items()
    }
    rows = []
    for name, second in seconds.items():
        images, flops = facts[name].get("images"), facts[name].get("flops")
        rows.append(
            Row(
                task=task,
                side=name,
                milliseconds=1e3 * second,
                images_per_second=images / second if images else None,
                speedup=second / seconds["ours"] if "ours" in seconds else None,
                of_matmul=flops / second / rate if flops and rate else None,
                peak_gib=max(answer["peak"] for answer in answers[name]) / 2**30,
                check=facts[name].get("check", flops),
            )
        )
    return rows


if __name__ == "__main__":
    main()
