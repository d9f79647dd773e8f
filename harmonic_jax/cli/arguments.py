"""The command line of a command."""

import argparse
from typing import NoReturn

from harmonic_jax.cli.command import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print a page and end the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the options)")
