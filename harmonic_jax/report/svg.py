"""A panel as inline SVG; colours and line styles are classes of the page's style sheet."""

from html import escape

import numpy as np

from harmonic_jax.report.panels import (
    Axis,
    Cells,
    Line,
    Look,
    Mark,
    Notes,
    Panel,
    Rectangles,
    Whiskers,
)

WIDTH = 340.0  # user units; a phone shows them as about as many pixels
RAMP_STEPS = 7
RAMP_TITLE = "boxes in a cell"
_ROW = 16.0
_NUMBERS, _MOST_FOR_NAMES = 46.0, 140.0
_LETTER = 6.6


class Frame:
    """Where data lie in the picture."""

    def __init__(self, panel: Panel, top: float) -> None:
        self.x_axis, self.y_axis = panel.x, panel.y
        self.left = _NUMBERS
        if panel.y.is_names:
            longest = max((len(clipped(text)) for _, text in panel.y.ticks), default=1)
            self.left = min(_LETTER * longest + 10.0, _MOST_FOR_NAMES)
        self.right, self.top = WIDTH - 12.0, top
        self.bottom = top + panel.height * (WIDTH - 12.0 - _NUMBERS)

    def x(self, values: np.ndarray | float) -> np.ndarray:
        a = self.x_axis
        return self.left + (np.asarray(values) - a.low) / (a.high - a.low) * (
            self.right - self.left
        )

    def y(self, values: np.ndarray | float) -> np.ndarray:
        a = self.y_axis
        return self.bottom - (np.asarray(values) - a.low) / (a.high - a.low) * (
            self.bottom - self.top
        )


def draw_panel(panel: Panel, description: str) -> str:
    """The `<svg>` element.

    Args:
      panel: what to draw.
      description: what a screen reader says in its place.
    """
    legend, legend_height = _legend(panel.marks, top=26.0)
    frame = Frame(panel, top=26.0 + legend_height)
    height = frame.bottom + (38.0 if panel.x.label else 22.0)
    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {_n(height)}" role="img" '
        f'aria-label="{escape(f"{panel.title}. {description}")}">',
        f'<text class="head" x="2" y="14">{escape(panel.title)}</text>',
        legend,
        _axes(panel.x, panel.y, frame),
        *(_mark(mark, frame) for mark in panel.marks),
        "</svg>",
    ]
    return "".join(parts)


def clipped(text: str, most: int = 20) -> str:
    """A text that fits beside an axis.

    Example:
      >>> clipped("a class with a very long name")
      'a class with a very…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _axes(x: Axis, y: Axis, frame: Frame) -> str:
    parts = []
    for place, text in y.ticks:
        at = _n(float(frame.y(place)))
        if not y.is_names:
            parts.append(f'<path class="grid" d="M{_n(frame.left)} {at}H{_n(frame.right)}"/>')
        title = f"<title>{escape(text)}</title>" if clipped(text) != text else ""
        parts.append(
            f'<text class="tick end" x="{_n(frame.left - 5)}" y="{at}" dy=".35em">'
            f"{title}{escape(clipped(text))}</text>"
        )
    for place, text in x.ticks:
        at = _n(float(frame.x(place)))
        parts.append(f'<path class="grid" d="M{at} {_n(frame.top)}V{_n(frame.bottom)}"/>')
        parts.append(
            f'<text class="tick mid" x="{at}" y="{_n(frame.bottom + 14)}">{escape(text)}</text>'
        )
    middle = _n((frame.left + frame.right) / 2)
    if x.label:
        parts.append(
            f'<text class="label mid" x="{middle}" y="{_n(frame.bottom + 30)}">'
            f"{escape(x.label)}</text>"
        )
    if y.label:
        at = _n((frame.top + frame.bottom) / 2)
        parts.append(
            f'<text class="label mid" x="12" y="{at}" transform="rotate(-90 12 {at})">'
            f"{escape(y.label)}</text>"
        )
    return "".join(parts)


def _legend(marks: tuple[Mark, ...], top: float) -> tuple[str, float]:
    """Samples of the named marks, one a row; the steps of a ramp in one row."""
    parts, y = [], top
    for mark in marks:
        if isinstance(mark, Cells) and mark.texts:
            parts.append(_ramp(mark.texts, y))
            y += 2 * _ROW
        elif isinstance(mark, Line | Rectangles) and mark.name:
            if isinstance(mark, Line):
                sample = f'<path class="line {mark.look}" d="M4 {_n(y)}H34"/>'
                if mark.has_markers:
                    sample += _markers(np.array([19.0]), np.array([y]), mark.look)
            else:
                sample = f'<path class="fill {mark.look}" d="M4 {_n(y - 5)}h30v10h-30z"/>'
            text = f'<text class="tick" x="40" y="{_n(y)}" dy=".35em">{escape(mark.name)}</text>'
            parts.append(sample + text)
            y += _ROW
    return "".join(parts), y - top + (2.0 if parts else 0.0)


def _ramp(texts: tuple[str, ...], y: float) -> str:
    words = 92.0
    width = (WIDTH - words) / RAMP_STEPS
    parts = [f'<text class="tick" x="2" y="{_n(y)}" dy=".35em">{RAMP_TITLE}</text>']
    for i, text in enumerate(texts):
        x = words + i * width
        color = ramp_place(i, len(texts))
        parts.append(
            f'<path class="d{color}" d="M{_n(x)} {_n(y - 6)}h{_n(width - 2)}v9h-{_n(width - 2)}z"/>'
            f'<text class="tick small mid" x="{_n(x + width / 2)}" y="{_n(y + 14)}">'
            f"{escape(text)}</text>"
        )
    return "".join(parts)


def ramp_place(step: int, steps: int) -> int:
    """The place of a step on the ramp, 0..6; few steps are spread over all of it."""
    return RAMP_STEPS - 1 if steps < 2 else round(step * (RAMP_STEPS - 1) / (steps - 1))


def _mark(mark: Mark, frame: Frame) -> str:
    if isinstance(mark, Line):
        x, y = frame.x(mark.x), frame.y(mark.y)
        line = f'<path class="line {mark.look}" d="{_polyline(x, y)}"/>'
        return line + (_markers(x, y, mark.look) if mark.has_markers else "")
    if isinstance(mark, Rectangles):
        return f'<path class="fill {mark.look}" d="{_rectangles(mark, frame)}"/>'
    if isinstance(mark, Whiskers):
        low, high, y = frame.x(mark.low), frame.x(mark.high), frame.y(mark.y)
        rows = zip(low.tolist(), high.tolist(), y.tolist(), strict=True)
        path = "".join(
            f"M{_n(a)} {_n(c)}H{_n(b)}M{_n(a)} {_n(c - 4)}v8M{_n(b)} {_n(c - 4)}v8"
            for a, b, c in rows
            if np.isfinite([a, b]).all()
        )
        return f'<path class="whisker" d="{path}"/>'
    if isinstance(mark, Notes):
        x, y = frame.x(mark.x) + 6, frame.y(mark.y)
        return "".join(
            f'<text class="note" x="{_n(a)}" y="{_n(b)}" dy=".35em">{escape(text)}</text>'
            for a, b, text in zip(x.tolist(), y.tolist(), mark.texts, strict=True)
        )
    return _cells(mark, frame)


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    parts, is_down = [], False
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if np.isfinite(a) and np.isfinite(b):
            parts.append(f"{'L' if is_down else 'M'}{_n(a)} {_n(b)}")
            is_down = True
        else:
            is_down = False
    return "".join(parts)


_SHAPES: dict[Look, str] = {
    "a": "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "b": "m-3 -3h6v6h-6z",
    "c": "m0 -4l4 7h-8z",
    "muted": "m-2 0h4",
}


def _markers(x: np.ndarray, y: np.ndarray, look: Look) -> str:
    points = zip(x.tolist(), y.tolist(), strict=True)
    path = "".join(
        f"M{_n(a)} {_n(b)}{_SHAPES[look]}" for a, b in points if np.isfinite([a, b]).all()
    )
    return f'<path class="marker {look}" d="{path}"/>'


def _rectangles(mark: Rectangles, frame: Frame) -> str:
    x1, x2, y1, y2 = frame.x(mark.x1), frame.x(mark.x2), frame.y(mark.y1), frame.y(mark.y2)
    rows = np.stack([x1, y1, x2, y2], axis=1)
    return "".join(
        f"M{_n(a)} {_n(b)}H{_n(c)}V{_n(d)}H{_n(a)}z"
        for a, b, c, d in rows[np.isfinite(rows).all(axis=1)].tolist()
    )


def _cells(mark: Cells, frame: Frame) -> str:
    """One path a step of the ramp; neighbours in a row are joined."""
    x, y = frame.x(mark.x_edges).tolist(), frame.y(mark.y_edges).tolist()
    paths: list[list[str]] = [[] for _ in mark.texts]
    for row, steps in enumerate(mark.step):
        starts = np.flatnonzero(np.diff(steps, prepend=-2))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(steps)], strict=True):
            if steps[start] >= 0:
                paths[steps[start]].append(
                    f"M{_n(x[start])} {_n(y[row])}H{_n(x[end])}V{_n(y[row + 1])}H{_n(x[start])}z"
                )
    return "".join(
        f'<path class="d{ramp_place(step, len(paths))}" d="{"".join(path)}"/>'
        for step, path in enumerate(paths)
        if path
    )
