"""What a person sees while a command runs: lines, and how far a loop is.

Names of files and classes come from anywhere: they are printed as they are, never read as rich's
markup, and what would steer the terminal is printed as an escape.
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
OUTPUT = "standard output"  # as errors name it
# Not printable to Python, and printed: lines, the joiners that emoji and words of India and Iran
# are made with, and spaces that have a width.
_PRINTED = frozenset("\n\t\u200c\u200d\u00a0\u202f\u3000")
_WIDEST_COLUMN = 40
PLAIN_SECONDS = 30.0  # between lines where the output is no terminal


def printable(text: str) -> str:
    r"""A text whose control characters, but for new lines and tabs, are escapes.

    So are those that turn the direction of writing, those that show nothing, by which two names
    could differ unseen, halves of surrogate pairs, and code points that have no meaning.

    >>> print(printable("red\x1b[31m, cut\r, \udcff, car\u200b"))
    red\x1b[31m, cut\r, \udcff, car\u200b
    """
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter in _PRINTED
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def column_width(names: Iterable[str], *, heading: str = "") -> int:
    """Cells of a terminal for a column of names; of more than 40 a name goes beyond its column.

    >>> column_width(["cat", "齿轮"], heading="class")
    5
    """
    widths = (cell_len(printable(name)) for name in (heading, *names))
    return min(max(widths), max(_WIDEST_COLUMN, len(heading)))


def padded(text: str, width: int) -> str:
    """A text as it is printed, whole, and spaces to fill so many cells of a terminal.

    >>> padded("齿轮", 6) + "|", padded("gear", 6) + "|"
    ('齿轮  |', 'gear  |')
    """
    text = printable(text)
    return text + " " * (width - cell_len(text))


def counted(number: int, thing: str) -> str:
    """A number of things, of which several end in s.

    >>> counted(1, "image"), counted(0, "image")
    ('1 image', '0 images')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


class Terminal(Console):
    """A console that prints text as it is: no markup, no colours, no line broken or cut.

    A lossy one falls silent, with a line in the log, where nothing can be written any more: what it
    shows is not worth the work that is in progress. `is_lost` says so afterwards.
    """

    def __init__(self, *, lossy: bool = False, **options: Any) -> None:
        self._lossy = lossy
        self.is_lost = False
        super().__init__(markup=False, highlight=False, emoji=False, soft_wrap=True, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Like rich's; texts are made `printable`.

        Raises:
          OSError: nothing can be written there; BrokenPipeError where nobody reads any more. Not
            from a lossy one.
        """
        texts = (printable(item) if isinstance(item, str) else item for item in objects)
        try:
            super().print(*texts, **options)
        except OSError as error:
            if not self._lossy:
                raise OSError(error.errno, error.strerror, OUTPUT) from error
            self.quiet = self.is_lost = True
            discard(self.file)
            _LOG.warning("%s: %s; the work goes on without a display", OUTPUT, error.strerror)

    def on_broken_pipe(self) -> None:
        """Passes the error on; rich's own method ends the program here."""
        raise  # what rich has just caught


def discard(stream: IO[str]) -> None:
    """Sends what a stream holds, and what comes, nowhere: Python would complain at its end."""
    with contextlib.suppress(OSError):  # of a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flush_output() -> None:
    """Flushes standard output; OSError if what was printed cannot be written."""
    try:
        if sys.stdout is not None:  # of a process that was started without
            sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, OUTPUT) from error


def prepare_terminal() -> None:
    """Makes stdout and stderr take any text: what their encoding cannot say becomes an escape.

    Logs are printed by `log_lines`. What Pillow finds odd in files is not said: what matters of it
    is one of the data rules.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook replaced it
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    log_lines(logging.WARNING)


def log_lines(level: int, *, prefix: str = "") -> None:
    """Prints what is logged, by any library, as lines on stderr; nothing under `level`."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        # Of that very class: what some libraries leave there when they are imported.
        if type(handler) in (logging.StreamHandler, _LineHandler):
            root.removeHandler(handler)
    root.addHandler(_LineHandler(level, prefix))


class _LineHandler(logging.StreamHandler[Any]):
    """Writes to the stderr of the moment. An error that was logged is a line, not its stack."""

    def __init__(self, level: int, prefix: str) -> None:
        logging.Handler.__init__(self, level)
        self._prefix = prefix

    @property
    def stream(self) -> Any:
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        reason = f": {type(error).__name__}: {error}" if error is not None else ""
        return printable(f"{self._prefix}{record.getMessage()}{reason}")

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a line that cannot be written is lost."""


def track(
    iterable: Iterable[_T],
    total: int,
    description: str,
    *,
    console: Terminal | None = None,
    bar: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[_T]:
    """Yields from `iterable` and shows how far it is: a bar, or a line now and then in a file.

    Args:
      console: None: standard output; a quiet one shows nothing.
      bar: a display that is live, which takes the loop's bar while that lasts: a terminal shows
        one live display.

    >>> list(track(range(3), 3, "eval", console=Terminal(quiet=True)))
    [0, 1, 2]
    """
    console = console or Terminal(lossy=True)
    if not is_live(console):
        shown_at = clock()
        for done, item in enumerate(iterable, start=1):
            yield item
            if clock() - shown_at >= PLAIN_SECONDS and done < total:
                shown_at = clock()
                console.print(f"{description} {done}/{total}")
        console.print(f"{description} done")
        return
    with contextlib.nullcontext(bar) if bar else make_bar(console, TimeRemainingColumn()) as shown:
        task = shown.add_task(printable(description), total=total, details="")
        try:
            for item in iterable:
                yield item
                shown.advance(task)
        finally:
            shown.remove_task(task)


def is_live(console: Console) -> bool:
    """Whether the console can redraw a line."""
    return console.is_terminal and not console.is_dumb_terminal


def make_bar(
    console: Terminal, *columns: ProgressColumn, clock: Callable[[], float] | None = None
) -> Progress:
    """A bar of the house's looks, with columns behind it."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        *columns,
        console=console,
        refresh_per_second=4,  # The processor is for the training.
        speed_estimate_period=600.0,
        get_time=clock,
    )
