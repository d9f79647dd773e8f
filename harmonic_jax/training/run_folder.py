"""The folder of a run, and whether what lies there may be continued."""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.files import write_text
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.config_json import config_to_json, differences, listed, read_config
from harmonic_jax.training.lock import FILE_NAME as LOCK
from harmonic_jax.training.lock import take_lock
from harmonic_jax.training.log import read_metrics
from harmonic_jax.training.metadata import config_of
from harmonic_jax.training.processes import is_primary, run_on_all, run_on_primary

_LOG = logging.getLogger(__name__)
_SHARED_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class RunFolder:
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

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of the log; none where it was not begun."""
        return read_metrics(self.log) if self.log.is_file() else []

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
        checkpoints = CheckpointStore(self.checkpoints)
        if not self.path.is_dir():
            if os.path.lexists(self.path):
                raise ConfigError(f"{self.path} is no folder; choose another one with --run-dir")
            return False
        if checkpoints.latest_step() is not None:
            self._refuse_other(self._config_of(checkpoints), config)
            return True
        if not self.config.exists():
            if {path.name for path in self.path.iterdir()} - {LOCK}:
                raise ConfigError(
                    f"{self.path} exists and is not a run of ours (no config.json); "
                    "choose another folder with --run-dir"
                )
        elif self._has_begun():
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

    def _config_of(self, checkpoints: CheckpointStore) -> Config:
        """What the weights were made with; config.json may have been changed since."""
        try:
            return config_of(checkpoints.read_metadata(), where=self.checkpoints)
        except CheckpointError:  # all are damaged
            return self.read_config()

    def _holds(self, config: Config) -> bool:
        """Whether config.json says it; another one can only have come there by other means."""
        try:
            is_same = not differences(self.read_config(), config)
        except ConfigError:
            is_same = False
        if not is_same:
            _LOG.warning("%s is not the config of the checkpoints: written anew", self.config)
        return is_same

    def _has_begun(self) -> bool:
        """Whether anything came of it: a run that was refused at its start (weights that do not
        fit, say) leaves its config only, and must not stand in the way of the corrected one."""
        return bool(self._traces()) or any(path.is_dir() for path in self.checkpoints.glob("*"))

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
        listing = listed(differences(old, new), "there", "now")
        if listing:
            raise ConfigError(
                f"{self.path} holds a run with another config ({listing}). Choose another folder "
                "with --run-dir, or start with the same values to continue it"
            )
