"""The folder of a run, and whether what lies there may be continued."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.files import write_text
from harmonic_jax.training.config_json import (
    MAY_DIFFER,
    config_from_json,
    config_to_json,
    differences,
    read_config,
)
from harmonic_jax.training.distributed import decide, is_primary, together
from harmonic_jax.training.writer import read_metrics

_SHARED_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class RunDir:
    """Names of everything a run writes."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def log(self) -> Path:
        return self.path / "metrics.jsonl"

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of the log; none where it was not begun."""
        return read_metrics(self.log) if self.log.exists() else []

    @classmethod
    def of(cls, config: Config) -> "RunDir":
        return cls(Path(config.run_dir) if config.run_dir else Path("runs") / config.name)

    def read_config(self) -> Config:
        """The config the run was started with.

        Raises:
          ConfigError: the folder holds no run, or its config.json cannot be read.
        """
        try:
            return read_config(self.config)
        except FileNotFoundError:
            raise ConfigError(f"{self.path} holds no run: there is no {self.config}") from None

    def open(self, config: Config) -> bool:
        """Makes the folder, or checks that the run in it is this one; True if it had begun.

        Raises:
          ConfigError: another run lies here. Nothing is overwritten.
        """
        if self.config.exists() and self._has_begun():
            self._refuse_other(self.read_config(), config)
            return True
        if not self.config.exists() and self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(
                f"{self.path} exists and is not a run of ours (no config.json); "
                "choose another folder with --run-dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, json.dumps(config_to_json(config), indent=2) + "\n")
        return False

    def open_together(self, config: Config) -> bool:
        """Like `open`, by process 0 of several; the others make sure that they see its folder.

        Raises:
          TogetherError: another run lies here, or the folder is not shared.
          ConfigError: the same, in the only process.
        """
        found = decide(lambda: self.open(config))
        written = decide(lambda: self.config.read_text(encoding="utf-8"))
        together(lambda: None if is_primary() else self._wait_for(written))
        return found

    def _wait_for(self, written: str) -> None:
        """Until config.json is here as process 0 wrote it: network folders lag by seconds."""
        deadline = time.monotonic() + _SHARED_SECONDS
        while not (self.config.exists() and self.config.read_text(encoding="utf-8") == written):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{self.config} is not the file that process 0 wrote: the run's folder "
                    "(run_dir) must be one that all hosts share"
                )
            time.sleep(0.1)

    def _has_begun(self) -> bool:
        """Whether anything came of it: a run that was refused at its start (weights that do not
        fit, say) leaves its config only, and must not stand in the way of the corrected one."""
        return self.log.exists() or any(
            path.is_dir() for folder in (self.checkpoints, self.best) for path in folder.glob("*")
        )

    def _refuse_other(self, old: Config, new: Config) -> None:
        changed = differences(old, new)
        if changed:
            listing = "; ".join(f"{k}: {a!r} there, {b!r} now" for k, (a, b) in changed.items())
            raise ConfigError(
                f"{self.path} holds a run with another config ({listing}). Choose another folder "
                "with --run-dir, or start with the same values to continue it"
            )


def run_metadata(config: Config, source: DetectionSource, fingerprint: str) -> dict[str, Any]:
    """What a checkpoint says of itself, as JSON."""
    return {
        "config": config_to_json(config),
        "class_names": list(source.class_names),
        "category_ids": list(source.category_ids),
        "order_fingerprint": fingerprint,
    }


def check_same_everywhere(metadata: Mapping[str, Any]) -> None:
    """Refuses processes that were started with different configs, or that see different data.

    Raises:
      TogetherError: names the process and what differs.
    """
    first = decide(lambda: dict(metadata))
    together(lambda: _check_same(first, metadata))


def _check_same(first: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    changed = differences(
        config_from_json(first["config"]), config_from_json(here["config"]), ignored=MAY_DIFFER
    )
    if changed:
        listing = "; ".join(f"{k}: {a!r} there, {b!r} here" for k, (a, b) in changed.items())
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
    old, new = config_from_json(found["config"]), config_from_json(current["config"])
    changed = differences(old, new)
    if changed:
        listing = "; ".join(f"{k}: {a!r} there, {b!r} now" for k, (a, b) in changed.items())
        raise ConfigError(f"the checkpoint was made with another config: {listing}")
    if found["class_names"] != current["class_names"]:
        raise ConfigError(
            f"the checkpoint knows the classes {found['class_names']}, "
            f"the data has {current['class_names']}"
        )
    if found["order_fingerprint"] != current["order_fingerprint"]:
        raise ConfigError(
            "the training data, or the order in which it comes, is not that of the checkpoint "
            "(images, objects, seed, batch size or augmentation changed): continuing would not "
            "give the run that was started. Restore the data, or choose another --run-dir"
        )
