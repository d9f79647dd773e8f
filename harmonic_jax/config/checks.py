"""What every config does when it is made: refuse values that cannot work, by name."""

from typing import Literal, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A configuration value that cannot work."""


def require(condition: bool, field: str, value: object, legal: str) -> None:
    if not condition:
        raise ConfigError(f"{field} is {value!r}; it must be {legal}")


def check_choices(config: object, prefix: str) -> None:
    """Checks every field whose type is a Literal: dataclasses do not."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            choices = get_args(hint)
            value = getattr(config, name)
            legal = " or ".join(map(str, choices))
            require(value in choices, f"{prefix}.{name}", value, legal)
