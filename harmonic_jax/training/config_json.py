"""Configs as JSON: what a run was started with, stored beside it and inside its checkpoints."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from harmonic_jax import config as config_module
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


def config_from_json(values: Mapping[str, Any]) -> Config:
    """The inverse of `config_to_json`.

    Raises:
      ConfigError: for an unknown class or field, or a value its dataclass refuses.
    """
    config = _decode(values, "config")
    if not isinstance(config, Config):
        raise ConfigError(f"config has type {values.get('type')!r}; it must be 'Config'")
    return config


def _decode(values: Mapping[str, Any], path: str) -> Any:
    kind = getattr(config_module, str(values.get("type")), None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"{path}.type is {values.get('type')!r}; it must name a config class")
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints) - {"type"}
    if unknown:
        raise ConfigError(f"{path} has unknown fields {sorted(unknown)} for {kind.__name__}")
    return kind(
        **{
            name: _decode_value(value, hints[name], f"{path}.{name}")
            for name, value in values.items()
            if name != "type"
        }
    )


def _decode_value(value: Any, hint: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return _decode(value, path)
    if isinstance(value, list):  # JSON has no tuples; configs have no lists
        return _tuples(value)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return float(value) if float in options and isinstance(value, int) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


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


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{path}.")
        else:
            flat[path] = _tuples(value)
    return flat
