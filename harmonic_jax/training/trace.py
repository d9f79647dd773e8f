"""A trace of a few steps by JAX's profiler, for TensorBoard."""

from collections.abc import Callable
from pathlib import Path

import jax


class StepTrace:
    """Traces the steps `first` to `last`; what fails is said, and the training goes on.

    Args:
      folder: where the trace goes.
      steps: the first and the last step; None traces nothing.
      say: takes a line for a person.
    """

    def __init__(
        self, folder: Path, steps: tuple[int, int] | None, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._first, self._last = steps or (-1, -1)
        self._say = say
        self._is_on = False

    def before(self, step: int) -> None:
        """A step is about to begin."""
        if step == self._first:
            self._is_on = self._try(lambda: jax.profiler.start_trace(str(self._folder)))

    def after(self, step: int, wait: Callable[[], None]) -> None:
        """A step was dispatched; `wait` returns when the device is done with it."""
        if step == self._last and self._is_on:
            wait()
            self._is_on = False
            self._try(jax.profiler.stop_trace)

    def _try(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:  # whatever the profiler raises: of XLA, of the file system
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f"{self._folder}: the steps are not traced: {reason}")
            return False
        return True
