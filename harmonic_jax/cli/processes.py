"""What the commands do as one of several processes: options, one voice, and the end."""

import argparse
import logging
import traceback
import warnings
from collections.abc import Callable, Sequence

from harmonic_jax.cli.arguments import Parser
from harmonic_jax.cli.command import EXIT_FAILED, EXIT_STOPPED, FAILURES, complain
from harmonic_jax.terminal import Terminal, log_lines
from harmonic_jax.training.processes import (
    ProcessFailedError,
    ProcessOptions,
    is_primary,
    join_processes,
    label,
)
from harmonic_jax.training.sharding import check_devices, check_flags
from harmonic_jax.training.watchdog import exit_on_lost_process, exit_process, report_sudden_end

_DEFAULTS = ProcessOptions()


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how this process finds the others."""
    group = parser.add_argument_group(
        "several hosts",
        "The same command runs on every host. On a Cloud TPU slice, under SLURM, Open MPI and "
        "Kubernetes nothing of this is needed; elsewhere the first three (docs/pods.md).",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument(
        "--num-processes", type=int, metavar="N", help="of the whole run; 1: this one alone"
    )
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    group.add_argument(
        "--heartbeat-timeout-seconds",
        type=int,
        metavar="S",
        default=_DEFAULTS.heartbeat_timeout_seconds,
        help="a process not heard of for so long is lost, and all others end (%(default)s)",
    )


def process_options(parsed: argparse.Namespace) -> ProcessOptions:
    """
    Raises:
      ConfigError: a value is not legal.
    """
    return ProcessOptions(
        coordinator=parsed.coordinator,
        process_id=parsed.process_id,
        num_processes=parsed.num_processes,
        heartbeat_timeout_seconds=parsed.heartbeat_timeout_seconds,
    )


def split_process_options(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Takes the options of processes out of a command line, whose rest is the experiment."""
    return _parser().parse_known_args(args)


def process_help() -> str:
    """The options as text, for the help of a command that is not argparse's."""
    return _parser().format_help().partition("\n\n")[2]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(usage="", add_help=False, allow_abbrev=False)
    add_process_options(parser)
    return parser


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
      options: how to find the others.
      body: takes where to print, and returns the exit status.
      failures: what is told in one line, without a traceback; the status is then 1.
      needs_devices: whether the body computes on them; False: it runs where JAX has none.
      needs_output: whether the command has failed where what it prints is lost; in any case it
        does its work to the end.

    Returns:
      The exit status; of several processes, one that fails alone does not return.
    """
    is_shared = False
    try:
        with exit_on_lost_process():
            if needs_devices:
                check_flags()
            join_processes(options)
            if needs_devices:
                check_devices()
            if not is_primary():
                log_lines(logging.ERROR, prefix=label())
                warnings.simplefilter("ignore")
            with report_sudden_end():
                console = Terminal(quiet=not is_primary(), lossy=True)
                status = body(console)
                return EXIT_FAILED if needs_output and console.is_lost else status
    except ProcessFailedError as error:
        is_shared = True
        if error.__cause__ is not None and not isinstance(error.__cause__, failures):
            traceback.print_exception(error.__cause__)
        complain(error)
    except failures as error:
        if isinstance(error, BrokenPipeError) and not label():
            raise
        complain(error)
    except KeyboardInterrupt as stop:
        if not label():
            raise
        complain(f"stopped by {str(stop) or 'SIGINT'}")
        exit_process(EXIT_STOPPED)
    except BaseException as error:
        if not label():
            raise
        complain(error)
        traceback.print_exc()
    if label() and not is_shared:
        # A normal exit waits for all others, and they wait for this process in a collective.
        exit_process(1)
    return 1
