"""Command lines: every command declares its options as a dataclass, and one parser reads them.

A field is an option `--field-name VALUE`; a truth value is `--flag` or `--no-flag`; fields of
nested settings are `--outer.inner`, and `--inner` of those marked `FLAT`. A field's docstring is
its help. Help and shell completion are tyro's, and so is the annotation `Positional`;
`Annotated[int, "[1, 8]"]` says what is legal.
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro
from tyro.conf import AvoidSubcommands, Positional

from harmonic_jax.checks import (
    ConfigError,
    at_path,
    check_count,
    check_number,
    legal_values,
    options_of,
    shown,
)
from harmonic_jax.config import Config
from harmonic_jax.terminal import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T", bound="DataclassInstance")
_POSITIONAL = get_args(Positional[int])[1]
FLAT = tyro.conf.arg(name="")
"""Marks nested settings whose fields are options without a prefix."""
ConfigFields = Annotated[AvoidSubcommands[Config], FLAT]
"""A config among the options of a command: its fields are options."""


class UsageError(ConfigError):
    """An option that does not exist, or has a value that is not legal."""


class _Option(NamedTuple):
    """What an option sets: the field at `path`. `constant` is the value of one that takes none."""

    name: str
    label: str  # in messages: of a field its path, of a truth value both options
    path: tuple[str, ...]
    hint: Any
    interval: str | None = None
    constant: bool | None = None
    is_positional: bool = False

    @property
    def takes_many(self) -> bool:
        return any(get_origin(hint) is tuple for hint in options_of(self.hint))


def parse_options(kind: type[_T], args: Sequence[str], *, prog: str, **given: Any) -> _T:
    """Reads a command line; of an option given twice, the last counts.

    A tuple takes all values up to the next option; `None` is written so. What begins with `--` is
    an option: as a value it is written `--root=--x`; behind `--` nothing is an option any more.

    Args:
      kind: the dataclass of the command's options; its docstring is the help's description.
      args: the words.
      prog: the command, as help names it.
      given: fields that are there already, such as a config whose fields are options.

    Raises:
      UsageError: there is no such option, its value is not legal, or one is missing.
      SystemExit: after the help was printed.
    """
    end = args.index("--") if "--" in args else len(args)
    words, plain = list(args[:end]), list(args[end + 1 :])
    if {"-h", "--help"} & set(words):
        print_help(kind, prog, given)
    values = {
        field.name: given.get(field.name, _default(field)) for field in dataclasses.fields(kind)
    }
    options = list(_options(kind, values))
    changes = _read(options, words, plain)
    names = {option.path[0]: option.name for option in options}
    missing = [
        names[field]
        for field, value in values.items()
        if value is dataclasses.MISSING and field not in changes
    ]
    if missing:
        raise UsageError(f"{' and '.join(missing)} must be given (--help lists the options)")
    with _as_usage_error():
        return kind(**values | _replaced(kind, values, changes))


def _read(options: Sequence[_Option], words: list[str], plain: list[str]) -> dict[str, Any]:
    """The values of the fields that words name, nested as the settings are; `plain` are none."""
    named = {option.name: option for option in options if not option.is_positional}
    changes: dict[str, Any] = {}
    positional = []
    while words:
        word = words.pop(0)
        name, equals, attached = word.partition("=")
        if not word.startswith("-"):
            positional.append(word)
            continue
        option = named.get(name.replace("_", "-"))
        if option is None:
            raise UsageError(_unknown(word, named))
        texts = [attached] if equals else []
        # A word behind a flag is a positional one, where there are any.
        takes = option.constant is None or len(named) == len(options)
        while words and not words[0].startswith("--") and (takes or option.takes_many):
            texts.append(words.pop(0))
            takes = False
        _put(changes, option, texts)
    positional += plain
    for option in options:
        if option.is_positional and positional:
            count = len(positional) if option.takes_many else 1
            _put(changes, option, positional[:count])
            positional = positional[count:]
    if positional:
        raise UsageError(_unknown(positional[0], named))
    return changes


@contextlib.contextmanager
def _as_usage_error() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise UsageError(str(error)) from None


def given_options(settings: Any) -> list[str]:
    """The options of a dataclass without required fields that are not as by default."""
    default, values = _values(type(settings)()), _values(settings)
    return [f"--{name}".replace("_", "-") for name in values if values[name] != default[name]]


def print_help(kind: type, prog: str, given: Mapping[str, Any]) -> None:
    """Prints what a command takes, and ends with SystemExit."""
    description = printable(inspect.getdoc(kind) or "")
    values = {
        field.name: given.get(field.name, tyro.MISSING)
        for field in dataclasses.fields(kind)
        if field.name in given or _default(field) is dataclasses.MISSING
    }
    default = kind(**values) if given else tyro.MISSING_NONPROP
    tyro.cli(
        kind,
        args=["--help"],
        prog=printable(prog),
        description=description,
        default=default,
        config=(tyro.conf.PositionalMetavarFromFieldName,),
    )


def print_completion(kinds: Mapping[str, type], *, prog: str, shell: str) -> None:
    """Prints a script that completes the options of all commands in a shell, and ends."""
    args = ["--tyro-print-completion", shell]
    tyro.extras.subcommand_cli_from_dict(dict(kinds), prog=prog, args=args)


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _values(settings: Any) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def _default(field: dataclasses.Field[Any]) -> Any:
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def _options(
    kind: type, values: Mapping[str, Any], path: tuple[str, ...] = (), prefix: str = ""
) -> Iterator[_Option]:
    for field, hint in _hints(kind).items():
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        hint = get_args(hint)[0] if marks else hint
        here, value, name = (*path, field), values[field], f"--{prefix}{field}".replace("_", "-")
        if dataclasses.is_dataclass(value):
            below = prefix if FLAT in marks else f"{prefix}{field}."
            yield from _options(type(value), _values(value), here, below)
        elif _POSITIONAL in marks:
            yield _Option(field.upper(), field.upper(), here, hint, is_positional=True)
        elif hint is bool:
            off = f"--{prefix}no-{field}".replace("_", "-")
            yield _Option(name, f"{name} or {off}", here, hint, constant=True)
            yield _Option(off, f"{name} or {off}", here, hint, constant=False)
        else:
            interval = next((mark for mark in marks if isinstance(mark, str)), None)
            label = f"{prefix}{field}" if prefix else name
            yield _Option(name, label, here, hint, interval)


def _unknown(word: str, options: Mapping[str, _Option]) -> str:
    name = word.partition("=")[0].replace("_", "-")
    if not name.startswith("-"):
        first = ", the config comes first" if word.endswith(".py") else ""
        return f"{word!r} belongs to no option{first}; options are --NAME VALUE"
    last = name.lstrip("-").rpartition(".")[2]
    near = [option for option in options if option.rpartition(".")[2] in (last, f"--{last}")]
    close = difflib.get_close_matches(name, options, n=2, cutoff=0.75)
    near += [option for option in close if option not in near]
    hint = f"near it: {', '.join(near[:4])}" if near else "--help lists all"
    return f"there is no option {shown(name)[1:-1]}; {hint}"


def _put(changes: dict[str, Any], option: _Option, texts: list[str]) -> None:
    """Notes the value that texts stand for."""
    for part in option.path[:-1]:
        changes = changes.setdefault(part, {})
    changes[option.path[-1]] = _value(option, texts)


def _value(option: _Option, texts: list[str]) -> Any:
    if option.constant is not None:
        if texts:
            raise UsageError(
                f"{option.name} takes no value, and {shown(texts[0])} is given; it must be "
                f"{option.label}"
            )
        return option.constant
    legal = legal_values(option.hint, option.interval)
    if not texts and not option.takes_many:
        raise UsageError(f"{option.name} needs a value: {legal}")
    # None first: any word is a text.
    for hint in sorted(options_of(option.hint), key=lambda hint: hint is not NoneType):
        try:
            value = _parsed(hint, texts)
        except ValueError:
            continue
        if option.interval is not None and value is not None:
            check = check_count if hint is int else check_number
            with _as_usage_error():
                check(option.label, value, option.interval)
        return value
    raise UsageError(f"{option.label} is {shown(' '.join(texts))}; it must be {legal}")


def _parsed(hint: Any, texts: list[str]) -> Any:
    """The value that texts stand for; ValueError where they do not."""
    if get_origin(hint) is tuple:
        return _parsed_tuple(get_args(hint), texts)
    (text,) = texts
    if hint is NoneType or get_origin(hint) is Literal:
        choices = (None,) if hint is NoneType else get_args(hint)
        return choices[[str(choice) for choice in choices].index(text)]
    return hint(text)


def _parsed_tuple(items: tuple[Any, ...], texts: list[str]) -> tuple[Any, ...]:
    if items[-1] is not Ellipsis:
        pairs = zip(items, texts, strict=True)
        return tuple(_parsed(item, [text]) for item, text in pairs)
    size = len(get_args(items[0])) if get_origin(items[0]) is tuple else 1
    return tuple(
        _parsed(items[0], texts[start : start + size]) for start in range(0, len(texts), size)
    )


def _replaced(
    kind: type, values: Mapping[str, Any], changes: Mapping[str, Any], path: str = ""
) -> dict[str, Any]:
    """The changed fields, those of nested settings put into their settings."""
    hints = _hints(kind)
    found = dict(changes)
    for name, inner in changes.items():
        old = values[name]
        if isinstance(inner, dict):
            is_bare = FLAT in get_args(hints[name])
            below = path if is_bare else f"{path}.{name}".lstrip(".")
            new = _replaced(type(old), _values(old), inner, below)
            found[name] = at_path(below, functools.partial(dataclasses.replace, old, **new))
    return found
