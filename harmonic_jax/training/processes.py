"""Several processes as one program: how they find each other, agree, and fail together.

JAX connects them, and its collectives carry the data. Here is what it leaves open: whether there
are others at all, a plain word where they do not come, and failing everywhere where one fails.
"""

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from harmonic_jax.checks import check_count, require
from harmonic_jax.config import ConfigError

_T = TypeVar("_T")
_PATIENCE_SECONDS = 10.0
_heartbeat_timeout = 100  # JAX's own default, until `join_processes` says otherwise


class ProcessFailedError(Exception):
    """An action failed on some process, and so on all of them; its cause where it is ours."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """How this process finds the others; no part of an experiment, so no part of its config.

    What is None is found by JAX in the environment of the launcher.
    """

    coordinator: str | None = None
    """HOST:PORT of process 0, the same on all processes."""
    process_id: int | None = None
    num_processes: int | None = None
    """1: this process alone, whatever the environment says."""
    heartbeat_timeout_seconds: int = 100
    """A process not heard of for so long is lost, and all others end."""

    def __post_init__(self) -> None:
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            is_port = port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 2**16
            require(bool(host) and is_port, "--coordinator", self.coordinator, "HOST:PORT")
        count = self.num_processes
        if count is not None:
            check_count("--num-processes", count, "[1, 1000000]")
        if self.process_id is not None:
            check_count("--process-id", self.process_id, f"[0, {count or 1000000})")
        check_count("--heartbeat-timeout-seconds", self.heartbeat_timeout_seconds, "[1, 1000000]")


def launcher(environ: Mapping[str, str]) -> str | None:
    """Names what started this process as one of several; None where it is alone.

    JAX finds out by itself how to reach the others, but an error is its answer to a process that
    has none, and under SLURM and Open MPI it gives each process one GPU, a lonely one too.

    >>> launcher({"OMPI_COMM_WORLD_SIZE": "4"})
    'Open MPI'
    >>> launcher({"OMPI_COMM_WORLD_SIZE": "1"}) is None
    True
    """

    def number(name: str) -> int:
        value = environ.get(name, "")
        return int(value) if value.isdigit() else 1

    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    # A shell inside an allocation has SLURM_NTASKS too; only a step's task has these.
    if {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environ.keys() and number("SLURM_NTASKS") > 1:
        return "SLURM"
    if "TPU_ML_PLATFORM" in environ:  # set by JAX when it is imported on a machine with TPUs
        hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
        is_alone = hosts is not None and "," not in hosts and number("MEGASCALE_NUM_SLICES") == 1
        return None if is_alone else "Cloud TPU"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environ.keys():
        return "Kubernetes"
    return "JAX_COORDINATOR_ADDRESS" if "JAX_COORDINATOR_ADDRESS" in environ else None


def join_processes(options: ProcessOptions) -> None:
    """Connects this process with the others, if there are any; before the first array is made.

    Raises:
      ConfigError: the options and the environment do not say how.
    """
    if options.num_processes == 1 or jax.distributed.is_initialized():
        return
    given = (options.coordinator, options.num_processes, options.process_id)
    if given == (None, None, None) and launcher(os.environ) is None:
        return
    global _heartbeat_timeout
    _heartbeat_timeout = options.heartbeat_timeout_seconds
    is_complete = None not in given
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself; the loop has a handler of its own (watchdog.StopSignal).
    jax.config.update("jax_enable_preemption_service", False)
    # JAX ends the process with a page of text when it gives up.
    where = f" at {options.coordinator}" if options.coordinator else ""
    waiting = (
        f"waiting for the other processes{where}: all must be started, with the same coordinator. "
        "JAX gives up after 5 minutes"
    )
    patience = threading.Timer(
        _PATIENCE_SECONDS, lambda: print(waiting, file=sys.stderr, flush=True)
    )
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            options.coordinator,
            num_processes=options.num_processes,
            process_id=options.process_id,
            # With everything said, the launcher's rule of one GPU a process does not hold either.
            cluster_detection_method="deactivate" if is_complete else None,
            heartbeat_timeout_seconds=options.heartbeat_timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        missing = "" if is_complete else ", and JAX found no answer in the environment"
        raise ConfigError(
            f"cannot join the other processes{missing}: {first_line(error)} (give --coordinator "
            "HOST:PORT, --num-processes and --process-id, or --num-processes 1 to run alone)"
        ) from error
    finally:
        patience.cancel()
    # On processors the first collective waits for 30 s only, later ones as long as it takes.
    multihost_utils.sync_global_devices("all processes have started")


def heartbeat_timeout() -> int:
    """Seconds without a heartbeat after which JAX ends all processes."""
    return _heartbeat_timeout


def is_primary() -> bool:
    """Whether this process prints and writes: the first of all, or the only one."""
    return is_alone() or jax.process_index() == 0


def is_alone() -> bool:
    """Whether this is the only process. Unlike JAX's own count it starts no device."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def label() -> str:
    """What a message on stderr begins with: nothing in the only process, else `process 3: `."""
    return "" if is_alone() else f"process {jax.process_index()}: "


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of processes; anything JSON can say. All call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
    # In few sizes: each is a program to compile.
    padded = np.zeros(max(1024, 1 << int(sizes.max() - 1).bit_length()), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def run_on_primary(action: Callable[[], Any]) -> Any:
    """What process 0 returns from `action`, on every process; JSON. All call it.

    Raises:
      ProcessFailedError: it failed there.
    """
    if jax.process_count() == 1:
        return action()
    return gather(run_on_all(lambda: action() if is_primary() else None))[0]


def run_on_all(action: Callable[[], _T], *, primary_first: bool = False) -> _T:
    """Runs an action on every process, and fails on all of them where it fails on one.

    Without this, the others would wait for the failed one in their next collective.

    Args:
      action: makes no collectives of its own that another process could miss.
      primary_first: the others begin when process 0 is done, and find what it made.

    Raises:
      ProcessFailedError: names the process and its error. The only process of a program raises
        the error itself.
    """
    if jax.process_count() == 1:
        return action()
    result = None
    for is_primarys_turn in (True, False) if primary_first else (None,):
        failure = None
        if is_primarys_turn is None or is_primarys_turn == is_primary():
            try:
                result = action()
            except Exception as error:
                failure = error
        messages = gather(None if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise ProcessFailedError(messages[jax.process_index()]) from failure
        for process, message in enumerate(messages):
            if message is not None:
                raise ProcessFailedError(f"process {process} failed: {message}")
    return result  # type: ignore[return-value]
