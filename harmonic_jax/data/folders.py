"""What the two folder layouts share: where images lie, their header, and the source itself."""

import dataclasses
import os
import warnings
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import PIL.Image

from harmonic_jax.data.decode import FORMATS
from harmonic_jax.data.records import RecordTable
from harmonic_jax.data.report import DataReport


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
        return Path(self.paths[index]).read_bytes()

    def fingerprint(self) -> str:
        """A hash of names, sizes and objects: changes where the data or their order change."""
        return self.records.fingerprint(self.class_names)


def files_in(folder: Path) -> frozenset[str]:
    """Names of the regular files directly in a folder; empty where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def is_inside(name: str) -> bool:
    """Whether a relative file name stays in its folder: an annotation may not point elsewhere.

    Example:
      >>> is_inside("train/a.jpg"), is_inside("../a.jpg"), is_inside("/a.jpg")
      (True, False, False)
    """
    path = PurePosixPath(name.replace("\\", "/"))
    stays = not path.is_absolute() and ".." not in path.parts
    return stays and bool(path.name) and "\0" not in name


def header_size(image: bytes | Path) -> tuple[int, int] | None:
    """Height and width as the file stores them, read from its header; None where it has none.

    Pixels are not decoded, and EXIF rotation is not applied.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a huge image is refused later, by data.max_pixels
            stream: BinaryIO = BytesIO(image) if isinstance(image, bytes) else image.open("rb")
            with stream, PIL.Image.open(stream, formats=FORMATS) as header:
                width, height = header.size
    # Pillow's parsers also raise SyntaxError, ValueError and struct.error on damaged headers.
    except Exception:
        return None
    return (height, width) if height > 0 and width > 0 else None
