"""Which file a name in an annotation or a list means, and what is near where it means none."""

import dataclasses
import heapq
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from harmonic_jax.json_file import shown

MAX_DEPTH = 20
"""Levels of sub-folders that are looked into."""
_SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
_DEPTH_OF_HINTS = 4
_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)
_ADDRESS = re.compile(r"[a-zA-Z][\w+.-]+://|data:")
_ABSOLUTE = re.compile(r"/|[a-zA-Z]:/")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's own, never data, whatever its suffix.

    Names that begin with a dot (a Mac's zip files hold a `._NAME` beside every file), and the
    indices of Windows and of Macs.

    Example:
      >>> is_hidden("._a.jpg"), is_hidden("Thumbs.db"), is_hidden("a.jpg")
      (True, True, False)
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


@dataclasses.dataclass(frozen=True)
class Listing:
    """What is in a folder, hidden names left out.

    Attributes:
      folder: the folder.
      files: its regular files, sorted; those of sub-folders as "sub/a.jpg".
      others: folders, links that lead nowhere, and whatever else is no regular file.
    """

    folder: Path
    files: tuple[str, ...]
    others: tuple[str, ...] = ()

    def folders(self) -> str:
        """For messages: the folders that are there, in words."""
        names = [repr(name) for name in self.others if (self.folder / name).is_dir()]
        return f"its folders are {', '.join(names[:8])}" if names else "it has no folders"

    def nearby(self, name: str, *, suffixes: tuple[str, ...] = (), limit: int = 3) -> str:
        """For messages: what is there in place of a file that is not.

        Args:
          name: as an annotation or a list has it; with folders and suffix, or without.
          suffixes: those that are read, in lower case; it is told where a name has another.
          limit: names beyond so many are counted only.

        Returns:
          The names that differ in their folder, suffix, case, outer spaces or Unicode normal form
          alone, as "; there is 'sub/a.png'"; empty where there are none.
        """
        wanted = _loose_forms(name)
        found = [file for file in self.files if wanted & _loose_forms(file)]
        told = [repr(file) + _unlike(file, name, suffixes) for file in found[:limit]]
        for other in self.others:
            if len(told) < limit and wanted & _loose_forms(other):
                is_folder = (self.folder / other).is_dir()
                kind = "a folder" if is_folder else "a link that leads nowhere, or no regular file"
                told.append(f"{other!r} ({kind})")
        if len(found) > limit:
            told.append(f"{len(found) - limit} more")
        return "; there is " + ", ".join(told) if told else ""


def list_folder(folder: Path, *, depth: int = MAX_DEPTH) -> Listing:
    """Lists a folder and the folders in it, each once, though links may lead in circles.

    Args:
      folder: need not exist.
      depth: how many levels of sub-folders to go down.

    Raises:
      OSError: a folder may not be read.
    """
    files: list[str] = []
    others: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [(False, "", depth)]
    while waiting:
        # Links last: of two names of one folder its own one counts.
        _, prefix, levels = heapq.heappop(waiting)
        here = folder / prefix
        if not _is_new_folder(here, seen):
            continue
        with os.scandir(here) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if _is_file(entry):
                    files.append(prefix + entry.name)
                else:
                    others.append(prefix + entry.name)
                    if levels:
                        below = (entry.is_symlink(), f"{prefix}{entry.name}/", levels - 1)
                        heapq.heappush(waiting, below)
    return Listing(folder, tuple(sorted(files)), tuple(sorted(others)))


def _is_new_folder(path: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        found = path.stat()
    except OSError:  # absent, or a link that leads nowhere or to itself
        return False
    identity = (found.st_dev, found.st_ino)
    if not stat.S_ISDIR(found.st_mode) or identity in seen:
        return False
    seen.add(identity)
    return True


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _loose_forms(name: str) -> set[str]:
    """A file's name without its folder, with and without suffix, as loosely as names are alike."""
    base = unicodedata.normalize("NFC", name).casefold().replace("\\", "/").rpartition("/")[2]
    return {base.strip(), base.rpartition(".")[0].strip() or base.strip()}


def _unlike(file: str, name: str, suffixes: tuple[str, ...]) -> str:
    """What a reader would not see, or not know."""
    same = unicodedata.normalize("NFC", file) == unicodedata.normalize("NFC", name)
    if same and file != name:
        return " (another Unicode normal form)"
    is_read = not suffixes or file.lower().endswith(suffixes)
    return "" if is_read else " (not a suffix that is read)"


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
        self.folders = tuple(folders)
        self._roots = {f"{path}/" for path in (root.absolute(), root.resolve())}
        self._listed: dict[str, frozenset[str]] = {}
        self._everything: Listing | None = None
        self._folder, self._num_found = folders[0], 0
        for folder in folders:
            number = sum(self._find(folder, name) is not None for name in names)
            if number > self._num_found:
                self._folder, self._num_found = folder, number
            if self._num_found == len(names):
                break

    def find(self, name: str) -> Path | None:
        """The file of a name, or None."""
        found = self._find(self._folder, name)
        return None if found is None else self.root / found

    def refusal(self, name: str) -> str:
        """Why a name can mean no file under the root; empty where it can."""
        slashed = name.replace("\\", "/")
        if "\0" in name or slashed.rpartition("/")[2].strip() in ("", ".", ".."):
            return "which names no file"
        if _ADDRESS.match(name):
            return f"an address; it must name a file under {self.root}"
        if any(self._place(folder, slashed) for folder in self.folders):
            return ""
        return f"which is not under {self.root}"

    def absence(self, name: str, refusal: str) -> str:
        """A name that means no file, and why, or where it was looked for and what is near. Slow."""
        if refusal:
            return f"file_name {shown(name)}, {refusal}{self.nearby(name)}"
        if self._num_found or len(self.folders) == 1:
            searched = f"not in {self.root / self._folder}"
        else:
            inner = ", ".join(folder or "." for folder in self.folders)
            searched = f"not under {self.root}, in any of {inner}"
        return f"{name_in_words(name)}: {searched}{self.nearby(name)}"

    def nearby(self, name: str) -> str:
        """What is there in place of an absent file; see `Listing.nearby`. Slow."""
        if self._everything is None:
            self._everything = list_folder(self.root, depth=_DEPTH_OF_HINTS)
        return self._everything.nearby(name)

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
        """The path of a name relative to the root; None where it is not under it."""
        inner = next((name.removeprefix(r) for r in self._roots if name.startswith(r)), None)
        if name.endswith("/") or (inner is None and _ABSOLUTE.match(name)):
            return None
        path = posixpath.normpath(posixpath.join(folder, name) if inner is None else inner)
        return None if path.split("/")[0] in (".", "..") else path

    def _files(self, folder: str) -> frozenset[str]:
        # Each folder is listed once: much cheaper than asking for 118k files.
        if folder not in self._listed:
            try:
                os.fsencode(folder)
            except UnicodeError:  # no folder of this system has such a name
                return frozenset()
            files = list_folder(self.root / folder, depth=0).files
            self._listed[folder] = frozenset(files)
        return self._listed[folder]


def name_in_words(name: str) -> str:
    """A file name for messages: as it is, or quoted where a reader would not see all of it."""
    is_plain = name.isprintable() and name == name.strip() and len(name) < 200
    return name if is_plain else shown(name)


class NamedFiles:
    """The files of a folder and its sub-folders that end in certain suffixes, found by name."""

    def __init__(self, listing: Listing, suffixes: tuple[str, ...]):
        self.folder = listing.folder
        self.files = tuple(file for file in listing.files if suffix_of(file) in suffixes)
        self._listing, self._suffixes, self._exact = listing, suffixes, frozenset(self.files)
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
        normal forms of a name are the same, unless there are files of several.
        """
        bare = written.strip()
        is_quoted = bare[:1] in ("'", '"') and bare[:1] == bare[-1:]
        for name in (written, bare, bare[1:-1] if is_quoted else ""):
            if name in self._exact:
                return (name,)
            for path in self._paths(name):
                found = _named(self._by_path, path)
                if not found and "/" not in path:
                    found = _named(self._below, path)
                if found:
                    exact = [file for file in found if without_suffix(file) == name] or found
                    jpegs = [file for file in exact if suffix_of(file) == ".jpg"]
                    return tuple(jpegs if len(jpegs) == 1 else exact)
        return ()

    def of_path(self, stem: str) -> list[str]:
        """The files of a path without suffix; of several normal forms, that of the very form."""
        found = self._by_path.get(_nfc(stem), [])
        return [file for file in found if without_suffix(file) == stem] or found

    def of_name(self, name: str) -> list[str]:
        """The files of a name without suffix, in whichever folder."""
        return self._by_path.get(_nfc(name), []) + self._below.get(_nfc(name), [])

    def nearby(self, name: str) -> str:
        """For messages: what is there in place of a file that is not."""
        return self._listing.nearby(name, suffixes=self._suffixes)

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
    """Those of a path without suffix, or with theirs."""
    others = files.get(without_suffix(path), ())
    return files.get(path) or [file for file in others if _nfc(file).endswith(path)]


def without_suffix(file: str) -> str:
    return file.rpartition(".")[0]


def without_folders(path: str) -> str:
    return path.rpartition("/")[2]


def suffix_of(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
