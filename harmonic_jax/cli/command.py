"""How every command runs and ends: with a status, and in one line where a user's input fails.

A command that trains or evaluates may be one of several processes; `run_as_process` joins them.
"""

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import jax

from harmonic_jax.cli.configs import config_and_rest
from harmonic_jax.cli.options import UsageError, parse_options
from harmonic_jax.config import ConfigError
from harmonic_jax.data.records import DataError
from harmonic_jax.files import explained, write_text
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.terminal import (
    OUTPUT,
    Terminal,
    discard,
    flush_output,
    log_lines,
    prepare_terminal,
    printable,
)
from harmonic_jax.training.checkpoint import CheckpointError
from harmonic_jax.training.log import NonFiniteLossError
from harmonic_jax.training.processes import (
    ProcessFailedError,
    ProcessOptions,
    first_line,
    is_primary,
    join_processes,
    label,
)
from harmonic_jax.training.sharding import check_devices
from harmonic_jax.training.watchdog import (
    exit_on_lost_process,
    exit_process,
    interrupting,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T", bound="DataclassInstance")
FAILURES = (ConfigError, DataError, WeightsError, CheckpointError, NonFiniteLossError, OSError)
"""What a user, a file or a disk can cause: told in one line, without a traceback."""
INPUT_FAILURES = (*FAILURES, ValueError)
"""ValueError too: what the tables of detections and objects refuse."""
EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 3
_KEEP_MEMORY = (
    (-1, -1),  # M_TRIM_THRESHOLD: nothing goes back from the end of the heap
    (-2, 2**28),  # M_TOP_PAD: bytes to ask for at a time
    (-4, 0),  # M_MMAP_MAX: no array is a mapping of its own, unmapped with it
    (-8, 1),  # M_ARENA_MAX: no heaps of threads, which are too small for arrays
)
"""Numbers of options in <malloc.h>, and values."""


def command(
    kind: type[_T], name: str, *, failures: tuple[type[Exception], ...] = INPUT_FAILURES
) -> Callable[[Callable[[_T], int]], Callable[[Sequence[str]], int]]:
    """Makes a command, which takes words, of a function that takes options.

    Where the options have a field `config`, a config comes first.
    """

    def parse(args: Sequence[str]) -> _T:
        if all(field.name != "config" for field in dataclasses.fields(kind)):
            return parse_options(kind, args, prog=f"harmonic-jax {name}")
        config, rest = config_and_rest(args)
        named = "CONFIG" if args[0].startswith("-") else args[0]
        return parse_options(kind, rest, prog=f"harmonic-jax {name} {named}", config=config)

    def decorate(body: Callable[[_T], int]) -> Callable[[Sequence[str]], int]:
        return lambda args: run_command(lambda: body(parse(args)), failures=failures)

    return decorate


def print_and_save(console: Terminal, text: str, values: object, path: Path | None) -> None:
    """Writes values to a JSON file, where one is asked for, and prints them whatever happens."""
    try:
        if path is not None:
            write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")
    finally:
        console.print(text)
    if path is not None:
        console.print(f"written: {path}")


def run_command(
    body: Callable[[], int], *, failures: tuple[type[Exception], ...] = FAILURES
) -> int:
    """Runs a command.

    Args:
      failures: what is told in one line, with status 1. Anything else is a fault of ours, and
        keeps its traceback.

    Returns:
      The exit status; 2 where an option is wrong, 3 where Ctrl-C, SIGTERM or SIGHUP ended it.
    """
    prepare_terminal()
    prepare_processor()
    try:
        with interrupting():
            status = body()
            flush_output()
    except BrokenPipeError:  # whoever read our output has seen enough (`| head`)
        status = EXIT_FAILED
    except KeyboardInterrupt as stop:
        complain(_stopped(stop))
        status = EXIT_STOPPED
    except failures as error:
        complain(error)
        status = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        complain(f"there is not enough memory, for a smaller batch perhaps ({first_line(error)})")
        status = EXIT_FAILED
    finally:
        try:
            flush_output()
        except OSError:  # what was printed is lost
            discard(sys.stdout)
    return status


def prepare_processor() -> None:
    """What makes a program's steps fast on a processor; harmless elsewhere.

    With asynchronous dispatch, chained steps run on one core of two; it must be switched off before
    the first array is made. And glibc gives large arrays back to the system as soon as they are
    free: a step then asks for hundreds of megabytes anew, and the system fills them with zeros,
    page by page, for a quarter of the step's time. So it is told to keep them, which takes memory;
    not where the environment has settings of its own for it, `MALLOC_..` or `GLIBC_TUNABLES`.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    is_settled = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not is_settled:  # other C libraries have none
        for option, value in _KEEP_MEMORY:
            mallopt(option, value)


def run_as_process(
    options: ProcessOptions,
    body: Callable[[Terminal], int],
    failures: tuple[type[Exception], ...] = FAILURES,
    *,
    needs_devices: bool = True,
    needs_output: bool = True,
) -> int:
    """Joins the other processes, if any, and runs a command's body as one of them.

    Only process 0 prints; the others say what went wrong, with their number.

    Args:
      failures: what one of several tells in one line, without a traceback; its status is then 1.
      needs_devices: whether the body computes on them; False: it runs where JAX has none.
      needs_output: whether the command has failed where what it prints is lost; in any case it
        does its work to the end.

    Returns:
      The exit status; of several processes, one that fails alone does not return.
    """
    try:
        with exit_on_lost_process():
            join_processes(options)
            if needs_devices:
                check_devices()
            if not is_primary():
                log_lines(logging.ERROR, prefix=label())
                warnings.simplefilter("ignore")
            console = Terminal(quiet=not is_primary(), lossy=True)
            status = body(console)
            return EXIT_FAILED if needs_output and console.is_lost else status
    except BaseException as error:
        if not label():
            raise  # `run_command` tells
        is_shared = isinstance(error, ProcessFailedError)
        cause = error.__cause__ if is_shared else error
        if isinstance(cause, KeyboardInterrupt):
            complain(_stopped(cause))
            exit_process(EXIT_STOPPED)
        complain(error)
        if cause is not None and not isinstance(cause, failures):
            traceback.print_exception(cause)
        if not is_shared:
            # A normal exit waits for all others, and they wait for this process in a collective.
            exit_process(EXIT_FAILED)
        return EXIT_FAILED


def complain(problem: BaseException | str) -> None:
    """Prints what went wrong, as one line on stderr."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(printable(f"{label()}error: {_told(problem)}"), file=sys.stderr, flush=True)


def _stopped(stop: KeyboardInterrupt) -> str:
    return f"stopped by {str(stop) or 'SIGINT'}"


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED")


def _told(problem: BaseException | str) -> str:
    if isinstance(problem, OSError) and problem.filename == OUTPUT:
        return f"{OUTPUT}: {problem.strerror}"
    if isinstance(problem, OSError) and problem.filename is not None and problem.strerror:
        return f"{problem.filename}: {explained(problem, str(problem.filename))}"
    return str(problem) or type(problem).__name__


def quoted(path: str | Path) -> str:
    """A path as a shell takes it, for commands to copy."""
    return shlex.quote(str(path))
