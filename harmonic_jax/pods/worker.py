"""`python -m harmonic_jax.pods.worker REQUEST RESULT`: one compilation, in a process of its own.

The compiler ends its process where it meets an internal error, so `compile_remotely` is what the
command calls: it starts this module and turns such an end into an exception.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harmonic_jax.config import Config
from harmonic_jax.pods.chips import Slice, parse_slice
from harmonic_jax.pods.hlo import Collective
from harmonic_jax.pods.measure import Measurement, TooBig, measure
from harmonic_jax.training.config_json import config_from_json, config_to_json

# libtpu asks a TPU machine's metadata server who it is, and waits for it, unless told not to.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # A machine's chips belong to one process, which holds a lock; compilers may share it.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class CompileError(RuntimeError):
    """The compiler failed for a reason that is not the size of the program."""


def compile_remotely(
    config: Config, pod: Slice, bucket: tuple[int, int], *, num_classes: int, fast: bool = False
) -> Measurement | TooBig:
    """`measure.measure` in a process of its own.

    Args:
      config: whose train step, with the global batch of `train.batch_size`.
      pod: for which slice.
      bucket: height and width of the images.
      num_classes: of the detector.
      fast: compile without the compiler's optimisations.

    Raises:
      CompileError: with the signal or the last lines of the compiler.
    """
    request = {
        "config": config_to_json(config),
        "topology": pod.topology,
        "num_slices": pod.num_slices,
        "bucket": bucket,
        "num_classes": num_classes,
    }
    environment = os.environ | ENVIRONMENT
    environment.pop("JAX_OPTIMIZATION_LEVEL", None)
    if fast:
        environment["JAX_OPTIMIZATION_LEVEL"] = "O0"
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(request))
        command = [sys.executable, "-m", "harmonic_jax.pods.worker", str(asked), str(answered)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not answered.exists():
            raise CompileError(_failure(pod, done))
        return result_from_json(json.loads(answered.read_text()))


def result_from_json(values: dict[str, Any]) -> Measurement | TooBig:
    """The inverse of `dataclasses.asdict` on a result."""
    values = values | {"bucket": tuple(values["bucket"])}
    if "needed" in values:
        return TooBig(**values)
    collectives = tuple(
        Collective(**row | {"dtypes": tuple(row["dtypes"])}) for row in values["collectives"]
    )
    return Measurement(**values | {"collectives": collectives})


def _failure(pod: Slice, done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("F") and "Check failed" in line]
    if done.returncode < 0:
        end = f"the compiler for {pod.name} ended with {signal.Signals(-done.returncode).name}"
        return f"{end}: {fatal[0]}" if fatal else end
    errors = [line for line in lines if re.match(r"[\w.]+Error: ", line)]
    last = (errors or lines or ["without a word"])[-1]
    return f"the compiler for {pod.name} failed: {last}"


def main(request: Path, result: Path) -> None:
    asked = json.loads(request.read_text())
    pod = dataclasses.replace(parse_slice(asked["topology"]), num_slices=asked["num_slices"])
    found = measure(
        config_from_json(asked["config"]),
        pod,
        tuple(asked["bucket"]),
        num_classes=asked["num_classes"],
    )
    result.write_text(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
