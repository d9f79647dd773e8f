"""What goes wrong with checkpoints, in one line, whichever library says it."""

import errno
import os
import re
from pathlib import Path

from harmonic_jax.files import explained

# As TensorStore says it.
_FULL = {
    errno.ENOSPC: re.compile("ENOSPC|No space left on device"),
    errno.EDQUOT: re.compile("EDQUOT|Disk quota exceeded"),
}


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read, or used for the state at hand."""


def one_line(error: Exception, folder: Path | None = None) -> str:
    """The first line of an exception, with its class where the text alone would be a riddle."""
    for number, words in _FULL.items():
        if words.search(str(error)):
            error = OSError(number, os.strerror(number))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if folder is None else explained(error, folder)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
