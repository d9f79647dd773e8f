"""How one of several processes ends: with a line that says why, and without waiting for ever.

JAX's heartbeats end everybody when one process is gone, with a page of text; a collective may fail
before that. Both are put into words here.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import jax

from harmonic_jax.training.processes import is_alone, is_primary, label

EXIT_LOST = 4
"""Exit status of a process that ends because another one is lost or hangs."""
_PRIMARY_WAITS_SECONDS = 5.0
_farewell: int | None = None  # the pipe to the shell of `report_sudden_end`
# A status of gRPC and Abseil, then what gloo, NCCL, or JAX's coordination service say.
_LOSS = re.compile(
    r"^[A-Z_]+: .*(gloo|nccl|connection|socket closed|heartbeat|barrier|coordination|preempted)",
    re.IGNORECASE | re.DOTALL,
)
_SAME_COMMAND = "start the same command again on every host to go on from the newest checkpoint"


@contextlib.contextmanager
def report_sudden_end() -> Iterator[None]:
    """Has a line written where this process ends in the middle: JAX ends it with a page of text
    when another one is lost, and leaves no moment for a line of ours.

    A shell waits at the other end of a pipe, which closes when the process is gone.
    """
    if is_alone():
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
    """Tells the shell of `report_sudden_end` that this end is a proper one."""
    global _farewell
    if _farewell is not None:
        with contextlib.suppress(OSError):
            os.write(_farewell, b"done\n")
        _farewell = None


@contextlib.contextmanager
def exit_on_lost_process() -> Iterator[None]:
    """Ends this process, with a line that says why, where a collective fails for want of a peer.

    At once: what would be tidied up on the way out waits for the others, and JAX's own end of the
    process follows a second later, with a page of text.
    """
    try:
        yield
    except Exception as error:
        reason = lost_peer(error)
        if reason is None or is_alone():
            raise
        print(
            f"{label()}error: another process of this run is gone: it failed, was killed, or its "
            f"host was lost; its own output says more. {_SAME_COMMAND.capitalize()}. ({reason})",
            file=sys.stderr,
        )
        exit_process(EXIT_LOST)


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


def exit_process(status: int, *, wait_seconds: float = _PRIMARY_WAITS_SECONDS) -> NoReturn:
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
