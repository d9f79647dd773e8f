"""`python -m harmonic_jax COMMAND`."""

import importlib
import os
import signal
import sys
from types import FrameType
from typing import IO, NoReturn

USAGE = """\
usage: python -m harmonic_jax COMMAND ..

commands:
  train CONFIG.py                              what train.py runs: a detector, and its report
  eval RUN                                     what eval.py runs: the numbers of a run or of files
  predict IMAGES.. --run RUN                   boxes drawn on pictures, and as COCO results
  compare A B                                  two runs or results files, number by number
  check-data SPEC                              what is in a data set, and what is wrong with it
  import-weights FILE --to MODEL --out RUN     a run from a state dict of torchvision's
  export-weights RUN --out FILE.safetensors    and back
  export RUN --to stablehlo --out DIR          a program or weights that run without this package
  compile CONFIG.py --topology v5e:16x16       what a train step needs on a TPU slice

`python -m harmonic_jax COMMAND --help` explains a command."""

_MODULES = {
    "train": "train",
    "eval": "evaluate",
    "predict": "predict",
    "compare": "compare",
    "check-data": "check_data",
    "import-weights": "import_weights",
    "export-weights": "export_weights",
    "export": "export",
    "compile": "compile",
}


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit status; 2 where there is no such command."""
    match argv:
        case [name, *rest] if name in _MODULES:
            module = importlib.import_module(f"harmonic_jax.cli.{_MODULES[name]}")
            return module.main(rest)
        case ["-h" | "--help", *_]:
            _print_usage(sys.stdout)
            return 0
        case _:
            _print_usage(sys.stderr)
            return 2


def _print_usage(file: IO[str]) -> None:
    try:
        print(USAGE, file=file, flush=True)
    except OSError:  # nobody reads it; Python would complain at its end, when it flushes again
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def run_script(*command: str) -> NoReturn:
    """Runs a command with the words of the command line, and ends the process with its status.

    The scripts and `-m harmonic_jax.cli.NAME` start here, before anything large is imported.
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
