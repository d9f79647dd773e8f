"""The right to write to a folder: one process has it, until it gives it up or dies."""

import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import IO

_LOG = logging.getLogger(__name__)
FILE_NAME = ".lock"


def take_lock(folder: Path) -> IO[bytes]:
    """Takes the right to write to a folder; closing what is returned gives it up.

    That is what POSIX record locks do; those of flock would live on in forked data workers. On a
    file system without locks it goes on without, and says so.

    Raises:
      OSError: another process has it, or the lock is a link: what that points to is not touched.
    """
    path = folder / FILE_NAME
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                error.errno, f"its {FILE_NAME} is a link; remove it", str(folder)
            ) from error
        raise
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise OSError(error.errno, "another process is writing there", str(folder)) from error
    except OSError as error:
        _LOG.warning("%s cannot be locked: %s", path, error.strerror)
    return file
