"""One mesh, one axis: batches are split over `data`, everything else is on every device.

Also whether JAX can start, and whether batches fit: what is wrong is said in a line.
"""

import functools
import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.structures import Batch
from harmonic_jax.training.processes import first_line

DATA_AXIS = "data"


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (of all processes) along one axis, `data`; ConfigError without any."""
    check_devices()
    return Mesh(np.array(devices if devices is not None else jax.devices()), (DATA_AXIS,))


def single_mesh() -> Mesh:
    """A mesh of this process's first device; raises as `data_mesh`."""
    check_devices()
    return data_mesh(jax.local_devices()[:1])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch -> the global batch, split over the mesh."""
    sharding = split_batch(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )


def check_batch_size(config: Config, mesh: Mesh) -> None:
    """Refuses batches that the devices do not divide."""
    size, parts = config.train.batch_size, config.optim.accumulate
    needed = mesh.size * parts
    if size % needed:
        raise ConfigError(
            f"train.batch_size is {size}; it must be a multiple of {needed}: "
            f"{mesh.size} devices x {parts} accumulation parts"
        )


def eval_batch_size(config: Config, mesh: Mesh) -> int:
    """Images of a batch of evaluation: as configured, rounded up to a multiple of the devices.

    A device has no more of them for it, and rows without an image detect nothing: the result is
    the same for every batch size.
    """
    settings = config.train
    return -(-(settings.eval_batch_size or settings.batch_size) // mesh.size) * mesh.size


@functools.cache
def check_devices() -> None:
    """Starts JAX's devices; after `join_processes`, before anything that needs them.

    Where JAX has none, the ConfigError names the variable of the environment that is wrong.
    """
    try:
        jax.devices()
    except Exception as error:  # whatever a backend raises, assertions among it
        for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
            if value := os.environ.get(name):
                raise ConfigError(
                    f"{name} is {value!r}: JAX finds no such device ({first_line(error)}); unset "
                    "it to take what there is, or set it to cpu"
                ) from error
        raise ConfigError(f"JAX finds no device to compute on ({first_line(error)})") from error
