"""`harmonic-jax COMMAND`, and `python -m harmonic_jax COMMAND`."""

import difflib
import importlib
import os
import signal
import sys
from types import FrameType
from typing import IO, NoReturn

from harmonic_jax import __version__

USAGE = """\
usage: harmonic-jax COMMAND ..

commands:
  train CONFIG                                 a detector, and its report; alone: the configs
  eval RUN                                     the numbers of a run, or of results files
  predict IMAGES.. [--run RUN]                 boxes drawn on pictures, and as COCO results
  compare A B                                  two runs or results files, number by number
  check-data SPEC                              what is in a data set, and what is wrong with it
  convert SPEC --to coco|voc|yolo --out DIR    a data set in another format
  import-weights FILE --to MODEL --out RUN     a run from a state dict of torchvision's
  export-weights RUN --out FILE.safetensors    and back; --out DIR --card: for the Hub
  export RUN --to stablehlo --out DIR          a program that runs without this package
  compile CONFIG --topology v5e:16x16          what a train step needs on a TPU slice

options:
  --help, --version
  --completion bash|zsh                        a script that completes commands and options

`harmonic-jax COMMAND --help` explains a command."""

# Imported when they are called: `--help` must not wait for JAX. Module, function, options.
_COMMANDS = {
    "train": ("train", "main", "Options"),
    "eval": ("evaluate", "main", "Options"),
    "predict": ("predict", "main", "Options"),
    "compare": ("compare", "main", "Options"),
    "check-data": ("check_data", "main", "Options"),
    "convert": ("convert", "main", "Options"),
    "import-weights": ("import_weights", "main", "Options"),
    "export-weights": ("export", "main_weights", "WeightsOptions"),
    "export": ("export", "main", "Options"),
    "compile": ("compile", "main", "Options"),
}


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit status; 2 where there is no such command."""
    match argv:
        case [name, *rest] if name in _COMMANDS:
            module, function, _ = _COMMANDS[name]
            return getattr(importlib.import_module(f"harmonic_jax.cli.{module}"), function)(rest)
        case ["-h" | "--help", *_]:
            _print(USAGE, sys.stdout)
            return 0
        case ["--version"]:
            _print(f"harmonic-jax {__version__}", sys.stdout)
            return 0
        case ["--completion", ("bash" | "zsh") as shell]:
            _print_completion(shell)
            return 0
        case [name, *_]:
            near = difflib.get_close_matches(name, _COMMANDS, n=1)
            hint = f"near it: {near[0]}" if near else "harmonic-jax --help lists all"
            _print(f"error: there is no command {name!r}; {hint}", sys.stderr)
            return 2
        case _:
            _print(USAGE, sys.stderr)
            return 2


def _print_completion(shell: str) -> None:
    from harmonic_jax.cli.options import print_completion

    modules = {name: f"harmonic_jax.cli.{module}" for name, (module, *_) in _COMMANDS.items()}
    kinds = {
        name: getattr(importlib.import_module(module), _COMMANDS[name][2])
        for name, module in modules.items()
    }
    print_completion(kinds, prog="harmonic-jax", shell=shell)


def _print(text: str, file: IO[str]) -> None:
    try:
        print(text, file=file, flush=True)
    except OSError:  # nobody reads it; Python would complain at its end, when it flushes again
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def run_script(*command: str) -> NoReturn:
    """Runs a command with the words of the command line, and ends the process with its status.

    Everything starts here, before anything large is imported.
    """
    # A file that is opened later must not become the standard output of a process without one.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    # Until the command listens, and after it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(f"error: the current folder is not there any more ({error.strerror})")
    sys.exit(main([*command, *sys.argv[1:]]))


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the process in a line; there may be half an import, and threads, below."""
    os.write(2, f"error: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(3)


if __name__ == "__main__":
    run_script()
