"""Compiles the train step of a config for a TPU slice that is not there, and reads what it needs.

`compile_for_slice` runs this module in a process of its own, since the compiler ends its process
where it meets an internal error.
"""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import msgspec
from jax.experimental import topologies
from jax.sharding import Mesh

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.pods.collectives import Collective, find_collectives
from harmonic_jax.structures import Batch
from harmonic_jax.training.compilation import abstract_batch
from harmonic_jax.training.config_json import config_from_json, config_to_json
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import TrainState, abstract_state, build_detector
from harmonic_jax.training.step import make_train_step

# libtpu asks a TPU machine's metadata server who it is, and waits for it, unless told not to.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # A machine's chips belong to one process, which holds a lock; compilers may share it.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class CompileError(ConfigError):
    """The compiler failed for a reason that is not the size of the program."""


# GiB of HBM, and the axes of the largest slice: the pages "TPU v4", "TPU v5e", "TPU v5p" (the
# largest job) and "TPU v6e" of the Cloud TPU documentation.
CHIPS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "v4": (32, (16, 16, 16)),
    "v5e": (16, (16, 16)),
    "v5p": (95, (16, 16, 24)),
    "v6e": (32, (16, 16)),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips wired to each other, such as `v5e:16x16`, and how many such slices train together."""

    chip: str
    axes: tuple[int, ...]
    num_slices: int = 1

    @property
    def num_chips(self) -> int:
        return math.prod(self.axes) * self.num_slices

    @property
    def topology(self) -> str:
        """The name of one slice."""
        return f"{self.chip}:{'x'.join(map(str, self.axes))}"

    @property
    def name(self) -> str:
        return self.topology if self.num_slices == 1 else f"{self.num_slices} x {self.topology}"


def parse_slice(name: str, *, num_slices: int = 1) -> Slice:
    """The slice of a name such as `v5e:16x16` or `v4:2x2x1`.

    Raises:
      ConfigError: there is no such chip, or its pods have no such slice.

    >>> parse_slice("v5e:16x16").num_chips
    256
    """
    chip, _, sides = name.partition(":")
    axes = tuple(int(side) for side in sides.split("x") if re.fullmatch(r"\d{1,4}", side))
    if chip in CHIPS and sides == "x".join(map(str, axes)):
        longest = sorted(CHIPS[chip][1])  # slices are turned as they fit: 8x4 is 4x8
        fits = all(1 <= n <= most for n, most in zip(sorted(axes), longest, strict=False))
        if len(axes) == len(longest) and fits and all(n == 1 or n % 2 == 0 for n in axes):
            return Slice(chip, axes, num_slices)
    slices = (f"{chip}:{'x'.join(map(str, axes))}" for chip, (_, axes) in CHIPS.items())
    raise ConfigError(
        f"topology is {name!r}; it must be CHIP:AxB or CHIP:AxBxC, every axis 1 or even, at most "
        f"{', '.join(slices)}"
    )


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled program. Bytes, FLOPs and collectives are those of one chip and step."""

    bucket: tuple[int, int]
    images: int  # of a chip
    seconds: float  # it took to compile
    arguments: int  # state and batch
    temporaries: int
    code: int
    total: int  # of HBM at once: arguments, temporaries, outputs that reuse no argument, code
    flops: float
    gradient_bytes: int  # of all trained arrays, float32
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class TooBig:
    """What the compiler refused, in bytes a chip."""

    bucket: tuple[int, int]
    images: int
    needed: int
    available: int
    state: int  # of `needed`: parameters, optimizer, moving average


def compile_for_slice(
    config: Config, pod: Slice, bucket: tuple[int, int], *, num_classes: int, fast: bool = False
) -> Compiled | TooBig:
    """Compiles a config's train step in a process of its own.

    Args:
      config: whose train step, with the global batch of `train.batch_size`.
      bucket: height and width of the images.
      fast: compile without the compiler's optimisations.

    Raises:
      CompileError: with the signal or the last lines of the compiler.
    """
    request = json.dumps([config_to_json(config), dataclasses.asdict(pod), bucket, num_classes])
    environment = os.environ | ENVIRONMENT
    environment.pop("JAX_OPTIMIZATION_LEVEL", None)
    if fast:
        environment["JAX_OPTIMIZATION_LEVEL"] = "O0"
    command = [sys.executable, "-m", "harmonic_jax.pods.compilation"]
    done = subprocess.run(
        command, input=request, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise CompileError(_failure(pod, done))
    return result_of(json.loads(done.stdout.splitlines()[-1]))


def result_of(values: dict[str, Any]) -> Compiled | TooBig:
    """The inverse of `dataclasses.asdict` on a result."""
    kind: Any = TooBig if "needed" in values else Compiled
    return msgspec.convert(values, kind)


def _failure(pod: Slice, done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("F") and "Check failed" in line]
    if done.returncode < 0:
        end = f"the compiler for {pod.name} ended with {signal.Signals(-done.returncode).name}"
        return f"{end}: {fatal[0]}" if fatal else end
    errors = [line for line in lines if re.match(r"[\w.]+Error: ", line)]
    last = (errors or lines or ["without a message"])[-1]
    return f"the compiler for {pod.name} failed: {last}"


def _compile(
    config: Config, pod: Slice, bucket: tuple[int, int], num_classes: int
) -> Compiled | TooBig:
    """Raises JaxRuntimeError where the compiler failed for another reason than memory."""
    options: dict[str, Any] = {}
    if pod.num_slices > 1:
        options["num_slices"] = pod.num_slices
    if pod.chip == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as in JAX
    topology = topologies.get_topology_desc(pod.topology, platform="tpu", **options)
    mesh = data_mesh(list(topology.devices))
    images = config.train.batch_size // mesh.size
    lowered, state, batch = lower_train_step(config, mesh, bucket, num_classes=num_classes)
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        arguments = tree_bytes(state) + tree_bytes(batch) // mesh.size
        sizes = parse_out_of_memory(str(error), arguments=arguments)
        if sizes is None:
            raise
        return TooBig(bucket, images, *sizes, state=tree_bytes(state))
    seconds = time.monotonic() - start
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    code = memory.generated_code_size_in_bytes
    return Compiled(
        bucket=bucket,
        images=images,
        seconds=seconds,
        arguments=arguments,
        temporaries=temporaries,
        code=code,
        total=arguments + temporaries + outputs + code,
        flops=float(cost["flops"]),
        gradient_bytes=tree_bytes(state.variables.params),
        collectives=tuple(find_collectives(compiled.as_text() or "")),
    )


def lower_train_step(
    config: Config, mesh: Mesh, bucket: tuple[int, int], *, num_classes: int
) -> tuple[jax.stages.Lowered, TrainState, Batch]:
    """The train step that `train.py` runs, before compilation, and the shapes of what it takes."""
    detector, size = build_detector(config, num_classes), config.train.batch_size
    optimizer = make_optimizer(config.optim, config.train)
    state = abstract_state(detector, optimizer, sharding=replicated(mesh))
    masks = config.data.masks
    batch = abstract_batch(config.data, bucket, batch_size=size, masks=masks, mesh=mesh)
    step: Any = make_train_step(detector, optimizer, mesh)
    return step.lower(state, batch), state, batch


def tree_bytes(tree: Any) -> int:
    """Of all arrays of a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def parse_out_of_memory(message: str, *, arguments: int) -> tuple[int, int] | None:
    """(bytes needed, bytes there are) from the compiler's refusal; None if it is another one.

    `arguments` are the bytes of state and batch, which one of the two wordings leaves out.

    >>> parse_out_of_memory("RESOURCE_EXHAUSTED: .. Used 2.5G of 1.5G hbm. ..", arguments=7)
    (2684354560, 1610612736)
    """
    number = r"([\d.]+)([KMGT]?)"
    whole = re.search(rf"Used {number} of {number} hbm", message)
    partly = re.search(rf"temporaries \({number}\) exceeds available HBM \({number}\)", message)
    found = whole or partly
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed = float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")
    available = float(found[3]) * 1024 ** " KMGT".index(found[4] or " ")
    return int(needed) + (0 if whole else arguments), int(available)


def main() -> None:
    config, *rest = json.load(sys.stdin)
    pod, bucket, num_classes = msgspec.convert(rest, tuple[Slice, tuple[int, int], int])
    found = _compile(config_from_json(config), pod, bucket, num_classes)
    print("\n" + json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
