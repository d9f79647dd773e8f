"""Which files a folder holds, and which of them a name in an annotation or a list means."""

import heapq
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from harmonic_jax.json_file import shown

MAX_DEPTH = 20
"""Levels of sub-folders that are looked into."""
_SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
_DEPTH_OF_HINTS = 4
_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)
_ELSEWHERE = re.compile(r"/|[a-zA-Z]:/|[a-zA-Z][\w+.-]+://|data:")  # absolute, or an address


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

    Each folder is listed once, though links may lead in circles.

    Args:
      folder: need not exist.
      depth: how many levels of sub-folders to go down.

    Returns:
      Their names, sorted; those of sub-folders as "sub/a.jpg".

    Raises:
      OSError: a folder may not be read.
    """
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [(False, "", depth)]
    while waiting:
        # Links last: of two names of one folder its own one counts.
        _, prefix, levels = heapq.heappop(waiting)
        here = folder / prefix
        try:
            found = here.stat()
        except (OSError, ValueError):  # absent, a link to nowhere or itself, or no name of a file
            continue
        identity = (found.st_dev, found.st_ino)
        if not stat.S_ISDIR(found.st_mode) or identity in seen:
            continue
        seen.add(identity)
        with os.scandir(here) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if _is_file(entry):
                    files.append(prefix + entry.name)
                elif levels:
                    below = (entry.is_symlink(), f"{prefix}{entry.name}/", levels - 1)
                    heapq.heappush(waiting, below)
    return tuple(sorted(files))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


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


class ImageFinder:
    """Finds the files that names mean, relative to one of a few folders under a root.

    A name is tried as it is; then with / for \\\\, in both Unicode normal forms, and without spaces
    around it. `..` and an absolute path count where they stay under the root. The folder is the
    same for all names: that in which most are found, of equals the first.

    Args:
      root: what no name may lead out of.
      folders: relative to the root, "" for itself; those that do not exist have no files.
      names: all file names, to choose the folder by.
    """

    def __init__(self, root: Path, folders: Sequence[str], names: Sequence[str]) -> None:
        self.root = root
        self._folders = tuple(folders)
        self._roots = {f"{path}/" for path in (root.absolute(), root.resolve())}
        self._listed: dict[str, frozenset[str]] = {}
        self._everything: tuple[str, ...] | None = None
        numbers = []
        for folder in folders:
            numbers.append(sum(self._find(folder, name) is not None for name in names))
            if numbers[-1] == len(names):
                break
        if max(numbers):
            self._folders = (folders[numbers.index(max(numbers))],)

    def find(self, name: str) -> Path | None:
        """The file of a name, or None."""
        found = self._find(self._folders[0], name)
        return None if found is None else self.root / found

    def is_under_root(self, name: str) -> bool:
        """Whether a name can mean a file under the root, be it there or not."""
        return any(self._place(folder, name.replace("\\", "/")) for folder in self._folders)

    def absence(self, name: str) -> str:
        """Of a name that means no file: where it was looked for, and what is near. Slow."""
        if self._everything is None:
            self._everything = list_files(self.root, depth=_DEPTH_OF_HINTS)
        near = nearby(self._everything, name)
        if not self.is_under_root(name):
            return f"file_name {shown(name)}, which is not under {self.root}{near}"
        if len(self._folders) == 1:
            return f"{name_in_words(name)}: not in {self.root / self._folders[0]}{near}"
        inner = ", ".join(folder or "." for folder in self._folders)
        return f"{name_in_words(name)}: not under {self.root}, in any of {inner}{near}"

    def _find(self, folder: str, name: str) -> str | None:
        if _PLAIN.fullmatch(name):  # most are: the rest of this is slow for 118k
            return posixpath.join(folder, name) if name in self._files(folder) else None
        slashed = name.replace("\\", "/")
        normal = (unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))
        for form in dict.fromkeys((name, slashed, *normal, slashed.strip())):
            place = self._place(folder, form)
            parent, _, file = (place or "").rpartition("/")
            if place and file in self._files(parent):
                return place
        return None

    def _place(self, folder: str, name: str) -> str | None:
        """The path of a name relative to the root; None where it names no file under it."""
        inner = next((name.removeprefix(r) for r in self._roots if name.startswith(r)), None)
        names_no_file = without_folders(name).strip() in ("", ".", "..")
        if names_no_file or (inner is None and _ELSEWHERE.match(name)):
            return None
        path = posixpath.join(folder, name) if inner is None else inner.lstrip("/")
        path = posixpath.normpath(path)
        return None if path.startswith("../") else path

    def _files(self, folder: str) -> frozenset[str]:
        # Each folder is listed once: much cheaper than asking for 118k files.
        if folder not in self._listed:
            self._listed[folder] = frozenset(list_files(self.root / folder, depth=0))
        return self._listed[folder]


def name_in_words(name: str) -> str:
    """A file name for messages: as it is, or quoted where a reader would not see all of it."""
    is_plain = name.isprintable() and name == name.strip() and len(name) < 200
    return name if is_plain else shown(name)


class NamedFiles:
    """The files of a folder and its sub-folders that end in certain suffixes, found by name."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...]):
        self.folder, self._everything = folder, list_files(folder)
        self.files = tuple(file for file in self._everything if suffix_of(file) in suffixes)
        # By their names without suffix; those in sub-folders also without their folders.
        self._by_path: dict[str, list[str]] = {}
        self._below: dict[str, list[str]] = {}
        for file in self.files:
            stem = _nfc(without_suffix(file))
            self._by_path.setdefault(stem, []).append(file)
            if "/" in stem:
                self._below.setdefault(without_folders(stem), []).append(file)

    def find(self, written: str) -> tuple[str, ...]:
        """The file that a name means; none where it means none, several where it is not clear.

        A name as it stands goes before the same without spaces around it, and without quotes. It
        may be a path in the folder, with or without suffix, and `.../FOLDER/` before it. Without
        folders it may mean a file in a sub-folder. Of an absolute path, which is another machine's,
        the longest end counts that is there. NAME.jpg goes before other suffixes. All Unicode
        normal forms of a name are the same.
        """
        bare = written.strip()
        is_quoted = bare[:1] in ("'", '"') and bare[:1] == bare[-1:]
        for name in (written, bare, bare[1:-1] if is_quoted else ""):
            for path in self._paths(name):
                found = _named(self._by_path, path)
                if not found and "/" not in path:
                    found = _named(self._below, path)
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
        """Of a name that means no file: where it was looked for, and what is near."""
        return f"not in {self.folder}{nearby(self._everything, name)}"

    def _paths(self, name: str) -> Iterator[str]:
        """What a name may be called within the folder, the likeliest first."""
        path = _nfc(name.replace("\\", "/"))
        _, is_inside, rest = f"/{path}".rpartition(f"/{self.folder.name}/")
        parts = [part for part in (rest if is_inside else path).split("/") if part not in ("", ".")]
        yield "/".join(parts)
        if path.startswith("/") or path[1:3] == ":/":
            for start in range(1, len(parts)):
                yield "/".join(parts[start:])


def _named(files: dict[str, list[str]], path: str) -> list[str]:
    """Those of a path with their suffix, else of one without."""
    others = files.get(without_suffix(path), ())
    return [file for file in others if _nfc(file).endswith(path)] or files.get(path, [])


def without_suffix(file: str) -> str:
    return file.rpartition(".")[0]


def without_folders(path: str) -> str:
    return path.rpartition("/")[2]


def suffix_of(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
