"""The folder of a run: what lies where, what its checkpoints say of it, and who may continue it."""

import contextlib
import json
import logging
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.files import write_text
from harmonic_jax.pretrained.models import PLACEHOLDER
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.config_json import (
    MAY_DIFFER,
    config_from_json,
    config_to_json,
    differences,
    listed,
    read_config,
)
from harmonic_jax.training.log import read_metrics
from harmonic_jax.training.processes import is_primary, run_on_all, run_on_primary
from harmonic_jax.training.step_folders import LOCK, take_lock

_LOG = logging.getLogger(__name__)
_SHARED_SECONDS = 60.0


class RunFolder:
    """Names of everything a run writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.report = path / "report"
        self.log = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """
        Raises:
          ConfigError: no folder can have this name.
        """
        name = config.run_dir or f"runs/{config.name}"
        if "://" in name or "\0" in name:
            raise ConfigError(f"run_dir is {name!r}; it must be a local or mounted folder")
        return cls(Path(name))

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of the log; none where it was not begun."""
        return read_metrics(self.log) if self.log.is_file() else []

    def read_config(self) -> Config:
        """The config the run was started with.

        Raises:
          ConfigError: the folder holds no run, or its config.json cannot be read.
        """
        try:
            return read_config(self.config)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self.path} holds no run: there is no {self.config}") from None

    @contextlib.contextmanager
    def opened(self, config: Config) -> Iterator[bool]:
        """Keeps other runs out of the folder while the block lasts; gives what `open` returns.

        Of several processes, the first one opens it, and the others make sure that they see the
        same folder. All call it.

        Raises:
          ProcessFailedError: another run lies here, or is going on, or the folder is not shared.
          ConfigError, OSError: the same, in the only process.
        """
        with contextlib.ExitStack() as stack:

            def open_locked() -> bool:
                self._is_continued(config)  # Nothing is written where nothing may be.
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(take_lock(self.path))
                self._own_report()
                return self.open(config)

            found = run_on_primary(open_locked)
            written = run_on_primary(lambda: self.config.read_text(encoding="utf-8"))
            run_on_all(lambda: None if is_primary() else self._wait_for(written))
            yield found

    def open(self, config: Config) -> bool:
        """Makes the folder, or checks that the run in it is this one; True if that goes on.

        Raises:
          ConfigError: another run lies here, or what is left of one. Nothing is overwritten.
        """
        is_continued = self._is_continued(config)
        self.path.mkdir(parents=True, exist_ok=True)
        if not is_continued or not self._holds(config):
            write_text(self.config, json.dumps(config_to_json(config), indent=2) + "\n")
        return is_continued

    def _is_continued(self, config: Config) -> bool:
        """Whether there are checkpoints of this config; refuses what would be overwritten."""
        if not self.path.is_dir():
            if os.path.lexists(self.path):
                raise ConfigError(f"{self.path} is no folder; choose another one with --run-dir")
            CheckpointStore(self.checkpoints)  # refuses a name that checkpoints cannot have
            return False
        checkpoints = CheckpointStore(self.checkpoints)
        if checkpoints.latest_step() is not None:
            try:  # what the weights were made with; config.json may have been changed since
                made = config_of(checkpoints.read_metadata(), where=self.checkpoints)
            except CheckpointError:  # all are damaged
                made = self.read_config()
            self._refuse_other(made, config)
            return True
        if not self.config.exists():
            if {path.name for path in self.path.iterdir()} - {LOCK}:
                raise ConfigError(
                    f"{self.path} exists and is not a run of ours (no config.json); "
                    "choose another folder with --run-dir"
                )
        # A run that was refused at its start (weights that do not fit, say) leaves its config
        # only, and must not stand in the way of the corrected one.
        elif self._traces() or any(path.is_dir() for path in self.checkpoints.glob("*")):
            self._refuse_other(self.read_config(), config)
            self._refuse_lost_checkpoints()
        return False

    def _own_report(self) -> None:
        """The report replaces the one before: not what lies behind a link, nor after an hour."""
        if self.report.is_symlink():
            target = self.report.readlink()
            self.report.unlink()
            _LOG.warning("%s was a link; what is in %s stays as it is", self.report, target)
        if self.report.exists() and not self.report.is_dir():
            raise ConfigError(f"{self.report} is no folder; remove it")

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

    def _holds(self, config: Config) -> bool:
        """Whether config.json says it; another one can only have come there by other means."""
        with contextlib.suppress(ConfigError):
            if not differences(self.read_config(), config):
                return True
        _LOG.warning("%s is not the config of the checkpoints: written anew", self.config)
        return False

    def _traces(self) -> list[str]:
        """What a run writes while it goes on, but for its checkpoints."""
        folders = (self.best, self.tensorboard, self.report)
        found = [path.name for path in folders if any(path.glob("[!.]*"))]
        return [*found, self.log.name] if self.log.exists() else found

    def _refuse_lost_checkpoints(self) -> None:
        """A run may have been killed before its first checkpoint: it starts again at step 1. But
        none is evaluated before it is saved, and its log begins after the folder was made."""
        saved_since = 2 * self.read_config().train.checkpoint_every  # the save takes its time
        rows = self.read_log()
        is_saved = any(row["kind"] == "eval" or row["step"] >= saved_since for row in rows)
        has_best = bool(CheckpointStore(self.best).steps())
        if self._traces() and (is_saved or has_best or not self.checkpoints.exists()):
            path = shlex.quote(str(self.path))
            start = f" (--init {path} starts from its best variables)" if has_best else ""
            raise ConfigError(
                f"{self.checkpoints} holds no checkpoint, but there is "
                f"{', '.join(self._traces())}: a start at step 1 would overwrite what is there. "
                f"Put the checkpoints back, or choose another folder with --run-dir{start}"
            )

    def _refuse_other(self, old: Config, new: Config) -> None:
        if changed := differences(old, new):
            raise ConfigError(
                f"{self.path} holds a run with another config ({listed(changed, 'there', 'now')}). "
                "Choose another folder with --run-dir, or start with the same values to continue it"
            )


def run_metadata(config: Config, source: DetectionSource, fingerprint: str) -> dict[str, Any]:
    """What a checkpoint says of the run that made it, as JSON."""
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


class _ClassMetadata(msgspec.Struct):
    class_names: Annotated[list[str], msgspec.Meta(min_length=1, max_length=100_000)]
    category_ids: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]] | None = None
    torchvision_names: dict[str, str] = {}  # as they are called in the imported file


def class_names_of(metadata: Mapping[str, Any], *, where: object) -> tuple[str, ...]:
    """The classes that a checkpoint knows, after checking what is said of them.

    Raises:
      ConfigError: it has none, or they, or their ids, are not what a run writes.
    """
    try:
        known = msgspec.convert(dict(metadata), _ClassMetadata)
        names, ids = known.class_names, known.category_ids
        "".join(names).encode()
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise ConfigError(f"{where}: {error}") from None
    counts = Counter(names)
    for name, count in counts.items():
        if count > 1 and name != PLACEHOLDER:
            raise ConfigError(f"{where}: the class name {name!r} is there twice")
    if ids is not None and not len(names) == len(ids) == len(set(ids)):
        raise ConfigError(f"{where}: category_ids must be a different number for each class")
    return tuple(names)


def check_same_on_all(metadata: Mapping[str, Any]) -> None:
    """Refuses processes that were started with different configs, or that see different data.

    Raises:
      ProcessFailedError: names the process and what differs.
    """
    first = run_on_primary(lambda: dict(metadata))

    def check() -> None:
        changed = differences(config_of(first), config_of(metadata), ignored=MAY_DIFFER)
        if changed:
            listing = listed(changed, "there", "here")
            raise ConfigError(f"process 0 was started with another config: {listing}")
        for name in ("class_names", "order_fingerprint"):
            if first[name] != metadata[name]:
                raise ConfigError(
                    f"process 0 reads other training data ({name} differs): all hosts need the "
                    "same files under data.root"
                )

    run_on_all(check)


def check_resumable(found: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses to continue where the config or the order of the data changed.

    Raises:
      ConfigError: names what changed.
    """
    changed = differences(config_of(found), config_of(current))
    if changed:
        listing = listed(changed, "there", "now")
        raise ConfigError(f"the checkpoint was made with another config: {listing}")
    if found.get("class_names") != current["class_names"]:
        raise ConfigError(
            f"the checkpoint knows the classes {found.get('class_names')}, "
            f"the data has {current['class_names']}"
        )
    if found.get("order_fingerprint") != current["order_fingerprint"]:
        raise ConfigError(
            "the training data, or the order in which it comes, is not that of the checkpoint "
            "(images, objects, seed, batch size or augmentation changed): continuing would not "
            "give the run that was started. Restore the data, or choose another --run-dir"
        )
