"""A folder that TFDS prepared, read as data: it runs no code, and damage is named by its file.

TFDS imports whatever module `features.json` names, from the current folder too; and what its
parsers raise on damaged files is of any type.
"""

import bisect
import contextlib
import errno
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.data.folders import read_class_names
from harmonic_jax.data.records import DataError
from harmonic_jax.json_file import read_json

INFO, FEATURES = "dataset_info.json", "features.json"
_MOST_BYTES = 2**26  # of either; those of COCO have 4 kB
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def open_prepared(folder: Path, *, hint: str = "prepare it again") -> Any:
    """Opens a folder of one version of a data set: a TFDS builder that only reads.

    A DataError where a file is damaged (then with `hint`) or names features not of TFDS's own.
    """
    import tensorflow_datasets as tfds

    for name in (INFO, FEATURES):
        with named_damage(folder / name, hint):
            content = read_json(folder / name, most_bytes=_MOST_BYTES)
            if not isinstance(content, dict):
                raise ValueError("it is no JSON object")
    _refuse_foreign_classes(folder / FEATURES, content)
    with named_damage(folder / FEATURES, hint):
        tfds.features.FeatureConnector.from_config(str(folder))
    with named_damage(folder / INFO, hint):
        return tfds.builder_from_directory(folder)


def _refuse_foreign_classes(path: Path, content: Any) -> None:
    """Refuses classes of features that TFDS would have to import."""
    import tensorflow_datasets as tfds

    known = {
        f"{kind.__module__}.{kind.__name__}"
        for kind in vars(tfds.features).values()
        if isinstance(kind, type) and issubclass(kind, tfds.features.FeatureConnector)
    }
    for name in _named_classes(content):
        if name not in known:
            raise DataError(
                f"{path} names the feature {name!r}, which is not one of TFDS's own; it is not "
                "imported"
            )


def _named_classes(content: Any) -> Iterator[str]:
    """Every class that JSON of features names, in the texts in it that are JSON again as well."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from (item[key] for key in _CLASS_KEYS if isinstance(item.get(key), str))
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str) and item.lstrip()[:1] in ("{", "["):
            with contextlib.suppress(ValueError, RecursionError):  # nor can TFDS read it
                waiting.append(json.loads(item))


def label_names(builder: Any) -> tuple[str, ...]:
    """The class names of the objects; numbers where the data set has no names.

    Read here, as TFDS passes over what goes wrong there: a DataError where the file is damaged, or
    has not as many names as there are classes.
    """
    label = builder.info.features["objects"].feature["label"]
    path = Path(builder.data_dir) / "objects-label.labels.txt"
    names = read_class_names(path) if path.exists() else tuple(label.names)
    if len(names) != label.num_classes:
        raise DataError(
            f"{path} has {len(names)} names; there are {label.num_classes} classes by {FEATURES}"
        )
    return names


class PreparedExamples(Sequence[Any]):
    """Examples of one or more splits, one after the other, with encoded images.

    An OSError names the file of a damaged one.

    Args:
      chosen: builders, from `open_prepared`, each with one of its splits or a slice of one.

    Raises:
      DataError: there is no such split; or a file is absent, damaged, of another length, not in the
        builder's folder, or without random access.
    """

    def __init__(self, chosen: Sequence[tuple[Any, str]]) -> None:
        self._parts = [_data_source(builder, split) for builder, split in chosen]
        self._files: list[str] = []
        self._ends = [0]
        for builder, split in chosen:
            for shard in builder.info.splits[split].file_instructions:
                file = Path(shard.filename)
                _check_shard(Path(builder.data_dir), file, shard.examples_in_shard)
                self._files.append(str(file))
                self._ends.append(self._ends[-1] + shard.take)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = index
        for part in self._parts:
            if place < len(part):
                break
            place -= len(part)
        try:
            return part[place]
        except MemoryError:
            raise
        except Exception as error:  # in the reader's or a parser's words
            file = self._files[bisect.bisect_right(self._ends, index) - 1]
            raise OSError(errno.EIO, f"example {place}: {_told(error)}", file) from error


def _data_source(builder: Any, split: str) -> Sequence[Any]:
    import tensorflow_datasets as tfds

    data_set, where = f"TFDS data set {builder.info.full_name!r}", builder.data_dir
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        legal = ", ".join(builder.info.splits)
        raise DataError(f"{data_set} has no split {split!r}; it has {legal}") from error
    hint = (
        "it needs array_record files. Add them once, in any environment that has TensorFlow: "
        f"tfds convert_format --dataset_version_dir={shlex.quote(str(where))} "
        "--out_file_format=array_record"
    )
    with named_damage(where, hint):  # TFDS refuses other formats in several lines
        decoders = {"image": tfds.decode.SkipDecoding()}
        return builder.as_data_source(split, decoders=decoders)


def _check_shard(folder: Path, path: Path, stated: int) -> None:
    """Compares a file with what dataset_info.json says of it."""
    from array_record.python import array_record_module

    info = folder / INFO
    if os.path.normpath(path.parent) != os.path.normpath(folder):
        raise DataError(f"{info} names {path}, which is not in its folder")
    with named_damage(path):  # of a file that was cut, the reader says that it has 0 records
        found = array_record_module.ArrayRecordReader(str(path)).num_records()
    if found != stated:
        raise DataError(
            f"{path} holds {found} records, and {info} says {stated}: one of them is "
            "damaged, or of another version; prepare the data again"
        )


@contextlib.contextmanager
def named_damage(where: object, hint: str = "prepare it again") -> Iterator[None]:
    """What a library raises on a damaged file becomes a DataError that names it."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        place = getattr(error, "filename", None) or where
        raise DataError(f"{place} cannot be read ({_told(error)}); {hint}") from error


def _told(error: Exception) -> str:
    """The first line of what a library says, not longer than a line."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
