"""How far a loop is: a bar on a terminal, a plain line now and then in a log file."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

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


def track(
    iterable: Iterable[_T],
    total: int,
    description: str,
    *,
    enabled: bool = True,
    plain_interval: float = 30.0,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[_T]:
    """Yields from `iterable` and shows how far it is.

    Not inside a TrainProgress, which has its own `track`: a terminal shows one live display.

    >>> list(track(range(3), 3, "eval", enabled=False))
    [0, 1, 2]
    """
    if not enabled:
        yield from iterable
        return
    console = console or Console()
    if not is_live(console):
        yield from track_plain(iterable, total, description, console, plain_interval, clock)
        return
    with make_bar(console, TimeRemainingColumn()) as bar:
        yield from track_bar(iterable, total, description, bar)


def is_live(console: Console) -> bool:
    """Whether the console can redraw a line."""
    return console.is_terminal and not console.is_dumb_terminal


def make_bar(console: Console, *columns: ProgressColumn) -> Progress:
    """A bar of the house's looks, with columns behind it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        *columns,
        console=console,
        refresh_per_second=4,  # The processor is for the training.
    )


def track_bar(iterable: Iterable[_T], total: int, description: str, bar: Progress) -> Iterator[_T]:
    """Yields from `iterable`; its bar, within a display that runs, goes when that ends."""
    task = bar.add_task(description, total=total, details="")
    try:
        for item in iterable:
            yield item
            bar.advance(task)
    finally:
        bar.remove_task(task)


def track_plain(
    iterable: Iterable[_T],
    total: int,
    description: str,
    console: Console,
    interval: float,
    clock: Callable[[], float],
) -> Iterator[_T]:
    """Yields from `iterable` and prints a line every `interval` seconds, and one at the end."""
    shown_at = clock()
    for done, item in enumerate(iterable, start=1):
        yield item
        if clock() - shown_at >= interval and done < total:
            shown_at = clock()
            console.print(f"{description} {done}/{total}", markup=False, highlight=False)
    console.print(f"{description} done", markup=False, highlight=False)
