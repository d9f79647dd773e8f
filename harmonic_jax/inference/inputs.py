"""What is named on a command line -> image and video files, and names for what comes of them."""

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from harmonic_jax.config import ConfigError
from harmonic_jax.data.decode import SUFFIXES
from harmonic_jax.data.file_names import is_hidden

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ogv")
)
_MOST_BYTES = 240  # of a file's name: systems take 255, and "_2" may follow


def find_inputs(patterns: Iterable[str]) -> tuple[list[Path], Counter[str]]:
    """The files of paths, folders and globs, in their order, none twice.

    Of a folder all images and videos directly in it count, by their names' endings, sorted; hidden
    ones do not. A file named itself counts whatever its ending. `**` in a glob goes down into
    folders.

    Returns:
      The files, and how many of each kind folders and globs hold besides: of a suffix, "hidden",
      "folders", ..

    Raises:
      ConfigError: something named is not there, or holds no image.
    """
    found: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    for pattern in patterns:
        paths, besides = _files_of(pattern)
        left_out += besides
        for path in paths:
            where = os.path.realpath(path)
            left_out["the same file again"] += where in found
            found.setdefault(where, path)
    return list(found.values()), +left_out


def listed(left_out: Counter[str]) -> str:
    """What is left out, as ".txt 4, hidden 1"; the kinds of which there are most."""
    more = f", {len(left_out) - 8} more kinds" if len(left_out) > 8 else ""
    return ", ".join(f"{kind} {n}" for kind, n in left_out.most_common(8)) + more


def _files_of(pattern: str) -> tuple[list[Path], Counter[str]]:
    path = Path(os.path.expanduser(pattern))
    if path.is_file():
        return [path], Counter()
    if path.is_dir():
        candidates = list(path.iterdir())
    else:
        # The folders that there are mean themselves, brackets and all; those that a glob went
        # through are no files left out.
        folder = next(parent for parent in path.parents if parent.is_dir())
        escaped = os.path.join(glob.escape(str(folder)), path.relative_to(folder))
        matches = map(Path, glob.glob(escaped, recursive=True))
        candidates = [file for file in matches if not file.is_dir()]
    kinds = {file: _kind_left_out(file) for file in sorted(candidates)}
    left_out = Counter(kind for kind in kinds.values() if kind)
    paths = [file for file, kind in kinds.items() if kind is None]
    if not paths:
        holds = f"; left out: {listed(left_out)}" if left_out else ""
        raise ConfigError(
            f"{pattern}: there is no such file, nor an image ({', '.join(SUFFIXES)}) or a video in "
            f"it{holds}"
        )
    return paths, left_out


def _kind_left_out(path: Path) -> str | None:
    """Why a file of a folder is no input; None where it is one."""
    if is_hidden(path.name):
        return "hidden"
    try:
        if path.is_dir():
            return "folders"
        if not path.is_file():
            return "no regular file"
    except OSError:
        return None  # reading it will say why
    if path.suffix.lower() in VIDEO_SUFFIXES.union(SUFFIXES):
        return None
    return path.suffix.lower() or "without a suffix"


def is_video(path: Path) -> bool:
    """Whether a file's name says that it is a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def unique_names(paths: Sequence[Path], suffix: str, taken: Collection[str] = ()) -> list[str]:
    """A file name for each path, no two alike, not even to systems that ignore case or accents'
    form. Long names are cut.

    >>> unique_names([Path("a/x.jpg"), Path("b/X.png"), Path("x_2.jpg")], ".jpg")
    ['x.jpg', 'X_2.jpg', 'x_2_2.jpg']
    >>> unique_names([Path("a/x.png")], ".jpg", ["x.jpg"])
    ['x_2.jpg']
    """
    used = {_folded(name) for name in taken}
    numbers: Counter[str] = Counter()
    names = []
    for path in paths:
        stem = path.stem
        while len(os.fsencode(stem)) > _MOST_BYTES - len(suffix):
            stem = stem[:-1]
        name, folded = stem + suffix, _folded(stem)
        while _folded(name) in used:
            numbers[folded] += 1
            name = f"{stem}_{numbers[folded] + 1}{suffix}"
        used.add(_folded(name))
        names.append(name)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
