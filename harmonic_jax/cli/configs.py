"""Configs of the command line: a name of those that come with the package, or a Python file."""

import ast
import dataclasses
import difflib
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.checks import shown
from harmonic_jax.cli.options import ConfigFields, UsageError, parse_options
from harmonic_jax.config import Config, ConfigError
from harmonic_jax.terminal import column_width, padded

_PACKAGE = Path(__file__).parent.parent
# In a wheel the configs lie in the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def list_configs() -> dict[str, Path]:
    """The configs that come with the package, by name; in the order of the names."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    paths = sorted(folder.glob("*.py")) if folder is not None else []
    return {path.stem: path for path in paths if path.stem != "__init__"}


def format_configs() -> str:
    """A line a config: its name, and the first line of its docstring."""
    configs = list_configs()
    docs = [ast.get_docstring(ast.parse(path.read_text())) or "" for path in configs.values()]
    width = column_width(configs)
    lines = [doc.partition("\n")[0] for doc in docs]
    return "\n".join(f"{padded(n, width)}  {line}" for n, line in zip(configs, lines, strict=True))


@dataclasses.dataclass(frozen=True)
class _Fields:
    config: ConfigFields


def config_from_args(args: Sequence[str]) -> Config:
    """The config of `CONFIG [--field.name VALUE ..]`; raises as the two functions do."""
    config, rest = config_and_rest(args)
    return parse_options(_Fields, rest, prog="CONFIG", config=config).config


def config_and_rest(args: Sequence[str]) -> tuple[Config, list[str]]:
    """The config that a command line begins with, and what follows it.

    Raises:
      UsageError: it begins with an option.
    """
    if {"-h", "--help"} & set(args[:1]):
        return Config("NAME"), list(args)
    if not args or args[0].startswith("-"):
        raise UsageError(
            "the config comes first: a name that `harmonic-jax train` lists, or a file"
        )
    return load_config(args[0]), list(args[1:])


def load_config(name: str | Path) -> Config:
    """What `config()` returns, of a config that comes with the package or of a Python file.

    Raises:
      ConfigError: there is no such config, its file fails, or it returns something else.
    """
    path = list_configs().get(str(name)) or Path(name)
    if path.suffix != ".py" and not path.exists():
        near = difflib.get_close_matches(str(name), list_configs(), n=3)
        hint = f"near it: {', '.join(near)}" if near else "`harmonic-jax train` lists all"
        raise ConfigError(f"there is no config {shown(str(name))}; {hint}")
    config = call_in_file(path, "config")
    if not isinstance(config, Config):
        raise ConfigError(f"{path} must define config() returning a harmonic_jax.config.Config")
    return config


def call_in_file(path: Path, function: str) -> Any:
    """Runs a Python file and returns what a function of it returns; None where it has none.

    Raises:
      ConfigError: there is no such file, or it fails: names the line, and what is wrong there.
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
        raise ConfigError(_describe(error, path)) from error


def _describe(error: BaseException, path: Path) -> str:
    """What is wrong with a file, in one line, with the number of its line where that is known."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
    problem = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        line, problem = error.lineno, error.msg
    if not isinstance(error, ConfigError):
        problem = f"{type(error).__name__}: {problem}"
    return f"{path}:{line}: {problem}" if line else f"{path}: {problem}"
