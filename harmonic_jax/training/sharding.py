"""One mesh, one axis: batches are split over `data`, everything else is on every device."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from harmonic_jax.config import ConfigError
from harmonic_jax.structures import Batch

DATA_AXIS = "data"


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (of all processes) along one axis, `data`."""
    return Mesh(np.array(devices if devices is not None else jax.devices()), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_divides(mesh: Mesh, field: str, batch_size: int, *, parts: int = 1) -> None:
    """Refuses a batch size that cannot be split evenly; `parts` is the accumulation."""
    needed = mesh.size * parts
    if batch_size % needed:
        raise ConfigError(
            f"{field} is {batch_size}; it must be a multiple of {needed}: "
            f"{mesh.size} devices x {parts} accumulation parts"
        )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch -> the global batch, split over the mesh."""
    sharding = split_batch(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )
