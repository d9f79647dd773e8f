"""Single fields of a config, replaced on the command line: `--path.to-field VALUE ..`."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from harmonic_jax.checks import at_path, fields_of, legal_values, options_of, shown
from harmonic_jax.cli.command import UsageError
from harmonic_jax.config import Config, ConfigError


class _Option(NamedTuple):
    """What an option sets; `value` of those that take none."""

    path: tuple[str, ...]
    hint: Any
    value: bool | None = None

    @property
    def field(self) -> str:
        return ".".join(self.path)


def replace_fields(config: Config, args: Sequence[str]) -> Config:
    """The config with the fields that the options name; of an option given twice, the last counts.

    Truth values are options without a value, `--loss.hardet` and `--loss.no-hardet`; a tuple takes
    all values up to the next option; `None` is written so. What begins with `--` is an option:
    as a value it is written `--data.root=--x`.

    Raises:
      UsageError: there is no such option, or its value is not legal.
    """
    options = _options(config)
    changes: dict[str, Any] = {}
    rest = list(args)
    while rest:
        token = rest.pop(0)
        name, equals, attached = token.partition("=")
        option = options.get(name.replace("_", "-"))
        if option is None:
            raise UsageError(_unknown(token, options))
        texts = [attached] if equals else []
        while rest and not rest[0].startswith("--") and (not texts or _takes_many(option.hint)):
            texts.append(rest.pop(0))
        inner = changes
        for part in option.path[:-1]:
            inner = inner.setdefault(part, {})
        inner[option.path[-1]] = _value(option, name, texts)
    try:
        return _replaced(config, changes)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _options(config: Any, path: tuple[str, ...] = ()) -> dict[str, _Option]:
    found: dict[str, _Option] = {}
    for name, hint in fields_of(type(config)).items():
        value, here = getattr(config, name), (*path, name)
        if dataclasses.is_dataclass(value):
            found |= _options(value, here)
        elif hint is bool:
            found[_option_name(here)] = _Option(here, hint, True)
            found[_option_name((*path, f"no_{name}"))] = _Option(here, hint, False)
        else:
            found[_option_name(here)] = _Option(here, hint)
    return found


def _option_name(path: tuple[str, ...]) -> str:
    return f"--{'.'.join(path)}".replace("_", "-")


def _unknown(token: str, options: Mapping[str, _Option]) -> str:
    name = token.partition("=")[0].replace("_", "-")
    if not name.startswith("-"):
        first = ", the config file comes first" if token.endswith(".py") else ""
        return f"{token!r} belongs to no option{first}; fields are set by --field VALUE"
    last = name.lstrip("-").rpartition(".")[2]
    near = [option for option in options if option.rpartition(".")[2] in (last, f"--{last}")]
    close = difflib.get_close_matches(name, options, n=2, cutoff=0.75)
    near += [option for option in close if option not in near]
    hint = f"near it: {', '.join(near[:4])}" if near else "--help lists all"
    return f"there is no option {shown(name)[1:-1]}; {hint}"


def _takes_many(hint: Any) -> bool:
    return any(get_origin(option) is tuple for option in options_of(hint))


def _value(option: _Option, name: str, texts: list[str]) -> Any:
    if option.value is not None:
        if texts:
            other = _option_name((*option.path[:-1], f"no_{option.path[-1]}"))
            raise UsageError(
                f"{name} takes no value, and {shown(texts[0])} is given; "
                f"it must be {_option_name(option.path)} or {other}"
            )
        return option.value
    if not texts and not _takes_many(option.hint):
        raise UsageError(f"{name} needs a value: {legal_values(option.hint, None)}")
    # None first: any word is a text.
    for hint in sorted(options_of(option.hint), key=lambda hint: hint is not NoneType):
        try:
            return _parsed(hint, texts)
        except ValueError:
            continue
    given = " ".join(texts)
    raise UsageError(
        f"{option.field} is {shown(given)}; it must be {legal_values(option.hint, None)}"
    )


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


def _replaced(config: Any, changes: Mapping[str, Any], path: str = "") -> Any:
    values = {
        name: _replaced(getattr(config, name), value, f"{path}.{name}".lstrip("."))
        if isinstance(value, dict)
        else value
        for name, value in changes.items()
    }
    return at_path(path, lambda: dataclasses.replace(config, **values))
