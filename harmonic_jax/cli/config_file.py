"""From the command line to a Config: a file of configs/, and single fields replaced."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

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
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}")
    spec = importlib.util.spec_from_file_location("harmonic_jax_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, "config", None)
    config = make() if callable(make) else None
    if not isinstance(config, Config):
        raise ConfigError(f"{path} must define config() returning a harmonic_jax.config.Config")
    return config
