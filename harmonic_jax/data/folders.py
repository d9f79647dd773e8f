"""What the two folder layouts share: where images lie, their header, and the source itself."""

import dataclasses
import heapq
import os
import stat
import unicodedata
from pathlib import Path

from harmonic_jax.data.image_file import ImageError, open_image, read_image_file
from harmonic_jax.data.records import DetectionSource, RecordTable
from harmonic_jax.data.report import DataReport

MAX_DEPTH = 20
"""Levels of sub-folders that are looked into."""
_SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """A data set whose images are files; a `DetectionSource`."""

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: RecordTable
    paths: tuple[str, ...]
    """The image file of each record; strings, for 118k of them."""
    report: DataReport

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of records[index]; raises OSError where it cannot be read."""
        return read_image_file(self.paths[index])

    def fingerprint(self) -> str:
        """A hash of names, sizes and objects: changes where the data or their order change."""
        return self.records.fingerprint(self.class_names)


def shared_images(one: DetectionSource, other: DetectionSource) -> list[str]:
    """File names of the images of `other` that are files of `one` too; of folders only."""
    if not isinstance(one, FolderSource) or not isinstance(other, FolderSource):
        return []
    known = set(one.paths)
    pairs = zip(other.paths, other.records.file_names, strict=True)
    return [name for path, name in pairs if path in known]


def folder_name(folder: Path) -> str:
    """The last part of a folder's path, however it is written: "." has a name too."""
    return os.path.basename(os.path.abspath(folder))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's own, never data, whatever its suffix.

    Names that begin with a dot (a Mac's zip files hold a `._NAME` beside every file), and the
    indices of Windows and of Macs.

    Example:
      >>> is_hidden("._a.jpg"), is_hidden("Thumbs.db"), is_hidden("a.jpg")
      (True, True, False)
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def files_in(folder: Path) -> frozenset[str]:
    """Names of the regular files directly in a folder, without the hidden ones.

    Empty where there is no such folder.
    """
    return frozenset(list_folder(folder, depth=0).files)


def list_folder(folder: Path, *, depth: int = MAX_DEPTH) -> "Listing":
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
        wanted = _forms(name)
        found = [file for file in self.files if wanted & _forms(file)]
        told = [repr(file) + _unlike(file, name, suffixes) for file in found[:limit]]
        for other in self.others:
            if len(told) < limit and wanted & _forms(other):
                is_folder = (self.folder / other).is_dir()
                kind = "a folder" if is_folder else "a link that leads nowhere, or no regular file"
                told.append(f"{other!r} ({kind})")
        if len(found) > limit:
            told.append(f"{len(found) - limit} more")
        return "; there is " + ", ".join(told) if told else ""


def _forms(name: str) -> set[str]:
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


def header_size(image: bytes | Path) -> tuple[int, int] | None:
    """Height and width as the file stores them, read from its header; None where it has none.

    Pixels are not decoded, and an orientation (EXIF's, or TIFF's tag) is not applied.
    """
    if isinstance(image, bytes):
        return _size_in(image)
    try:  # most headers are short; some stand behind a profile, or at the end of a TIFF
        return _size_in(read_image_file(image, start=2**16)) or _size_in(read_image_file(image))
    except OSError:
        return None


def _size_in(data: bytes) -> tuple[int, int] | None:
    try:
        with open_image(data).header as header:
            return header.size[1], header.size[0]
    except ImageError:
        return None
