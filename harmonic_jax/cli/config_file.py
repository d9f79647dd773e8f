"""From the command line to a Config: a file of configs/, and single fields replaced."""

import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.cli.config_options import replace_fields
from harmonic_jax.config import Config, ConfigError
from harmonic_jax.terminal import printable


def config_from_args(args: Sequence[str], *, default: Path, prog: str, description: str) -> Config:
    """Builds the config of `[CONFIG.py] [--field.name value ..]`.

    Args:
      args: the command line without the program's name.
      default: the config file used when none is named.
      prog, description: for the help text.

    Raises:
      ConfigError: the file is missing, fails, or has no `config()` that returns a config.
      UsageError: an option is unknown, or its value is not legal.
      SystemExit: after the help was printed.
    """
    names_file = bool(args) and not args[0].startswith("-")
    path = Path(args[0]) if names_file else default
    rest = list(args[1:] if names_file else args)
    wants_help = bool({"-h", "--help"} & set(rest))
    if not names_file and not default.exists():
        if wants_help:
            _print_help(Config("NAME"), f"{prog} CONFIG.py", description, "the package")
        raise ConfigError(
            "no config file is named: give one of your own, or of the folder configs/ of the "
            "repository, which is not installed with the package"
        )
    config = load_config_file(path)
    if wants_help:
        _print_help(config, f"{prog} {path}", description, str(path))
    return replace_fields(config, rest)


def _print_help(config: Config, prog: str, description: str, source: str) -> None:
    import tyro  # a third of a second, for help alone

    tyro.cli(
        tyro.conf.AvoidSubcommands[Config],
        default=config,
        args=["--help"],
        prog=printable(prog),
        description=printable(f"{description}\n\nDefaults are those of {source}."),
    )


def load_config_file(path: Path) -> Config:
    """Runs a Python config file and returns what its `config()` returns.

    Raises:
      ConfigError: there is no such file, it fails, or it returns something else.
    """
    config = call_in_file(path, "config")
    if not isinstance(config, Config):
        raise ConfigError(f"{path} must define config() returning a harmonic_jax.config.Config")
    return config


def call_in_file(path: Path, function: str) -> Any:
    """Runs a Python file and returns what a function of it returns; None where it has none.

    Raises:
      ConfigError: there is no such file, or it fails: names the line, and what is wrong there.
      OSError: it cannot be read.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; it must be a {function} file, in Python")
    if not path.is_file():
        raise ConfigError(f"there is no {function} file {path}")
    source = path.read_bytes()
    module = types.ModuleType(f"harmonic_jax_{function}")
    module.__file__ = str(path)
    try:
        # Not by an import, which would take an older version of it from __pycache__ where the
        # time of the last change and the size are the same.
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
        found = getattr(module, function, None)
        return found() if callable(found) else None
    except (Exception, SystemExit) as error:
        raise ConfigError(_told(error, path)) from error


def _told(error: BaseException, path: Path) -> str:
    """What is wrong with a file, in one line, with the number of its line where that is known."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError):
        line, problem = error.lineno, f"{type(error).__name__}: {error.msg}"
    else:
        line = lines[-1] if lines else None
        words = " ".join(str(error).split())
        problem = words if isinstance(error, ConfigError) else f"{type(error).__name__}: {words}"
    place = f"{path}:{line}" if line else f"{path}"
    return f"{place}: {problem.removesuffix(': ')}"
