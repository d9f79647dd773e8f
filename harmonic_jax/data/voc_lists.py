"""The lists of PASCAL VOC's layout, ImageSets/Main/SPLIT.txt, and the files that they name."""

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from harmonic_jax.data.folders import Listing, list_folder
from harmonic_jax.data.records import DataError
from harmonic_jax.files import read_lines

_FLAGS = ("-1", "0", "1", "+1")


class Listed(NamedTuple):
    """A line of a list.

    Attributes:
      name: what it names, as written.
      files: the image that it means; none where there is none, several where it is not clear.
      is_negative: the flag of a list of one class is -1: no object of that class is in it.
    """

    name: str
    files: tuple[str, ...]
    is_negative: bool


def list_paths(folder: Path) -> dict[str, Path]:
    """The lists of a VOC folder by name."""
    main = folder / "ImageSets" / "Main"
    files = sorted(list_folder(main, depth=0).files, reverse=True)  # .txt after .TXT
    return {Path(file).stem: main / file for file in files if file.lower().endswith(".txt")}


def split_names(folder: Path) -> list[str]:
    """The lists that are splits: not those of one class, such as `cat_train` beside `train`."""
    paths = list_paths(folder)

    def is_split(name: str) -> bool:
        words = name.split("_")
        ends = ("_".join(words[start:]) for start in range(1, len(words)))
        return not any(end in paths for end in ends) or not _flags(_lines(paths[name]))

    return sorted(filter(is_split, paths))


def _lines(path: Path) -> list[str]:
    """The lines of a list that say something; names on a disk need not be text."""
    try:
        return [line for line in read_lines(path, errors="surrogateescape") if line.strip()]
    except ValueError as error:
        raise DataError(str(error)) from error


def read_list(path: Path, images: "NamedFiles") -> Iterator[Listed]:
    """The lines of a list.

    A line is a name; it may be quoted, have a suffix, and be a path on another machine. In the
    lists of one class, where every line ends in a flag of -1, 0 or 1, the name is what comes before
    it; unless a line as a whole names an image: then no line has a flag.
    """
    named = _lines(path)
    found = [images.find(name) for name in named]
    flags = _flags(named)
    if flags and not any(found):
        for name, flag in flags:
            yield Listed(name, images.find(name), flag == "-1")
    else:
        for name, files in zip(named, found, strict=True):
            yield Listed(name, files, False)


def _flags(named: Iterable[str]) -> list[tuple[str, str]]:
    """Name and flag of each line; nothing where not every line has a flag."""
    columns = [line.rsplit(None, 1) for line in named]
    if not all(len(found) == 2 and found[1] in _FLAGS for found in columns):
        return []
    return [(name, flag) for name, flag in columns]


class NamedFiles:
    """The files of a folder and its sub-folders that end in certain suffixes, found by name."""

    def __init__(self, listing: Listing, suffixes: tuple[str, ...]):
        self.folder = listing.folder
        self.files = tuple(file for file in listing.files if _suffix(file) in suffixes)
        self._listing, self._suffixes, self._exact = listing, suffixes, frozenset(self.files)
        # By their names without suffix; those in sub-folders also without their folders.
        self._by_path: dict[str, list[str]] = {}
        self._below: dict[str, list[str]] = {}
        for file in self.files:
            stem = _nfc(file.rpartition(".")[0])
            self._by_path.setdefault(stem, []).append(file)
            if "/" in stem:
                self._below.setdefault(stem.rpartition("/")[2], []).append(file)

    def find(self, written: str) -> tuple[str, ...]:
        """The file that a name means; none where it means none, several where it is not clear.

        A name as it stands goes before the same without spaces around it, and without quotes. It
        may be a path in the folder, with or without suffix, and `.../FOLDER/` before it. Without
        folders it may mean a file in a sub-folder. Of an absolute path, which is another machine's,
        the longest end counts that is there. NAME.jpg goes before other suffixes. All Unicode
        normal forms of a name are the same, unless there are files of several.
        """
        bare = written.strip()
        is_quoted = bare[:1] in ("'", '"') and bare[:1] == bare[-1:]
        for name in (written, bare, bare[1:-1] if is_quoted else ""):
            if name in self._exact:
                return (name,)
            for path in self._paths(name):
                found = _named(self._by_path, path) or (
                    "/" not in path and _named(self._below, path)
                )
                if found:
                    exact = [file for file in found if file.rpartition(".")[0] == name] or found
                    jpegs = [file for file in exact if _suffix(file) == ".jpg"]
                    return tuple(jpegs if len(jpegs) == 1 else exact)
        return ()

    def of_path(self, stem: str) -> list[str]:
        """The files of a path without suffix; of several normal forms, that of the very form."""
        found = self._by_path.get(_nfc(stem), [])
        return [file for file in found if file.rpartition(".")[0] == stem] or found

    def of_name(self, name: str) -> list[str]:
        """The files of a name without suffix, in whichever folder."""
        return self._by_path.get(_nfc(name), []) + self._below.get(_nfc(name), [])

    def _paths(self, name: str) -> Iterator[str]:
        """What a name may be called within the folder, the likeliest first."""
        path = _nfc(name.replace("\\", "/"))
        _, is_inside, rest = f"/{path}".rpartition(f"/{self.folder.name}/")
        parts = [part for part in (rest if is_inside else path).split("/") if part not in ("", ".")]
        yield "/".join(parts)
        if path.startswith("/") or path[1:3] == ":/":
            for start in range(1, len(parts)):
                yield "/".join(parts[start:])

    def nearby(self, name: str) -> str:
        """For messages: what is there in place of a file that is not."""
        return self._listing.nearby(name, suffixes=self._suffixes)


def _named(files: dict[str, list[str]], path: str) -> list[str]:
    """Those of a path without suffix, or with theirs."""
    others = files.get(path.rpartition(".")[0], ())
    return files.get(path) or [file for file in others if _nfc(file).endswith(path)]


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
