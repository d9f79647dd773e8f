"""Several processes as one program: how they start, agree, and leave.

JAX does the work: `jax.distributed` connects the processes, collectives carry the data, and its
heartbeats end everybody when one of them is gone. Here is what a program needs besides: to know
whether it is one of several, to fail everywhere where one has failed, and to say what happened.
"""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from harmonic_jax.config import ConfigError

_T = TypeVar("_T")

EXIT_LOST = 4
"""Exit status of a process that ends because another one is lost or hangs."""
_PRIMARY_WAITS_SECONDS = 5.0
_PATIENCE_SECONDS = 10.0
_farewell: int | None = None  # the pipe to the shell of `last_words`
_heartbeat_timeout = 100  # JAX's own default, until `start` says otherwise
# A status of gRPC and Abseil, then what gloo, NCCL, or JAX's coordination service say.
_LOSS = re.compile(
    r"^[A-Z_]+: .*(gloo|nccl|connection|socket closed|heartbeat|barrier|coordination|preempted)",
    re.IGNORECASE | re.DOTALL,
)
_SAME_COMMAND = "start the same command again on every host to go on from the newest checkpoint"


class TogetherError(Exception):
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
            if not (host and port.isdigit()):
                raise ConfigError(f"--coordinator is {self.coordinator!r}; it must be HOST:PORT")
        if self.num_processes is not None and self.num_processes < 1:
            raise ConfigError(f"--num-processes is {self.num_processes}; it must be >= 1")
        count = self.num_processes
        if self.process_id is not None and not 0 <= self.process_id < (count or sys.maxsize):
            legal = "0" if count == 1 else f"in [0, {count})" if count else ">= 0"
            raise ConfigError(f"--process-id is {self.process_id}; it must be {legal}")
        if self.heartbeat_timeout_seconds < 1:
            raise ConfigError(
                f"--heartbeat-timeout-seconds is {self.heartbeat_timeout_seconds}; it must be >= 1"
            )

    @property
    def given(self) -> tuple[str | int | None, ...]:
        return (self.coordinator, self.num_processes, self.process_id)


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


def start(options: ProcessOptions) -> None:
    """Connects this process with the others, if there are any; before the first array is made.

    Raises:
      ConfigError: the options and the environment do not say how.
    """
    if options.num_processes == 1 or jax.distributed.is_initialized():
        return
    found = launcher(os.environ)
    if found is None and options.given == (None, None, None):
        return
    global _heartbeat_timeout
    _heartbeat_timeout = options.heartbeat_timeout_seconds
    is_complete = None not in options.given
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself; the loop has a handler of its own (interrupt.py).
    jax.config.update("jax_enable_preemption_service", False)
    patience = threading.Timer(_PATIENCE_SECONDS, _say_waiting, [options])
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
        where = f"in the environment of {found}" if found else "in the environment"
        missing = "" if is_complete else f", and JAX found no answer {where}"
        raise ConfigError(
            f"cannot join the other processes{missing}: {_first_line(error)} (give --coordinator "
            "HOST:PORT, --num-processes and --process-id, or --num-processes 1 to run alone)"
        ) from error
    finally:
        patience.cancel()
    # On processors the first collective waits for 30 s only, later ones as long as it takes.
    multihost_utils.sync_global_devices("all processes have started")


def _say_waiting(options: ProcessOptions) -> None:
    """Before JAX gives up, which ends the process with a page of text."""
    me = "" if options.process_id is None else f"process {options.process_id}: "
    where = f" at {options.coordinator}" if options.coordinator else ""
    print(
        f"{me}waiting for the other processes{where}: all must be started, with the same "
        "coordinator. JAX gives up after 5 minutes",
        file=sys.stderr,
        flush=True,
    )


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """Has a line written where this process ends in the middle: JAX ends it with a page of text
    when another one is lost, and leaves no moment for a line of ours.

    A shell waits at the other end of a pipe, which closes when the process is gone.
    """
    if jax.process_count() == 1:
        yield
        return
    text = (
        f"{label()}ended by itself or was killed, in the middle. With 'another task died' above, "
        f"another process of this run is gone. {_SAME_COMMAND.capitalize()}."
    )
    command = ["/bin/sh", "-c", 'read -r word || echo "$0" >&2', text]
    # A session of its own: Ctrl-C is for us.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as shell:
        assert shell.stdin is not None
        global _farewell
        _farewell = shell.stdin.fileno()
        try:
            yield
        finally:
            _say_farewell()


def _say_farewell() -> None:
    """Tells the shell of `last_words` that this end is a proper one."""
    global _farewell
    if _farewell is not None:
        with contextlib.suppress(OSError):
            os.write(_farewell, b"done\n")
        _farewell = None


def is_primary() -> bool:
    """Whether this process prints and writes: the first of all, or the only one."""
    return jax.process_index() == 0


def label() -> str:
    """What a message on stderr begins with: nothing in the only process, else `process 3: `."""
    return f"process {jax.process_index()}: " if jax.process_count() > 1 else ""


def heartbeat_timeout() -> int:
    """Seconds without a heartbeat after which JAX ends all processes."""
    return _heartbeat_timeout


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


def decide(action: Callable[[], Any]) -> Any:
    """What process 0 returns from `action`, on every process; JSON. All call it.

    Raises:
      TogetherError: it failed there.
    """
    if jax.process_count() == 1:
        return action()
    return gather(together(lambda: action() if is_primary() else None))[0]


def together(action: Callable[[], _T], *, primary_first: bool = False) -> _T:
    """Runs an action on every process, and fails on all of them where it fails on one.

    Without this, the others would wait for the failed one in their next collective.

    Args:
      action: makes no collectives of its own that another process could miss.
      primary_first: the others begin when process 0 is done, and find what it made.

    Raises:
      TogetherError: names the process and its error. The only process of a program raises the
        error itself.
    """
    if jax.process_count() == 1:
        return action()
    result = None
    for turn in (True, False) if primary_first else (None,):
        error = None
        if turn is None or turn == is_primary():
            try:
                result = action()
            except Exception as caught:
                error = caught
        _raise_everywhere(error)
    return result  # type: ignore[return-value]


def _raise_everywhere(error: Exception | None) -> None:
    messages = gather(None if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise TogetherError(messages[jax.process_index()]) from error
    for process, message in enumerate(messages):
        if message is not None:
            raise TogetherError(f"process {process} failed: {message}")


@contextlib.contextmanager
def explained_loss() -> Iterator[None]:
    """Ends this process, with a line that says why, where a collective fails for want of a peer.

    At once: what would be tidied up on the way out waits for the others, and JAX's own end of the
    process follows a second later, with a page of text.
    """
    try:
        yield
    except Exception as error:
        reason = lost_peer(error)
        if jax.process_count() == 1 or reason is None:
            raise
        print(
            f"{label()}error: another process of this run is gone: it failed, was killed, or its "
            f"host was lost; its own output says more. {_SAME_COMMAND.capitalize()}. ({reason})",
            file=sys.stderr,
        )
        leave(EXIT_LOST)


def lost_peer(error: BaseException | None) -> str | None:
    """JAX's words for a process that does not answer, where they are the cause of an error.

    >>> lost_peer(ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"))
    'UNKNOWN: Gloo AllGather failed: Connection reset by peer'
    >>> lost_peer(ValueError("not a peer of the realm"))
    """
    while error is not None:
        # gloo's failures arrive as ValueError from some of JAX's functions.
        is_from_jax = type(error) is ValueError or isinstance(error, jax.errors.JaxRuntimeError)
        if is_from_jax and _LOSS.search(str(error)):
            return _first_line(error)
        error = error.__cause__
    return None


def leave(status: int, *, wait_seconds: float = _PRIMARY_WAITS_SECONDS) -> NoReturn:
    """Ends this process without waiting for the others, as a normal exit would.

    Process 0 waits a little: JAX ends the others the moment it is gone, and they may have
    something to say.
    """
    _say_farewell()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        time.sleep(wait_seconds)
    os._exit(status)


def end_now(status: int) -> None:
    """Ends this process from any thread, at once."""
    _say_farewell()
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
