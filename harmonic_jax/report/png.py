"""A figure as a PNG for papers and slides: the panels of the page, drawn by matplotlib."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from harmonic_jax.files import replacing
from harmonic_jax.report.fonts import FONTS
from harmonic_jax.report.palette import LIGHT, RAMP
from harmonic_jax.report.panels import Cells, Figure, Line, Look, Mark, Notes, Panel, Rectangles
from harmonic_jax.report.svg import RAMP_TITLE, clipped, ramp_place

_LINES: dict[Look, dict[str, Any]] = {
    "a": {"ls": "-", "marker": "o"},
    "b": {"ls": "--", "marker": "s"},
    "c": {"ls": "-.", "marker": "^"},
    "muted": {"ls": ":", "marker": ""},
}
_HATCHES: dict[Look, str] = {"a": "", "b": "////", "c": "....", "muted": ""}


def save_figure(path: str | Path, figure: Figure) -> None:
    """Writes the panels beside each other, in light colours.

    Raises:
      OSError: the file cannot be written.
    """
    fonts = list(FONTS.families(_texts(figure)))
    # Class names are text: a dollar sign starts no formula.
    with mpl.rc_context({"text.parse_math": False, "font.family": fonts}):
        height = 1.6 + 3.2 * max(panel.height for panel in figure.panels)
        canvas = matplotlib.figure.Figure(
            figsize=(4.6 * len(figure.panels), height), dpi=150, layout="constrained"
        )
        places = canvas.subplots(1, len(figure.panels), squeeze=False)[0]
        for place, panel in zip(places, figure.panels, strict=True):
            _draw(place, panel)
        with replacing(path) as partial:
            canvas.savefig(partial, format="png")


def _texts(figure: Figure) -> Iterator[str]:
    for panel in figure.panels:
        yield panel.title
        for axis in (panel.x, panel.y):
            yield from (axis.label, *(text for _, text in axis.ticks))
        for mark in panel.marks:
            yield from (getattr(mark, "name", ""), *getattr(mark, "texts", ()))


def _draw(place: Any, panel: Panel) -> None:
    drawable = FONTS.drawable
    place.set_title(drawable(panel.title), loc="left", fontsize=11)
    place.set_axisbelow(True)
    place.grid(color=LIGHT["grid"], axis="x" if panel.y.is_names else "both")
    place.spines[["top", "right"]].set_visible(False)
    samples = [sample for mark in panel.marks for sample in _mark(place, mark)]
    for axis, data in ((place.xaxis, panel.x), (place.yaxis, panel.y)):
        axis.set_ticks(
            [at for at, _ in data.ticks],
            labels=[clipped(drawable(text)) for _, text in data.ticks],
        )
        axis.set_label_text(drawable(data.label))
    place.set_xlim(panel.x.low, panel.x.high)
    place.set_ylim(panel.y.low, panel.y.high)
    if samples:  # under the axes: no place inside is free in every run
        is_ramp = isinstance(samples[0], Patch)
        place.legend(
            handles=samples, loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=8.5,
            ncols=4 if is_ramp else 1, frameon=False,
            title=RAMP_TITLE if is_ramp else None, title_fontsize=8.5,
        )  # fmt: skip


def _mark(place: Any, mark: Mark) -> list[Any]:
    """Draws, and returns samples for the legend."""
    if isinstance(mark, Line):
        style = _LINES[mark.look] | ({} if mark.has_markers else {"marker": ""})
        lines = place.plot(
            mark.x,
            mark.y,
            color=LIGHT[mark.look],
            lw=1.8,
            ms=4.5,
            label=FONTS.drawable(mark.name),
            **style,
        )
        return list(lines) if mark.name else []
    if isinstance(mark, Rectangles):
        bars = place.bar(
            mark.x1, mark.y2 - mark.y1, mark.x2 - mark.x1, bottom=mark.y1, align="edge",
            color=LIGHT[mark.look], hatch=_HATCHES[mark.look], edgecolor="white", lw=0.5,
            label=FONTS.drawable(mark.name),
        )  # fmt: skip
        return [bars] if mark.name else []
    if isinstance(mark, Cells):
        return _cells(place, mark)
    if isinstance(mark, Notes):
        for x, y, text in zip(mark.x, mark.y, mark.texts, strict=True):
            place.annotate(
                FONTS.drawable(text), (x, y), xytext=(5, 0), textcoords="offset points",
                va="center", fontsize=8.5, annotation_clip=False,
            )  # fmt: skip
        return []
    middle = (mark.low + mark.high) / 2
    known = np.isfinite(middle)
    place.errorbar(
        middle[known], mark.y[known], xerr=((mark.high - mark.low) / 2)[known], fmt="none",
        ecolor=LIGHT["ink"], elinewidth=1.2, capsize=3,
    )  # fmt: skip
    return []


def _cells(place: Any, mark: Cells) -> list[Patch]:
    if not mark.texts:
        return []
    colors = [RAMP[ramp_place(i, len(mark.texts))] for i in range(len(mark.texts))]
    place.pcolormesh(
        mark.x_edges, mark.y_edges, np.ma.masked_less(mark.step, 0), cmap=ListedColormap(colors),
        vmin=-0.5, vmax=len(colors) - 0.5,
    )  # fmt: skip
    return [
        Patch(color=color, label=FONTS.drawable(text))
        for color, text in zip(colors, mark.texts, strict=True)
    ]
