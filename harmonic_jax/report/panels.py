"""Charts as data: what is drawn, not how. `svg` and `png` draw the same panels."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Look = Literal["a", "b", "c", "muted"]
"""Three series, each with a colour, a line style, a marker and a fill of its own, and a guide."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """A linear axis; `low` may exceed `high`. Ticks are places and their texts."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_names: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A polyline, broken at NaN. Without a name it is not in the legend."""

    x: np.ndarray
    y: np.ndarray
    look: Look
    name: str = ""
    has_markers: bool = False


@dataclasses.dataclass(frozen=True)
class Rectangles:
    """Filled rectangles [x1, x2] x [y1, y2]."""

    x1: np.ndarray
    x2: np.ndarray
    y1: np.ndarray
    y2: np.ndarray
    look: Look
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Whiskers:
    """Horizontal intervals [low, high] at the heights y; NaN: none."""

    low: np.ndarray
    high: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Notes:
    """Texts that start a little to the right of the points (x, y)."""

    x: np.ndarray
    y: np.ndarray
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cells:
    """A grid of cells in steps of a colour ramp.

    Attributes:
      x_edges, y_edges: [nx + 1], [ny + 1].
      step: int [ny, nx], 0..len(texts)-1, -1 for an empty cell.
      texts: what each step stands for, faintest first.
    """

    x_edges: np.ndarray
    y_edges: np.ndarray
    step: np.ndarray
    texts: tuple[str, ...]


Mark = Line | Rectangles | Whiskers | Notes | Cells


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
      title: a few words.
      marks: drawn in this order.
      height: of the plot, where its width is about 1.
    """

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    height: float = 0.85


@dataclasses.dataclass(frozen=True)
class Figure:
    """Panels with the words a reader needs, also one who cannot see them.

    Attributes:
      name: of the PNG.
      title: of its section.
      reading: how to read it.
      finding: what it shows here, with the numbers.
      panels: on the page and in the PNG.
      more: further panels, shown on demand, on the page alone.
      more_title: what they are.
    """

    name: str
    title: str
    reading: str
    finding: str
    panels: tuple[Panel, ...]
    more: tuple[Panel, ...] = ()
    more_title: str = ""


def fraction_axis(label: str) -> Axis:
    """From 0 to 1.

    Example:
      >>> [text for _, text in fraction_axis("score").ticks]
      ['0', '.2', '.4', '.6', '.8', '1']
    """
    ticks = tuple((i / 5, f"{i / 5:g}".removeprefix("0") or "0") for i in range(6))
    return Axis(label, 0.0, 1.0, ticks)


def axis_to(label: str, top: float, *, most_steps: int = 5) -> Axis:
    """From 0 to `top`, with ticks at round numbers.

    Example:
      >>> axis_to("AP", 0.43).ticks
      ((0.0, '0'), (0.1, '0.1'), (0.2, '0.2'), (0.3, '0.3'), (0.4, '0.4'))
    """
    top = top if math.isfinite(top) and top > 0 else 1.0
    unit = 10.0 ** math.floor(math.log10(top))
    step = next(s * unit for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if s * unit * most_steps >= top)
    places = [round(i * step, 12) for i in range(int(top / step + 1e-9) + 1)]
    return Axis(label, 0.0, top, tuple((place, f"{place:g}") for place in places))


def log_axis(label: str, top: float) -> Axis:
    """Powers of ten from below 1 to over `top`; values are to be given as `log10`.

    Example:
      >>> log_axis("boxes", 400).ticks
      ((0.0, '1'), (1.0, '10'), (2.0, '100'))
    """
    high = math.log10(max(top, 10.0))
    ticks = tuple((float(i), f"{10**i:,}") for i in range(int(high) + 1))
    return Axis(label, -0.3, high + 0.1, ticks)


def name_axis(names: Sequence[str]) -> Axis:
    """A row for each name, 0 at the top."""
    ticks = tuple((float(i), name) for i, name in enumerate(names))
    return Axis("", len(names) - 0.5, -0.5, ticks, is_names=True)
