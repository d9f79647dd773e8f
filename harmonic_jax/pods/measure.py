"""Compiles the train step of a config for a slice that is not there, and reads off what it needs.

Runs in a process of its own (`worker`): an internal error of the compiler ends the process.
"""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from harmonic_jax.config import Config
from harmonic_jax.pods.chips import Slice
from harmonic_jax.pods.hlo import Collective, find_collectives
from harmonic_jax.pods.roofline import Work, collective_bytes
from harmonic_jax.pods.traffic import hbm_bytes
from harmonic_jax.structures import Batch, GroundTruth, ObjectMasks
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, replicated, split_batch
from harmonic_jax.training.state import TrainState, abstract_state, build_detector
from harmonic_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One compiled program. Bytes, FLOPs and collectives are those of one chip and step."""

    bucket: tuple[int, int]
    images: int  # of a chip
    seconds: float  # it took to compile
    arguments: int  # state and batch
    temporaries: int
    code: int
    total: int  # of HBM at once: arguments, temporaries, outputs that reuse no argument, code
    flops: float
    accessed_bytes: float  # by all instructions, in HBM or in the chip's own memory
    memory_bytes: float  # from and to HBM
    gradient_bytes: int  # of all trained arrays, float32
    collectives: tuple[Collective, ...]

    @property
    def work(self) -> Work:
        reduced, others = collective_bytes(self.collectives)
        if not self.collectives:  # compiled for one chip; several would sum the gradient
            reduced = float(self.gradient_bytes)
        return Work(
            images=self.images,
            flops=self.flops,
            memory_bytes=self.memory_bytes,
            reduced_bytes=reduced,
            other_wire_bytes=others,
            peak_bytes=self.total,
        )


@dataclasses.dataclass(frozen=True)
class TooBig:
    """What the compiler refused, in bytes a chip."""

    bucket: tuple[int, int]
    images: int
    needed: int
    available: int
    state: int  # of `needed`: parameters, optimizer, moving average


def compile_only_mesh(pod: Slice) -> Mesh:
    """A mesh of devices that can be compiled for and nothing else; needs libtpu."""
    options: dict[str, Any] = {}
    if pod.num_slices > 1:
        options["num_slices"] = pod.num_slices
    if pod.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as in JAX
    topology = topologies.get_topology_desc(pod.topology, platform="tpu", **options)
    return data_mesh(list(topology.devices))


def abstract_batch(config: Config, bucket: tuple[int, int], mesh: Mesh) -> Batch:
    """The shapes of a global training batch of a bucket, split over the mesh."""
    sharding = split_batch(mesh)
    size, objects, side = config.train.batch_size, config.data.max_objects, config.data.mask_size

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

    masks = None
    if config.data.masks:
        masks = ObjectMasks(array(objects, side, side, dtype=jnp.uint8), array(objects, 4))
    return Batch(
        images=array(*bucket, 3, dtype=jnp.uint8),
        image_size=array(2),
        scale=array(2),
        record_index=array(dtype=jnp.int32),
        is_real=array(dtype=jnp.bool_),
        ground_truth=GroundTruth(
            boxes=array(objects, 4),
            labels=array(objects, dtype=jnp.int32),
            valid=array(objects, dtype=jnp.bool_),
            masks=masks,
        ),
    )


def lower_train_step(
    config: Config, mesh: Mesh, bucket: tuple[int, int], *, num_classes: int
) -> tuple[jax.stages.Lowered, TrainState]:
    """The train step that `train.py` runs, before compilation, and the shapes of its state."""
    detector = build_detector(config, num_classes)
    settings = config.train
    optimizer = make_optimizer(config.optim, steps=settings.steps, batch_size=settings.batch_size)
    state = abstract_state(detector, optimizer, sharding=replicated(mesh))
    step: Any = make_train_step(detector, optimizer, mesh)
    return step.lower(state, abstract_batch(config, bucket, mesh)), state


def tree_bytes(tree: Any) -> int:
    """Of all arrays of a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def measure(
    config: Config, pod: Slice, bucket: tuple[int, int], *, num_classes: int
) -> Measurement | TooBig:
    """Compiles the train step of a bucket for a slice.

    Raises:
      JaxRuntimeError: the compiler failed for another reason than memory.
    """
    mesh = compile_only_mesh(pod)
    images = config.train.batch_size // mesh.size
    lowered, state = lower_train_step(config, mesh, bucket, num_classes=num_classes)
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        batch = tree_bytes(abstract_batch(config, bucket, mesh)) // mesh.size
        sizes = parse_out_of_memory(str(error), arguments=tree_bytes(state) + batch)
        if sizes is None:
            raise
        return TooBig(bucket, images, *sizes, state=tree_bytes(state))
    seconds = time.monotonic() - start
    text = compiled.as_text() or ""
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = (
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
    )
    return Measurement(
        bucket=bucket,
        images=images,
        seconds=seconds,
        arguments=parts[0],
        temporaries=parts[1],
        code=parts[2],
        total=sum(parts) + kept,
        flops=float(cost["flops"]),
        accessed_bytes=float(cost["bytes accessed"]),
        memory_bytes=float(hbm_bytes(text)),
        gradient_bytes=tree_bytes(state.variables.params),
        collectives=tuple(find_collectives(text)),
    )


def parse_out_of_memory(message: str, *, arguments: int) -> tuple[int, int] | None:
    """(bytes needed, bytes there are) from the compiler's refusal; None if it is another one.

    Args:
      message: of the error.
      arguments: bytes of state and batch, which one of the two wordings leaves out.

    >>> parse_out_of_memory("RESOURCE_EXHAUSTED: .. Used 2.5G of 1.5G hbm. ..", arguments=7)
    (2684354560, 1610612736)
    """
    number = r"([\d.]+)([KMGT]?)"
    whole = re.search(rf"Used {number} of {number} hbm", message)
    partly = re.search(rf"temporaries \({number}\) exceeds available HBM \({number}\)", message)
    found = whole or partly
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed, available = (
        int(float(digits) * 1024 ** " KMGT".index(unit or " "))
        for digits, unit in ((found[1], found[2]), (found[3], found[4]))
    )
    return (needed if whole else needed + arguments), available
