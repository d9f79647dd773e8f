"""What a checkpoint says of the run that made it, and whether it may be continued or used."""

from collections.abc import Mapping
from typing import Any

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.training.config_json import (
    MAY_DIFFER,
    config_from_json,
    config_to_json,
    differences,
    listed,
)
from harmonic_jax.training.processes import run_on_all, run_on_primary


def run_metadata(config: Config, source: DetectionSource, fingerprint: str) -> dict[str, Any]:
    """What a checkpoint says of itself, as JSON."""
    return {
        "config": config_to_json(config),
        "class_names": list(source.class_names),
        "category_ids": list(source.category_ids),
        "order_fingerprint": fingerprint,
    }


def config_of(metadata: Mapping[str, Any], *, where: object = "the checkpoint") -> Config:
    """The config that a checkpoint was made with.

    Raises:
      ConfigError: it has none, or one that cannot be read.
    """
    return config_from_json(metadata.get("config"), where=f"in the manifest of {where}: ")


def class_names_of(
    metadata: Mapping[str, Any], *, where: object = "the checkpoint"
) -> tuple[str, ...]:
    """The classes that a checkpoint knows.

    Raises:
      ConfigError: it has none, or they, or their ids, are not what a run writes.
    """
    names, ids = metadata.get("class_names"), metadata.get("category_ids")
    if not isinstance(names, list) or not names or not all(type(name) is str for name in names):
        raise ConfigError(f"in the manifest of {where}: class_names must be a list of names")
    is_list = isinstance(ids, list) and all(type(number) is int for number in ids)
    if ids is not None and not (is_list and len(ids) == len(names)):
        raise ConfigError(f"in the manifest of {where}: category_ids must be a number a class")
    return tuple(names)


def check_same_everywhere(metadata: Mapping[str, Any]) -> None:
    """Refuses processes that were started with different configs, or that see different data.

    Raises:
      ProcessFailedError: names the process and what differs.
    """
    first = run_on_primary(lambda: dict(metadata))
    run_on_all(lambda: _check_same(first, metadata))


def _check_same(first: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    changed = differences(config_of(first), config_of(here), ignored=MAY_DIFFER)
    if changed:
        listing = listed(changed, "there", "here")
        raise ConfigError(f"process 0 was started with another config: {listing}")
    for name in ("class_names", "order_fingerprint"):
        if list(first[name]) != list(here[name]):
            raise ConfigError(
                f"process 0 reads other training data ({name} differs): all hosts need the same "
                "files under data.root"
            )


def check_resumable(found: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses to continue where the config or the order of the data changed.

    Raises:
      ConfigError: names what changed.
    """
    changed = differences(config_of(found), config_of(current))
    if changed:
        listing = listed(changed, "there", "now")
        raise ConfigError(f"the checkpoint was made with another config: {listing}")
    if class_names_of(found) != class_names_of(current):
        raise ConfigError(
            f"the checkpoint knows the classes {found['class_names']}, "
            f"the data has {current['class_names']}"
        )
    if found.get("order_fingerprint") != current["order_fingerprint"]:
        raise ConfigError(
            "the training data, or the order in which it comes, is not that of the checkpoint "
            "(images, objects, seed, batch size or augmentation changed): continuing would not "
            "give the run that was started. Restore the data, or choose another --run-dir"
        )
