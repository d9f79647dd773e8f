"""A file of TensorBoard events that is written at once, by nobody else.

tensorboardX's own writer hands events to a thread; where that fails, for want of space say, it ends
with a traceback, and the training waits for it for ever. Here errors come where they belong.
"""

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.files import append, named_errors


class EventFile:
    """Every event is with the system when `scalar` or `image` returns.

    Args:
      folder: made if missing; the file gets a name that no other has, and that comes last.
      purge_step: events of this step and later ones, in earlier files, are to be forgotten.

    Raises:
      OSError: the file cannot be written; the error names it.
    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        from tensorboardX.proto import event_pb2  # imports torch where it is installed: 2 seconds

        self._proto = event_pb2
        host = socket.gethostname().replace(os.sep, "_")
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{host}.{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        with named_errors(self._path):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
            self._descriptor = os.open(self._path, flags, 0o666)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=purge_step, session_log=start)

    def scalar(self, name: str, value: float, step: int) -> None:
        from tensorboardX.summary import scalar

        self._write(step=step, summary=scalar(name, value))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Takes uint8 RGB [h, w, 3]."""
        from tensorboardX.summary import image as image_summary

        self._write(step=step, summary=image_summary(name, image, dataformats="HWC"))

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, **content: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), **content).SerializeToString()
        with named_errors(self._path):
            append(self._descriptor, _record(event))


def _record(data: bytes) -> bytes:
    """A record of a TFRecord file: length, its CRC, the data, their CRC."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + crcs[0] + data + crcs[1]
