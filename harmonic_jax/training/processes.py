# ruff: noqa: E402
"""Several processes as one program: what each knows of the others, and how they agree.

JAX's collectives carry the data; a program needs besides to fail everywhere where one has failed.
How the processes find each other is in launch.py, how they part in departure.py.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

_T = TypeVar("_T")


class ProcessFailedError(Exception):
    """An action failed on some process, and so on all of them; its cause where it is ours."""


def is_primary() -> bool:
    """Whether this process prints and writes: the first of all, or the only one."""
    return is_alone() or jax.process_index() == 0


def is_alone() -> bool:
    """Whether this is the only process. Unlike JAX's own count it starts no device."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def label() -> str:
    """What a message on stderr begins with: nothing in the only process, else `process 3: `."""
    return "" if is_alone() else f"process {jax.process_index()}: "


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
      ProcessFailedError: names the process and its error. The only process of a program raises the
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
        raise ProcessFailedError(messages[jax.process_index()]) from error
    for process, message in enumerate(messages):
        if message is not None:
            raise ProcessFailedError(f"process {process} failed: {message}")


from harmonic_jax.training.launch import (
    ProcessOptions as ProcessOptions,
)
from harmonic_jax.training.launch import (
    join_processes as join_processes,
)
from harmonic_jax.training.launch import (
    launcher as launcher,
)
