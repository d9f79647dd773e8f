"""Which files a folder holds, and which of them a name in an annotation or a list means."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from harmonic_jax.json_file import shown

MAX_DEPTH = 20
"""Levels of sub-folders that are looked into."""
_SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's own, never data, whatever its suffix.

    Names that begin with a dot (a Mac's zip files hold a `._NAME` beside every file), and the
    indices of Windows and of Macs.

    Example:
      >>> is_hidden("._a.jpg"), is_hidden("Thumbs.db"), is_hidden("a.jpg")
      (True, True, False)
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def list_files(folder: Path, *, depth: int = MAX_DEPTH) -> tuple[str, ...]:
    """The regular files of a folder and of the folders in it, hidden ones left out.

    Their names are sorted, those of sub-folders, `depth` levels down, as "sub/a.jpg". Links to
    files are followed, links to folders, which may lead in circles, are not; the folder itself may
    be a link, and need not exist. An OSError where a folder may not be read.
    """
    files: list[str] = []
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if os.path.isfile(entry) if entry.is_symlink() else entry.is_file():
                files.append(entry.name)
            elif depth and entry.is_dir(follow_symlinks=False):
                inner = list_files(folder / entry.name, depth=depth - 1)
                files += [f"{entry.name}/{name}" for name in inner]
    return tuple(sorted(files))


def nearby(files: Iterable[str], name: str) -> str:
    """For messages: the files whose names differ in folder, suffix, case or outer spaces alone.

    Example:
      >>> nearby(["sub/a.JPG", "b.jpg"], "a.png")
      "; there is 'sub/a.JPG'"
    """
    wanted = _loose_forms(name)
    found = [repr(file) for file in files if wanted & _loose_forms(file)]
    return "; there is " + ", ".join(found[:3]) + ", .." * (len(found) > 3) if found else ""


def _loose_forms(name: str) -> set[str]:
    """A file's name without its folder, with and without suffix."""
    base = without_folders(_nfc(name).casefold().replace("\\", "/"))
    return {base.strip(), without_suffix(base).strip() or base.strip()}


def name_in_words(name: str) -> str:
    """A file name for messages: as it is, or quoted where a reader would not see all of it."""
    is_plain = name.isprintable() and name == name.strip() and len(name) < 200
    return name if is_plain else shown(name)


class NamedFiles:
    """The files of a folder and its sub-folders, found by the names that people write.

    A name is a path from the folder. It counts as it stands; then without spaces or quotes around
    it; with / for \\; without the folder's own place before it. All Unicode normal forms of a name
    are the same. Only files of the folder are ever found.

    Where names may leave out their suffix, they may also leave out their folder, or have that of
    another machine: `.../FOLDER/` may stand before a path, of an absolute one the longest end that
    is there counts, and without folders it may mean a file in a sub-folder. NAME.jpg goes before
    other suffixes.

    Args:
      folder: need not exist.
      suffixes: of the files that are looked for, in lower case, which names may leave out; empty:
        all files, by their whole names.
    """

    def __init__(self, folder: Path, suffixes: tuple[str, ...] = ()):
        self.folder, self._everything, self._is_loose = folder, list_files(folder), bool(suffixes)
        self.files = tuple(f for f in self._everything if not suffixes or suffix_of(f) in suffixes)
        self._places = [f"{_nfc(str(place))}/" for place in (folder.absolute(), folder.resolve())]
        self._by_path: dict[str, list[str]] = {}
        self._below: dict[str, list[str]] = {}  # by their names without their folders
        for file in self.files:
            path = _nfc(file)
            for name in (path, without_suffix(path)) if suffixes else (path,):
                self._by_path.setdefault(name, []).append(file)
                if suffixes and "/" in name:
                    self._below.setdefault(without_folders(name), []).append(file)

    def find(self, written: str) -> tuple[str, ...]:
        """The file that a name means; none where it means none, several where it is not clear."""
        bare = written.strip()
        is_quoted = bare[:1] in ("'", '"') and bare[:1] == bare[-1:]
        for name in (written, bare, bare[1:-1] if is_quoted else ""):
            for path in self._paths(_nfc(name)):
                found = self._by_path.get(path) or self._below.get(path, [])
                if written in found:
                    return (written,)
                if found:
                    jpegs = [file for file in found if suffix_of(file) == ".jpg"]
                    return tuple(jpegs if len(jpegs) == 1 else found)
        return ()

    def of_path(self, stem: str) -> list[str]:
        """The files of a path without suffix."""
        return self._by_path.get(_nfc(stem), [])

    def of_name(self, name: str) -> list[str]:
        """The files of a name without suffix, in whichever folder."""
        return self.of_path(name) + self._below.get(_nfc(name), [])

    def absence(self, name: str) -> str:
        """Of a name that means no file: where it was looked for, and what is near. Slow."""
        return f"{name_in_words(name)}: not in {self.folder}{nearby(self._everything, name)}"

    def problem(self, name: str, found: Sequence[object]) -> Iterator[str]:
        """Why a name gives no single file, but `found`; looked for only where it is shown."""
        meant = ", ".join(repr(str(file)) for file in found[:3])
        several = f"{name}: may mean {len(found)} files of {self.folder}: {meant}"
        yield several if found else self.absence(name)

    def _paths(self, name: str) -> Iterator[str]:
        """What a name may be called within the folder, the likeliest first."""
        yield name
        path = name.replace("\\", "/")
        for place in self._places:
            path = path.removeprefix(place)
        if self._is_loose:
            path = f"/{path}".rpartition(f"/{self.folder.name}/")[2].removeprefix("/")
        path = posixpath.normpath(path)
        yield path
        if self._is_loose and re.match("/|[a-zA-Z]:/", name.replace("\\", "/")):
            parts = path.split("/")
            yield from ("/".join(parts[start:]) for start in range(1, len(parts)))


def without_suffix(file: str) -> str:
    return file.rpartition(".")[0]


def without_folders(path: str) -> str:
    return path.rpartition("/")[2]


def suffix_of(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
