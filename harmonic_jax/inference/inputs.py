"""What is named on a command line -> image and video files, and names for what comes of them."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from harmonic_jax.config import ConfigError
from harmonic_jax.data.decode import SUFFIXES

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ogv")
)


def find_inputs(patterns: Iterable[str]) -> list[Path]:
    """The files of paths, folders and globs, in their order, none twice.

    Of a folder all images and videos directly in it count, by their names' endings, sorted. A
    file named itself counts whatever its ending. `**` in a glob goes down into folders.

    Raises:
      ConfigError: something named is not there, or holds no image.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        for path in _files_of(pattern):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _files_of(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _is_media(file))
        if not files:
            raise ConfigError(f"the folder {pattern} holds no image ({_suffixes()})")
        return files
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
    files = [file for file in matches if _is_media(file)]
    if files:
        return files
    if glob.has_magic(pattern):
        raise ConfigError(f"nothing matches {pattern}, or no image ({_suffixes()})")
    raise ConfigError(f"there is no file or folder {pattern}")


def is_video(path: Path) -> bool:
    """Whether a file's name says that it is a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES.union(SUFFIXES) and path.is_file()


def _suffixes() -> str:
    return ", ".join(SUFFIXES)


def unique_names(paths: Sequence[Path], suffix: str) -> list[str]:
    """A file name for each path, no two alike, not even to systems that ignore case.

    >>> unique_names([Path("a/x.jpg"), Path("b/X.png"), Path("x_2.jpg")], ".jpg")
    ['x.jpg', 'X_2.jpg', 'x_2_2.jpg']
    """
    taken: set[str] = set()
    names = []
    for path in paths:
        stem, number = path.stem, 2
        while stem.casefold() in taken:
            stem, number = f"{path.stem}_{number}", number + 1
        taken.add(stem.casefold())
        names.append(stem + suffix)
    return names
