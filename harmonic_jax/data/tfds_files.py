"""A folder that TFDS prepared, read as data: it runs no code, and damage is named by its file.

TFDS imports whatever module `features.json` names, from the current folder too; and what its
parsers raise on damaged files is of any type.
"""

import bisect
import contextlib
import dataclasses
import errno
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.data.records import DataError
from harmonic_jax.json_file import read_json

INFO, FEATURES = "dataset_info.json", "features.json"
_MOST_BYTES = 2**26  # of either; those of COCO have 4 kB
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def open_prepared(folder: Path, *, hint: str = "prepare it again") -> Any:
    """Opens a folder of one version of a data set.

    Args:
      folder: has dataset_info.json and features.json in it.
      hint: what to do where it is damaged.

    Returns:
      A TFDS builder that only reads.

    Raises:
      DataError: a file is damaged, or names features that are not TFDS's own.
    """
    import tensorflow_datasets as tfds

    for name in (INFO, FEATURES):
        with named_damage(folder / name, hint):
            content = _json(folder / name)
        if name == FEATURES:
            _check_features(folder / name, content)
    with named_damage(folder / FEATURES, hint):
        tfds.features.FeatureConnector.from_config(str(folder))
    with named_damage(folder / INFO, hint):
        return tfds.builder_from_directory(folder)


def label_names(builder: Any) -> tuple[str, ...]:
    """The class names of the objects; numbers where the data set has no names.

    Raises:
      DataError: the file of names is damaged, or has not as many as there are classes: TFDS passes
        over what goes wrong there.
    """
    label = builder.info.features["objects"].feature["label"]
    path = Path(builder.data_dir) / "objects-label.labels.txt"
    names = tuple(label.names)
    if path.exists():
        with named_damage(path):
            lines = path.read_text(encoding="utf-8").split("\n")
        written = tuple(line.strip() for line in lines if line.strip())
        if written != names or len(set(names)) != label.num_classes:
            raise DataError(
                f"{path} has {len(written)} names, of which {len(set(written))} differ, and "
                f"{FEATURES} says that there are {label.num_classes} classes"
            )
    return names


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSplit(Sequence[Any]):
    """Examples of a split, with encoded images.

    Attributes:
      examples: TFDS's own sequence of them.
      files: of the data.
      ends: the number of examples up to the end of each file.
    """

    examples: Sequence[Any]
    files: tuple[str, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        """An example; raises OSError, which names the file, where it is damaged."""
        try:
            return self.examples[index]
        except (MemoryError, IndexError):
            raise
        except Exception as error:  # in the reader's or a parser's words
            file = self.files[bisect.bisect_right(self.ends, index)]
            raise OSError(errno.EIO, f"example {index}: {_told(error)}", file) from error


def open_split(builder: Any, split: str) -> PreparedSplit:
    """Opens a split, and compares its files with what dataset_info.json says of them.

    Args:
      builder: from `open_prepared`.
      split: one that the builder has, or a slice of it.

    Raises:
      DataError: a file is absent, damaged, of another length, or not in the builder's folder.
      NotImplementedError: the files are not array_record.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    folder = Path(builder.data_dir)
    with named_damage(folder, passed_on=NotImplementedError):
        decoders = {"image": tfds.decode.SkipDecoding()}
        examples = builder.as_data_source(split, decoders=decoders)
    shards = builder.info.splits[split].file_instructions
    for shard in shards:
        path, stated = Path(shard.filename), shard.examples_in_shard
        if os.path.normpath(path.parent) != os.path.normpath(folder):
            raise DataError(f"{folder / INFO} names {path}, which is not in its folder")
        if not path.is_file():
            raise DataError(f"{path} is absent; {folder / INFO} names it")
        with named_damage(path):  # of a file that was cut, the reader says that it has 0 records
            found = array_record_module.ArrayRecordReader(str(path)).num_records()
        if found != stated:
            raise DataError(
                f"{path} holds {found} records, and {folder / INFO} says {stated}: one of them is "
                "damaged, or of another version; prepare the data again"
            )
    ends = itertools.accumulate(shard.take for shard in shards)
    return PreparedSplit(examples, tuple(str(s.filename) for s in shards), tuple(ends))


@contextlib.contextmanager
def named_damage(
    where: object, hint: str = "prepare it again", *, passed_on: type[Exception] = DataError
) -> Iterator[None]:
    """What a library raises on a damaged file becomes a DataError that names it."""
    try:
        yield
    except (DataError, MemoryError, passed_on):
        raise
    except Exception as error:
        raise DataError(f"{where} cannot be read ({_told(error)}); {hint}") from error


def _told(error: Exception) -> str:
    """The first line of what a library says, not longer than a line."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError("it is absent")
    content = read_json(path, most_bytes=_MOST_BYTES)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _check_features(path: Path, content: Any) -> None:
    """Refuses classes of features that TFDS would have to import."""
    import tensorflow_datasets as tfds

    known = {
        f"{kind.__module__}.{kind.__name__}"
        for kind in vars(tfds.features).values()
        if isinstance(kind, type) and issubclass(kind, tfds.features.FeatureConnector)
    }
    for name in _class_names(content):
        if name not in known:
            raise DataError(
                f"{path} names the feature {name!r}, which is not one of TFDS's own; it is not "
                "imported"
            )


def _class_names(content: Any) -> Iterator[str]:
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
