"""When a program is one of several processes, and what it says where it cannot be."""

import json

import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.training.processes import (
    ProcessOptions,
    gather,
    launcher,
    run_on_all,
    run_on_primary,
)

TPU = {"TPU_ML_PLATFORM": "JAX"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (SLURM | {"SLURM_STEP_NODELIST": "node[1-2]"}, "SLURM"),
        (SLURM | {"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1"}, None),
        (SLURM, None),  # a shell in an allocation, not a task of a step
        (TPU, "Cloud TPU"),  # JAX asks the metadata server
        (TPU | {"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, "Cloud TPU"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # any pod, a notebook say
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, "JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_what_started_this_process(environ: dict[str, str], name: str | None) -> None:
    assert launcher(environ) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "host"}, "--coordinator is 'host'; it must be HOST:PORT"),
        ({"num_processes": 0}, r"--num-processes is 0; it must be a whole number in \[1, "),
        ({"num_processes": 2, "process_id": 2}, r"--process-id is 2; .* in \[0, 2\)"),
        ({"heartbeat_timeout_seconds": 0}, "--heartbeat-timeout-seconds is 0"),
        ({"coordinator": "host:99999"}, "--coordinator is 'host:99999'"),
        ({"coordinator": "host:²"}, "--coordinator is 'host:²'"),
    ],
)
def test_illegal_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProcessOptions(**options)


def test_alone_everything_is_a_plain_call() -> None:
    def fail() -> None:
        raise OSError("full")

    assert gather({"a": 1}) == [{"a": 1}]
    assert run_on_all(lambda: 3, primary_first=True) == 3
    assert run_on_primary(lambda: json.loads("[1]")) == [1]
    with pytest.raises(OSError, match="full"):
        run_on_all(fail)
    with pytest.raises(OSError, match="full"):
        run_on_primary(fail)
