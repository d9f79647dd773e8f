"""Frames in and frames out, by OpenCV."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from harmonic_jax.data.decode import ImageError

_CODEC = "mp4v"
# A damaged video is worth a line of ours, not a thousand of the codec's. OpenCV reads it once.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoReader:
    """The frames of a video, uint8 RGB, one after the other.

    Attributes:
      length: how many there are, as the file says; some say nothing (0), or too much.
      per_second: frames a second, 25 where the file does not say.

    Raises:
      ImageError: OpenCV cannot read a frame of it, or its frames have more than `max_pixels`.
    """

    def __init__(self, path: Path, *, max_pixels: int) -> None:
        self._capture = cv2.VideoCapture(_file_name(path))
        if not self._capture.isOpened():
            raise ImageError("not_an_image", f"{path}: OpenCV reads no video from it")
        width, height, count, per_second = (
            self._capture.get(what)
            for what in (
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
                cv2.CAP_PROP_FRAME_COUNT,
                cv2.CAP_PROP_FPS,
            )
        )
        if height * width > max_pixels:
            raise ImageError(
                "too_large",
                f"{path}: frames of {height:.0f} x {width:.0f} pixels are more than max_pixels = "
                f"{max_pixels}",
            )
        self.length = max(int(count), 0)
        self.per_second = per_second if 0.1 <= per_second <= 1000 else 25.0
        is_there, self._first = self._capture.read()
        if not is_there:
            raise ImageError("corrupt", f"{path}: OpenCV reads no frame from it")

    def __iter__(self) -> Iterator[np.ndarray]:
        frame, is_there = self._first, True
        while is_there:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            is_there, frame = self._capture.read()


class VideoWriter:
    """An mp4 file, made with its first frame; it appears under its name when it is closed.

    Attributes:
      problem: why there is no such file, or not all of it, once it is closed; None: there is.
    """

    def __init__(self, path: Path, *, per_second: float) -> None:
        self.problem: str | None = None
        self._path, self._per_second = path, per_second
        self._partial = path.with_name(f".{path.stem[:40]}.partial.mp4")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, uint8 RGB; it is scaled to the first one's size, which is made even."""
        height, width = (side - side % 2 or 1 for side in frame.shape[:2])  # codecs need even ones
        frame = frame[:height, :width]
        if self._writer is None:
            self._size = (width, height)
            codec = cv2.VideoWriter.fourcc(*_CODEC)
            self._writer = cv2.VideoWriter(
                _file_name(self._partial), codec, self._per_second, self._size
            )
        if (width, height) != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        # OpenCV says nothing of a full disk; without its end an mp4 cannot be opened.
        check = cv2.VideoCapture(_file_name(self._partial))
        is_whole = check.isOpened()
        check.release()
        try:
            if is_whole and kind in (None, KeyboardInterrupt):
                self._partial.replace(self._path)
            self._partial.unlink(missing_ok=True)
            if not is_whole:
                free = shutil.disk_usage(self._path.parent).free / 2**20
                self.problem = f"{self._path}: OpenCV wrote no whole video, {free:.1f} MiB free"
        except OSError as problem:
            self.problem = f"{self._path}: {problem.strerror}"


def _file_name(path: Path) -> Any:
    """As OpenCV takes it: text that is not UTF-8 ends the process; bytes of any kind do not. Of a
    whole path nothing is read as the name of a protocol."""
    return os.fsencode(os.path.abspath(path))
