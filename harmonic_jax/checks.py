"""What every config does when it is made: refuse values that cannot work, by name."""

import dataclasses
import re
import struct
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")

MAX_TEXT = 4096
MAX_ITEMS = 1000  # of a tuple
_SHOWN = 80


class ConfigError(ValueError):
    """A configuration value that cannot work."""


def require(condition: bool, field: str, value: object, legal: str) -> None:
    if not condition:
        raise ConfigError(f"{field} is {shown(value)}; it must be {legal}")


def check_fields(config: Any, prefix: str) -> None:
    """Checks that every field of a config has a value of its type, and numbers their interval.

    The interval of a number, of tuples of numbers too, is part of its type, and finite:
    `Annotated[float, "[0, 1)"]`.

    Types of dataclasses are not checked by Python; here `True` is no number, NaN and infinity lie
    in no interval, and no tuple or text is longer than MAX_ITEMS or MAX_TEXT. What must hold in
    float32 is held against the number as float32 sees it: 1e-50 is 0 there.

    A ConfigError names the field, `prefix` before it, its value, and what is legal.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for name, value in vars(config).items():
        hint, interval = hints[name], None
        if get_origin(hint) is Annotated:
            hint, interval, *_ = get_args(hint)
        if not _fits(value, hint, interval):
            require(False, f"{prefix}.{name}", value, legal_values(hint, interval))


def check_count(field: str, value: object, interval: str) -> None:
    """Refuses what is no whole number in an interval, `"[1, 1e6]"`: for options of commands."""
    require(_fits(value, int, interval), field, value, legal_values(int, interval))


def check_number(field: str, value: object, interval: str) -> None:
    """Refuses what is no number in an interval, `"[0, 1]"`."""
    require(_fits(value, float, interval), field, value, legal_values(float, interval))


def at_path(path: str, make: Callable[[], _T]) -> _T:
    """Makes a config that stands at `path`, such as `model.rpn.match`, and raises what it refuses
    with that path: a config knows only its last part."""
    try:
        return make()
    except ConfigError as error:
        message, last = str(error), path.rpartition(".")[2]
        if message.startswith(f"{last}."):
            raise ConfigError(path + message.removeprefix(last)) from None
        raise


def fields_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def shown(value: object) -> str:
    """A value for a message, whatever it is: no longer than a line.

    >>> shown("a" * 1000) == "'" + "a" * 77 + ".."
    True
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integers of more than 4300 digits
        text = f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 2]}.."


def _fits(value: Any, hint: Any, interval: str | None) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option, interval) for option in args)
    if origin is tuple:
        if not isinstance(value, tuple) or len(value) > MAX_ITEMS:
            return False
        hints = (args[0],) * len(value) if args[-1] is Ellipsis else args
        return len(value) == len(hints) and all(
            _fits(item, item_hint, interval) for item, item_hint in zip(value, hints, strict=True)
        )
    if hint in (int, float):
        is_number = isinstance(value, int if hint is int else int | float)
        assert interval is not None, "every field of numbers needs an interval"
        return is_number and not isinstance(value, bool) and _Interval(interval).holds(value)
    if hint is str:
        return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and _can_name_a_file(value)
    return isinstance(value, origin or hint)


def legal_values(hint: Any, interval: str | None) -> str:
    """What a field of this type may be, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(legal_values(option, interval) for option in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a tuple of at most {MAX_ITEMS}, each {legal_values(args[0], interval)}"
        return f"a tuple ({', '.join(legal_values(item, interval) for item in args)})"
    if hint in (int, float):
        within = f" in {interval}" if interval else ""
        return f"a {'whole number' if hint is int else 'number'}{within}"
    if hint is str:
        return f"a text of 1 to {MAX_TEXT} letters, as a file's name may have them"
    return {bool: "True or False", types.NoneType: "None"}.get(hint, f"a {hint.__name__}")


class _Interval:
    """Numbers between two bounds, written as in mathematics: `[0, 1)`.

    >>> interval = _Interval("[0, 0.1)")
    >>> [interval.holds(value) for value in (0, 0.05, 0.1, 0.1 - 1e-12, 1e-50, float("nan"))]
    [True, True, False, False, False, False]
    """

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", text)
        assert found is not None, text
        self.has_low, self.has_high = found[1] == "[", found[4] == "]"
        self.low, self.high = float(found[2]), float(found[3])

    def holds(self, value: int | float) -> bool:
        if not self._between(value, self.low, self.high):
            return False
        if isinstance(value, int):
            return True
        seen = _float32(value)
        is_lost = seen == 0 and value != 0
        return self._between(seen, _float32(self.low), _float32(self.high)) and not is_lost

    def _between(self, value: float, low: float, high: float) -> bool:
        above = value >= low if self.has_low else value > low
        below = value <= high if self.has_high else value < high
        return above and below


def _can_name_a_file(text: str) -> bool:
    """The system takes no NUL; and no half of a surrogate pair, but for those by which Python
    keeps bytes that are no UTF-8."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])
