"""Configs as JSON: what a run was started with, stored beside it and inside its checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from harmonic_jax.checks import at_path, fields_of, options_of, require, shown
from harmonic_jax.config import Config, ConfigError

# A run may be continued with other values of these: none of them changes the parameters.
MAY_CHANGE = frozenset(
    {
        "run_dir",
        "data.root",
        "data.num_threads",
        "train.eval_batch_size",
        "train.log_every",
        "train.eval_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.profile",
        "train.step_timeout",
    }
)

# Processes of one run may have other values of these: each host has its own disks and cores.
MAY_DIFFER = frozenset({"data.root", "data.num_threads"})


def config_to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values; each dataclass carries its class name under `type`."""
    out: dict[str, Any] = {"type": type(config).__name__}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        out[field.name] = config_to_json(value) if dataclasses.is_dataclass(value) else value
    return out


def config_from_json(values: Any, *, where: str = "") -> Config:
    """The inverse of `config_to_json`; makes nothing but classes of configs.

    A ConfigError names the place of an unknown class or field, or of a value that its dataclass
    refuses; `where`, "FILE: ", stands before its message.
    """
    try:
        config: Config = _decode(values, (Config,), "config")
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
    return config


def _decode(values: Any, kinds: tuple[type, ...], path: str) -> Any:
    """A config of one of these classes; no other is ever made, whatever `type` says."""
    names = {kind.__name__: kind for kind in kinds}
    legal = " or ".join(names)
    require(isinstance(values, Mapping), path, values, f"an object of the type {legal}")
    name = values.get("type")
    require(isinstance(name, str) and name in names, f"{path}.type", name, legal)
    kind, hints = names[name], fields_of(names[name])
    unknown = sorted(set(values) - set(hints) - {"type"})
    if unknown:
        raise ConfigError(f"{path} has unknown fields {shown(unknown)} for {name}")
    given = {
        field: _decode_value(value, hints[field], f"{path}.{field}")
        for field, value in values.items()
        if field != "type"
    }
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in given:
            raise ConfigError(f"{path}.{field.name} is missing")
    return at_path(path.removeprefix("config."), lambda: kind(**given))


def _decode_value(value: Any, hint: Any, path: str) -> Any:
    options = options_of(hint)
    kinds: tuple[type, ...] = tuple(filter(dataclasses.is_dataclass, options))
    if kinds:
        return _decode(value, kinds, path)
    if isinstance(value, list):  # JSON has no tuples; configs have no lists
        return _tuples(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_exact = is_whole and abs(value) < 2**53  # of others the class says what is wrong
    return float(value) if float in options and is_exact else value


def _tuples(value: Any, depth: int = 2) -> Any:
    """Lists as tuples, down to those in lists: no field has deeper ones."""
    if not isinstance(value, list) or depth == 0:
        return value
    return tuple(_tuples(item, depth - 1) for item in value)


def differences(
    old: Config, new: Config, *, ignored: frozenset[str] = MAY_CHANGE
) -> dict[str, tuple[Any, Any]]:
    """Fields that differ and decide the outcome of a run: path -> (old value, new value)."""
    before, after = _flatten(config_to_json(old)), _flatten(config_to_json(new))
    return {
        path: (before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path) and path not in ignored
    }


def refuse_other(
    old: Config, new: Config, what: str, *, ignored: frozenset[str] = MAY_CHANGE
) -> None:
    """Refuses to go on where the config decides otherwise than one before.

    The ConfigError lists the fields, but for those `ignored`, with both values; it begins with
    `what`, such as "runs/a was made".
    """
    if changed := differences(old, new, ignored=ignored):
        listing = "; ".join(f"{path}: {a!r} there, {b!r} now" for path, (a, b) in changed.items())
        raise ConfigError(
            f"{what} with another config ({listing}). Start with the same values, or choose "
            "another folder with --run-dir"
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{path}.")
        else:
            flat[path] = _tuples(value)
    return flat
