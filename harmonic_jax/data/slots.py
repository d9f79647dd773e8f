"""The slots of the batches that this process loads, and the memory of their images."""

import threading
from collections.abc import Callable

import numpy as np


class Slots:
    """All (step, slot) of this process, in order; random access, as Grain wants it."""

    def __init__(self, start: int, stop: int, rows: slice):
        self._start, self._rows = start, rows
        self._num_rows = rows.stop - rows.start
        self._length = max(0, stop - start) * self._num_rows

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> tuple[int, int]:
        step, row = divmod(position, self._num_rows)
        return self._start + step, self._rows.start + row


class Canvases:
    """The images of the batches that are being loaded: each is resized straight to its place.

    Args:
      rows: of the global batch, those of this process.
      bucket_of: (height, width) of a step's images.
      stop: the step behind the last.
    """

    def __init__(self, rows: slice, bucket_of: Callable[[int], tuple[int, int]], stop: int):
        self._rows, self._bucket_of, self._stop = rows, bucket_of, stop
        self._lock = threading.Lock()  # the samples of a step are loaded by several threads
        self._of_step: dict[int, np.ndarray] = {}

    def row(self, step: int, slot: int) -> np.ndarray:
        """The image of a slot of the global batch, to write to."""
        with self._lock:
            if step not in self._of_step:
                self._make(step)
            return self._of_step[step][slot - self._rows.start]

    def pop(self, step: int) -> np.ndarray:
        """All images of a step, whose samples have been loaded; they are forgotten here."""
        with self._lock:
            canvas = self._of_step.pop(step)
            following = max(self._of_step, default=step) + 1
            if following < self._stop:
                # Here, not in the thread that first needs it: one thread that makes them all is
                # given the memory of old ones, which the system need not clear.
                self._make(following)
            return canvas

    def _make(self, step: int) -> None:
        shape = (self._rows.stop - self._rows.start, *self._bucket_of(step), 3)
        self._of_step[step] = np.empty(shape, np.uint8)
