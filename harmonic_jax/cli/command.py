"""How every command ends: with a status, and in one line where something a user can cause fails."""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from harmonic_jax.config import ConfigError
from harmonic_jax.data.records import DataError
from harmonic_jax.files import explained
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.terminal import OUTPUT, discard, flush_output, prepare_terminal, printable
from harmonic_jax.training.checkpoint import CheckpointError
from harmonic_jax.training.log import NonFiniteLossError
from harmonic_jax.training.processes import label
from harmonic_jax.training.watchdog import interrupting

FAILURES = (ConfigError, DataError, WeightsError, CheckpointError, NonFiniteLossError, OSError)
"""What a user, a file or a disk can cause: told in one line, without a traceback."""
EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 3


class UsageError(ConfigError):
    """An option that does not exist, or has a value that is not legal."""


def run_command(
    body: Callable[[], int], *, failures: tuple[type[Exception], ...] = FAILURES
) -> int:
    """Runs a command.

    Args:
      body: does what the command does, and returns its exit status.
      failures: what is told in one line, with status 1. Anything else is a fault of ours, and
        keeps its traceback.

    Returns:
      The exit status; 2 where an option is wrong, 3 where Ctrl-C, SIGTERM or SIGHUP ended it.
    """
    prepare_terminal()
    try:
        with interrupting():
            status = body()
            flush_output()
            return status
    except BrokenPipeError:  # whoever read our output has seen enough (`| head`)
        status = EXIT_FAILED
    except KeyboardInterrupt as stop:
        complain(f"stopped by {str(stop) or 'SIGINT'}")
        status = EXIT_STOPPED
    except failures as error:
        complain(error)
        status = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        complain(f"there is not enough memory, for a smaller batch perhaps ({_first_line(error)})")
        status = EXIT_FAILED
    finally:
        _give_up_output()
    return status


def complain(problem: BaseException | str) -> None:
    """Prints what went wrong, as one line on stderr."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(printable(f"{label()}error: {_told(problem)}"), file=sys.stderr, flush=True)


def _give_up_output() -> None:
    """Flushes what was printed, or forgets it where it cannot be written."""
    try:
        flush_output()
    except OSError:
        discard(sys.stdout)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _told(problem: BaseException | str) -> str:
    if isinstance(problem, OSError) and problem.filename == OUTPUT:
        return f"{OUTPUT}: {problem.strerror}"
    if isinstance(problem, OSError) and problem.filename is not None and problem.strerror:
        return f"{problem.filename}: {explained(problem, str(problem.filename))}"
    return str(problem) or type(problem).__name__


def quoted(path: str | Path) -> str:
    r"""A path as a shell takes it, for commands to copy: printable, whatever is in it.

    >>> print(quoted("runs/my run"), quoted("caf\udce9"))
    'runs/my run' $'caf\xe9'
    """
    text = str(path)
    if printable(text) == text and not set("\n\t") & set(text):
        return shlex.quote(text)
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{''.join(plain)}'"
