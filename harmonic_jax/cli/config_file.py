"""From the command line to a Config: a file of configs/, and single fields replaced."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from harmonic_jax.config import Config, ConfigError


def config_from_args(args: Sequence[str], *, default: Path, prog: str, description: str) -> Config:
    """Builds the config of `[CONFIG.py] [--field.name value ..]`.

    Args:
      args: the command line without the program's name.
      default: the config file used when none is named.
      prog, description: for the help text.

    Raises:
      ConfigError: the file is missing or has no `config()`, or a value is not legal.
      SystemExit: from tyro, after it printed the help or what is wrong with the options.
    """
    names_file = bool(args) and not args[0].startswith("-")
    path = Path(args[0]) if names_file else default
    base = load_config_file(path)
    return tyro.cli(
        tyro.conf.AvoidSubcommands[Config],
        default=base,
        args=list(args[1:] if names_file else args),
        prog=f"{prog} {path}",
        description=f"{description}\n\nDefaults are those of {path}.",
    )


def load_config_file(path: Path) -> Config:
    """Runs a Python config file and returns what its `config()` returns."""
    config = call_in_file(path, "config")
    if not isinstance(config, Config):
        raise ConfigError(f"{path} must define config() returning a harmonic_jax.config.Config")
    return config


def call_in_file(path: Path, function: str) -> Any:
    """Runs a Python file and returns what a function of it returns; None where it has none.

    Raises:
      ConfigError: there is no such file, or it is not Python's.
    """
    if not path.is_file():
        raise ConfigError(f"there is no {function} file {path}")
    spec = importlib.util.spec_from_file_location(f"harmonic_jax_{function}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    return found() if callable(found) else None
