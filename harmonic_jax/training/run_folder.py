"""The folder of a run: what lies where, what its checkpoints say of it, and who may continue it."""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.files import write_text
from harmonic_jax.json_file import JsonFileError, read_json
from harmonic_jax.pretrained.models import PLACEHOLDER
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.config_json import (
    MAY_CHANGE,
    MAY_DIFFER,
    config_from_json,
    config_to_json,
    refuse_other,
)
from harmonic_jax.training.log import read_metrics
from harmonic_jax.training.processes import is_primary, run_on_all, run_on_primary
from harmonic_jax.training.step_folders import LOCK, take_lock

_SHARED_SECONDS = 60.0
_MOST_BYTES = 2**24  # of config.json


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
        """The folder that the config names; ConfigError if none can have this name."""
        name = config.run_dir or f"runs/{config.name}"
        if "://" in name or "\0" in name:
            raise ConfigError(f"run_dir is {name!r}; it must be a local or mounted folder")
        return cls(Path(name))

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of the log; none where it was not begun."""
        return read_metrics(self.log) if self.log.is_file() else []

    def read_config(self) -> Config:
        """The config the run was started with; ConfigError if the folder holds none to be read."""
        try:
            values = read_json(self.config, most_bytes=_MOST_BYTES, unique_keys=True)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self.path} holds no run: there is no {self.config}") from None
        except JsonFileError as error:
            raise ConfigError(str(error)) from None
        return config_from_json(values, where=f"{self.config}: ")

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
                return self.open(config)

            found = run_on_primary(open_locked)
            written = run_on_primary(lambda: self.config.read_text(encoding="utf-8"))
            run_on_all(lambda: None if is_primary() else self._wait_for(written))
            yield found

    def open(self, config: Config) -> bool:
        """Makes the folder, or checks that the run in it is this one; True if that goes on.

        Another run, or what is left of one, is a ConfigError: nothing is overwritten.
        """
        is_continued = self._is_continued(config)
        self.path.mkdir(parents=True, exist_ok=True)
        # Theirs is that of the checkpoints, whatever became of the file.
        text = json.dumps(config_to_json(config), indent=2) + "\n"
        if not self.config.is_file() or self.config.read_bytes() != text.encode():
            write_text(self.config, text)
        if self.report.is_symlink():  # it is replaced, and not what lies behind the link
            self.report.unlink()
        return is_continued

    def _is_continued(self, config: Config) -> bool:
        """Whether there are checkpoints of this config; refuses what would be overwritten."""
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise ConfigError(f"{self.path} is no folder; choose another one with --run-dir")
        if self.report.exists() and not self.report.is_dir():
            raise ConfigError(
                f"{self.report} is no folder, and the run's report goes there; move it"
            )
        checkpoints, best = CheckpointStore(self.checkpoints), CheckpointStore(self.best)
        for store in (checkpoints, best):
            # A damaged one is named when it is restored, or replaced.
            with contextlib.suppress(CheckpointError):
                made = config_of(store.read_metadata(), where=store.directory)
                refuse_other(made, config, f"{self.path} holds a run, in {store.directory.name}/,")
        if checkpoints.steps():
            return True
        found = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if self.config.name in found:
            self._refuse_lost_checkpoints(config, has_best=bool(best.steps()))
        elif found - {LOCK}:
            raise ConfigError(
                f"{self.path} exists and is not a run of ours (no config.json); "
                "choose another folder with --run-dir"
            )
        return False

    def _refuse_lost_checkpoints(self, config: Config, *, has_best: bool) -> None:
        """A run that was refused at its start leaves its config, and may be corrected; one that was
        killed before its first checkpoint, and so before its first evaluation, starts again."""
        is_saved = False
        if rows := self.read_log():
            begun = self.read_config()
            refuse_other(begun, config, f"{self.path} holds a run")
            # Behind the second save the first is complete: that waited for it.
            second_save = 2 * begun.train.checkpoint_every
            is_saved = any(row["kind"] == "eval" or row["step"] > second_save for row in rows)
        if has_best or is_saved or self.report.exists():
            raise ConfigError(
                f"{self.checkpoints} holds no checkpoint, but there is what came after one (best/, "
                "report/ or a log), which a start at step 1 would overwrite. Put the checkpoints "
                "back, or choose another folder with --run-dir"
            )

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


def run_metadata(config: Config, source: DetectionSource, fingerprint: str) -> dict[str, Any]:
    """What a checkpoint says of the run that made it, as JSON."""
    return {
        "config": config_to_json(config),
        "class_names": list(source.class_names),
        "category_ids": list(source.category_ids),
        "order_fingerprint": fingerprint,
    }


def config_of(metadata: Mapping[str, Any], *, where: object = "the checkpoint") -> Config:
    """The config that a checkpoint was made with; ConfigError if it has none to be read."""
    return config_from_json(metadata.get("config"), where=f"in the manifest of {where}: ")


class _ClassMetadata(msgspec.Struct):
    class_names: Annotated[list[str], msgspec.Meta(min_length=1, max_length=100_000)]
    category_ids: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]] | None = None
    torchvision_names: dict[str, str] = {}  # as they are called in the imported file


def class_names_of(metadata: Mapping[str, Any], *, where: object) -> tuple[str, ...]:
    """The classes that a checkpoint knows, after checking what is said of them.

    That there are none, or that they or their ids are not what a run writes, is a ConfigError.
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

    A ProcessFailedError names the process and what differs.
    """
    first = run_on_primary(lambda: dict(metadata))
    run_on_all(lambda: check_same(first, metadata, "process 0 was started", ignored=MAY_DIFFER))


def check_same(
    found: Mapping[str, Any],
    current: Mapping[str, Any],
    what: str,
    *,
    ignored: frozenset[str] = MAY_CHANGE,
) -> None:
    """Refuses another config, and other training data or another order of them.

    `found` is the metadata of a checkpoint, or of another process. The ConfigError names what
    differs, but for the `ignored` fields of the config; it begins with `what`, such as "the
    checkpoint was made".
    """
    refuse_other(config_of(found), config_of(current), what, ignored=ignored)
    for name in ("class_names", "order_fingerprint"):
        if found.get(name) != current[name]:
            raise ConfigError(
                f"{what} with other training data, or another order of it ({name} differs: images, "
                "objects or classes changed): the files under data.root must be the same"
            )
