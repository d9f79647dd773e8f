"""Class names as people write them: in a file, one a line."""

from pathlib import Path

from harmonic_jax.coco_format.values import clean_name
from harmonic_jax.data.records import DataError
from harmonic_jax.files import read_lines


def read_class_names(path: Path, *, repeatable: str | None = None) -> tuple[str, ...]:
    """The names in a file, one a line; empty lines and outer spaces are no part of them.

    Args:
      path: the file.
      repeatable: a name that may be there more than once.

    Raises:
      DataError: there is none, one is there twice, or the file is no text.
      OSError: the file cannot be read.
    """
    try:
        lines = read_lines(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    numbers: dict[str, int] = {}
    names = []
    for number, line in enumerate(lines, start=1):
        name = clean_name(line)
        if name in numbers and name != repeatable:
            raise DataError(
                f"{path} must hold one class name a line, each once; line {number} repeats "
                f"{name!r} of line {numbers[name]}"
            )
        if name:
            numbers[name] = number
            names.append(name)
    if not names:
        raise DataError(f"{path} must hold one class name a line; it has none")
    return tuple(names)
