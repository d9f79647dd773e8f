"""Command lines: every command declares its options as a dataclass, which tyro reads.

A field is an option `--field-name VALUE`; a truth value is `--flag` or `--no-flag`; fields of
nested settings are `--outer.inner`, and `--inner` of those marked `FLAT`. A field's docstring is
its help. `Annotated[int, "[1, 8]"]` says what is legal.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import AvoidSubcommands

from harmonic_jax.checks import ConfigError, check_count, check_number, options_of
from harmonic_jax.config import Config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T", bound="DataclassInstance")
FLAT = tyro.conf.arg(name="")
"""Marks nested settings whose fields are options without a prefix."""
ConfigFields = Annotated[AvoidSubcommands[Config], FLAT]
"""A config among the options of a command: its fields are options."""
_MOST_LETTERS = 400


class UsageError(ConfigError):
    """An option that does not exist, or has a value that is not legal."""


def parse_options(kind: type[_T], args: Sequence[str], *, prog: str, **given: Any) -> _T:
    """Reads a command line; of an option given twice, the last counts.

    Args:
      kind: the dataclass of the command's options; its docstring is the help's description.
      given: fields that are there already, such as a config whose fields are options.

    Raises:
      UsageError: there is no such option, its value is not legal, or one is missing.
      SystemExit: after the help was printed.
    """
    default: Any = tyro.MISSING_NONPROP
    if given:
        fields = [field.name for field in dataclasses.fields(kind) if _is_required(field)]
        default = kind(**dict.fromkeys(fields, tyro.MISSING) | given)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            options = tyro.cli(
                kind,
                args=list(args),
                prog=prog,
                default=default,
                config=(tyro.conf.PositionalMetavarFromFieldName,),
            )
        _check_intervals(options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(_in_a_line(told.getvalue())) from None
    except ConfigError as error:
        raise UsageError(str(error)) from None
    return options


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _check_intervals(options: Any) -> None:
    """Holds numbers against the intervals that their annotations say."""
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value, marks = getattr(options, name), get_args(hint)
        if get_origin(hint) is not Annotated:
            continue
        interval = next((mark for mark in marks[1:] if isinstance(mark, str)), None)
        if interval is not None and not isinstance(value, tuple | str | None):
            check = check_count if int in options_of(marks[0]) else check_number
            check(f"--{name}".replace("_", "-"), value, interval)
        elif FLAT in marks and not isinstance(value, Config):
            _check_intervals(value)


def _in_a_line(box: str) -> str:
    """What tyro frames: the first part says what is wrong, a second one may name near options."""
    lines = [line.strip(" \n│╭╮╰╯─") for line in box.splitlines()[1:]]
    told = " ".join(lines[: lines.index("")] if "" in lines else lines).rstrip(".")
    is_unknown = told.startswith("Unrecognized")
    near = re.findall(r"^(--[\w.-]+)", "\n".join(lines), re.MULTILINE)
    hint = f"; near it: {', '.join(near[:3])}" if is_unknown and near else ""
    return told[:_MOST_LETTERS] + hint


def given_options(settings: Any) -> list[str]:
    """The options of a dataclass without required fields that are not as by default."""
    default, values = vars(type(settings)()), vars(settings)
    return [f"--{name}".replace("_", "-") for name in values if values[name] != default[name]]


def print_completion(kinds: Mapping[str, type], *, prog: str, shell: str) -> None:
    """Prints a script that completes the options of all commands in a shell, and ends."""
    args = ["--tyro-print-completion", shell]
    tyro.extras.subcommand_cli_from_dict(dict(kinds), prog=prog, args=args)
