"""What is named on a command line -> image and video files, and names for what comes of them."""

import dataclasses
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


@dataclasses.dataclass
class Inputs:
    """Files to read.

    Attributes:
      paths: of images and videos.
      left_out: what folders and globs hold besides, by kind: a suffix, "hidden", "folders", ..
    """

    paths: list[Path] = dataclasses.field(default_factory=list)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)

    def told(self) -> str:
        """What is left out, as ".txt 4, hidden 1"; the kinds of which there are most."""
        most = self.left_out.most_common(8)
        more = len(self.left_out) - len(most)
        return ", ".join(f"{kind} {n}" for kind, n in most) + (f", {more} more kinds" * (more > 0))


def find_inputs(patterns: Iterable[str]) -> Inputs:
    """The files of paths, folders and globs, in their order, none twice.

    Of a folder all images and videos directly in it count, by their names' endings, sorted; hidden
    ones do not. A file named itself counts whatever its ending. `**` in a glob goes down into
    folders. What is left out is counted.

    Raises:
      ConfigError: something named is not there, or holds no image.
    """
    found, known = Inputs(), set()
    for pattern in patterns:
        part = _files_of(pattern)
        found.left_out.update(part.left_out)
        for path in part.paths:
            where = os.path.realpath(path)
            if where in known:
                found.left_out["the same file again"] += 1
            else:
                found.paths.append(path)
            known.add(where)
    return found


def _files_of(pattern: str) -> Inputs:
    path = Path(os.path.expanduser(pattern))
    if path.is_file():
        return Inputs([path])
    if path.is_dir():
        candidates = list(path.iterdir())
    else:
        # The folders that there are mean themselves, brackets and all; those that a glob went
        # through are no files left out.
        folder = next(parent for parent in path.parents if parent.is_dir())
        escaped = os.path.join(glob.escape(str(folder)), path.relative_to(folder))
        matches = map(Path, glob.glob(escaped, recursive=True))
        candidates = [file for file in matches if not file.is_dir()]
    part = Inputs()
    for file in sorted(candidates):
        kind = _kind_left_out(file)
        if kind:
            part.left_out[kind] += 1
        else:
            part.paths.append(file)
    if part.paths:
        return part
    suffixes, holds = ", ".join(SUFFIXES), f"; it holds {part.told()}" if part.left_out else ""
    if path.is_dir():
        deeper = f" ('{pattern.rstrip('/')}/**' goes down)" if part.left_out["folders"] else ""
        raise ConfigError(f"the folder {pattern} holds no image ({suffixes}){holds}{deeper}")
    if os.path.lexists(path):
        raise ConfigError(f"{pattern} is no regular file, or a link that leads nowhere")
    if glob.has_magic(pattern):
        raise ConfigError(f"nothing matches {pattern}, or no image ({suffixes}){holds}")
    raise ConfigError(f"there is no file or folder {pattern}")


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

    Args:
      paths: whose names are taken.
      suffix: in place of theirs.
      taken: names that are in use already.

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
