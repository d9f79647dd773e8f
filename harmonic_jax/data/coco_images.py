"""Which file a COCO `file_name` means: it stays under a root, whatever the name says."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from harmonic_jax.data.folders import Listing, files_in, list_folder
from harmonic_jax.json_file import shown

_DEPTH_OF_HINTS = 4
_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)
_ADDRESS = re.compile(r"[a-zA-Z][\w+.-]+://|data:")
_ABSOLUTE = re.compile(r"/|[a-zA-Z]:/")


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
        self._folder, self._num_found = self._choose(names)

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

    def searched(self) -> str:
        """Where an absent file was looked for, in words."""
        if self._num_found or len(self.folders) == 1:
            return f"not in {self.root / self._folder}"
        inner = ", ".join(folder or "." for folder in self.folders)
        return f"not under {self.root}, in any of {inner}"

    def nearby(self, name: str) -> str:
        """What is there in place of an absent file; see `Listing.nearby`. Slow."""
        if self._everything is None:
            self._everything = list_folder(self.root, depth=_DEPTH_OF_HINTS)
        return self._everything.nearby(name)

    def _choose(self, names: Sequence[str]) -> tuple[str, int]:
        best, most = self.folders[0], 0
        for folder in self.folders:
            number = sum(self._find(folder, name) is not None for name in names)
            if number > most:
                best, most = folder, number
            if most == len(names):
                break
        return best, most

    def _find(self, folder: str, name: str) -> str | None:
        if _PLAIN.fullmatch(name):  # most are: the rest of this is slow for 118k
            return posixpath.join(folder, name) if name in self._files(folder) else None
        for form in _forms(name):
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
            self._listed[folder] = files_in(self.root / folder)
        return self._listed[folder]


def name_in_words(name: str) -> str:
    """A file name for messages: as it is, or quoted where a reader would not see all of it."""
    is_plain = name.isprintable() and name == name.strip() and len(name) < 200
    return name if is_plain else shown(name)


def _forms(name: str) -> Iterator[str]:
    seen = set()
    slashed = name.replace("\\", "/")
    normal = [unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed)]
    for form in (name, slashed, *normal, slashed.strip()):
        if form not in seen:
            seen.add(form)
            yield form
