"""Charts, each drawn once by matplotlib: an SVG in the colours of the page around it, and a PNG."""

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

import numpy as np

from harmonic_jax.report.boxes import save_png
from harmonic_jax.report.fonts import drawable, font_families
from harmonic_jax.terminal import printable

if TYPE_CHECKING:  # it takes a second to import: what draws nothing goes without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The series, Okabe and Ito's blue and orange, are apart for every kind of colour vision, and differ
# in line style, marker and hatching as well. The ramp is one hue by lightness, faint to strong.
LIGHT = {
    "paper": "#ffffff", "card": "#f6f7f9", "ink": "#1b1f24", "muted": "#57606a", "grid": "#dde1e6",
    "a": "#0072b2", "b": "#d55e00",
}  # fmt: skip
DARK = {
    "paper": "#14171a", "card": "#1d2126", "ink": "#e8eaed", "muted": "#a6adb5", "grid": "#363d45",
    "a": "#56b4e9", "b": "#e69f00",
}  # fmt: skip
RAMP = ("#d6e6f4", "#abcfe6", "#6aaed6", "#3787c0", "#1b69ad", "#0b4083", "#08224f")
DARK_RAMP = ("#17324d", "#1f4b73", "#2c6a9c", "#4a8cc0", "#79b0da", "#aed1ec", "#e6f3ff")
# Okabe and Ito's palette without yellow, which is faint on white, with dashes for many lines.
CURVES = (
    ("#000000", "-"), ("#0072b2", "--"), ("#e69f00", "-."), ("#009e73", ":"),
    ("#cc79a7", (0, (5, 1))), ("#d55e00", (0, (3, 1, 1, 1))), ("#56b4e9", (0, (1, 1))),
)  # fmt: skip
LINES: dict[str, dict[str, Any]] = {
    "a": {"color": LIGHT["a"], "linestyle": "-"},
    "b": {"color": LIGHT["b"], "linestyle": "--"},
    "guide": {"color": LIGHT["muted"], "linestyle": ":"},
}
HATCHES = {"a": None, "b": "////"}
MOST_CONFUSED = 80  # classes of a confusion table
LONGEST_NAME = 20  # letters beside an axis
MARGIN = 0.2  # between score and IoU
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "harmonic_jax", "text.parse_math": False,
    "font.size": 9.0, "axes.titlesize": 10.0, "axes.labelsize": 9.0,
    "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["muted"], "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"], "axes.edgecolor": LIGHT["muted"], "grid.color": LIGHT["grid"],
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "xtick.major.size": 0.0, "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8, "lines.markersize": 4,
    "figure.dpi": 150.0,
}  # fmt: skip


@contextlib.contextmanager
def chart_style(names: Iterable[str] = ()) -> Iterator[None]:
    """The looks of everything that is drawn and saved inside; `names` are texts from outside."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE | {"font.family": font_families(names)}):
        yield


def new_axes(
    title: str, *, height: float = 3.4, width: float = 4.0, is_small: bool = False
) -> "Axes":
    """One panel: the only axes of a figure of so many inches, to draw on as matplotlib does.

    One of many small panels, whose axes are fractions and have no legend, is not laid out anew.
    """
    from matplotlib.figure import Figure

    if is_small:
        axes = Figure(figsize=(0.8 * width, 0.8 * height)).add_axes((0.14, 0.16, 0.82, 0.73))
    else:
        axes = Figure(figsize=(width, height), layout="constrained").subplots()
    axes.set_title(printable(title), loc="left")
    return axes


def _figure_of(axes: "Axes") -> "Figure":
    return cast("Figure", axes.figure)


def set_fractions(axes: "Axes", *, x: str = "", y: str = "") -> None:
    """Makes an axis with a label go from 0 to 1."""
    places = np.arange(6) / 5
    texts = ["0", ".2", ".4", ".6", ".8", "1"]
    if x:
        axes.set_xticks(places, labels=texts)
        axes.set(xlabel=x, xlim=(0.0, 1.0))
    if y:
        axes.set_yticks(places, labels=texts)
        axes.set(ylabel=y, ylim=(0.0, 1.0))


def set_log(axes: "Axes") -> None:
    """Makes the upright axis logarithmic; what is not positive is not drawn."""
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(lambda x, _: f"{x:,g}" if f"{x:e}"[0] in "25" else "")


def set_rows(axes: "Axes", names: Sequence[str]) -> None:
    """A row for each name, the first on top; pages show long names whole under the pointer."""
    names = [printable(name) for name in names]
    shown = [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + "…" for n in names]
    axes.set_yticks(range(len(names)), labels=shown)
    for text, name in zip(axes.get_yticklabels(), names, strict=True):
        text.set_gid(f"{_NAME}{name}")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def add_legend(axes: "Axes", **options: Any) -> None:
    """Under the axes: no place inside is free in every chart."""
    options = {"handles": axes.get_legend_handles_labels()[0], **options}
    _figure_of(axes).legend(loc="outside lower left", **options)


def new_bars(
    title: str, label: str, entries: Mapping[str, Mapping[str, Any]], series: str = "a"
) -> "Axes":
    """A panel of horizontal bars with their intervals, and their values beside them.

    Args:
      entries: "value" and "interval", either or both None or absent, for each name, top down.
      series: "a" or "b".
    """
    axes = new_axes(title, height=0.8 + 0.24 * len(entries))
    set_rows(axes, list(entries))
    known = {row: e for row, e in enumerate(entries.values()) if e.get("value") is not None}
    values = np.array([entry["value"] for entry in known.values()])
    intervals = [entry.get("interval") or (entry["value"],) * 2 for entry in known.values()]
    ends = np.array(intervals, float).reshape(-1, 2)
    if known:
        bars = axes.barh(
            list(known), values, 0.76, color=LIGHT[series], hatch=HATCHES[series],
            edgecolor=LIGHT["paper"], linewidth=0.0,
            xerr=np.abs(ends.T - values) if (values != ends.T).any() else None,
            error_kw={"ecolor": LIGHT["ink"], "elinewidth": 1, "capsize": 2},
        )  # fmt: skip
        axes.bar_label(bars, fmt="{:.3f}", padding=4, fontsize=8)
    axes.set(xlabel=label, xlim=(0.0, max([1e-3, *values, *ends[:, 1]])))
    axes.locator_params(axis="x", nbins=4)
    return axes


def new_confusion(rows: Sequence[Mapping[str, Any]]) -> "Axes":
    """A panel of a confusion table in per cent of each row, of at most `MOST_CONFUSED` classes."""
    from matplotlib.patches import Rectangle

    counts = np.array([[*row.values()][1:] for row in rows])
    number = (counts.sum(axis=0) + counts.sum(axis=1))[:-1]
    most = np.argsort(-number, kind="stable")[: min(np.count_nonzero(number), MOST_CONFUSED)]
    shown = [*np.sort(most), len(number)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    percent = np.rint(100 * shares[np.ix_(shown, shown)]).astype(int)
    side = 1.2 + max(0.19 * len(shown), 2.8)
    axes = new_axes("Detected as, in per cent of each row", height=side, width=side)
    set_rows(axes, [rows[k]["(annotated)"] for k in shown])
    labels = [drawable(text.get_text()) for text in axes.get_yticklabels()]
    axes.set_xticks(range(len(shown)), labels=[*labels[:-1], "(missed)"], rotation=90)
    axes.set(xlabel="detected", ylabel="annotated", xlim=(-0.5, len(shown) - 0.5))
    axes.grid(visible=False)
    for y, x in np.argwhere(percent).tolist():
        step = min(percent[y, x] * len(RAMP) // 100, len(RAMP) - 1)
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=RAMP[step], linewidth=0))
        text = axes.text(x, y, str(percent[y, x]), ha="center", va="center", fontsize=6.5)
        text.set(color=LIGHT["paper" if step > 2 else "ink"], in_layout=False)
    return axes


def new_density(title: str, counts: np.ndarray, scores: tuple[float, float] = (0.0, 1.0)) -> "Axes":
    """A panel of how many boxes have which IoU and score: cells in steps of the ramp that grow by a
    factor, cells of none blank, and their legend.

    Args:
      counts: [ny, nx], IoU from 0 to 1 by score.
      scores: where the grid begins and ends; in fractions, lines show where a score is the IoU and
        where it is .2 off.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Polygons

    axes = new_axes(title, height=4.5)
    set_fractions(axes, y="IoU")
    axes.set(xlabel="score", xlim=scores)
    lines = []
    if scores == (0.0, 1.0):
        set_fractions(axes, x="score")
        lines = axes.plot([0, 1], [0, 1], **LINES["b"], label="score = IoU")
        for shift in (MARGIN, -MARGIN):
            axes.axline((0, shift), slope=1, **LINES["guide"])
    x_edges, y_edges = (
        np.linspace(*ends, n + 1)
        for ends, n in zip((scores, (0.0, 1.0)), counts.T.shape, strict=True)
    )
    step, texts = count_steps(counts)
    samples = []
    for i, text in enumerate(texts):
        color = RAMP[-1 if len(texts) < 2 else round(i * (len(RAMP) - 1) / (len(texts) - 1))]
        y, x = np.nonzero(step == i)
        left, right, low, high = x_edges[x], x_edges[x + 1], y_edges[y], y_edges[y + 1]
        corners = np.array([[left, low], [right, low], [right, high], [left, high], [left, low]])
        codes = [Polygons.MOVETO, *[Polygons.LINETO] * 3, Polygons.CLOSEPOLY] * len(x)
        cells = Polygons(corners.transpose(2, 0, 1).reshape(-1, 2), codes)
        samples.append(axes.add_artist(PathPatch(cells, color=color, linewidth=0.0, label=text)))
    if samples:
        handles = [*samples, *lines]
        add_legend(axes, handles=handles, ncols=4, title="boxes in a cell", alignment="left")
    return axes


def count_steps(counts: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Counts as steps of a ramp that grow by a factor, and the least count of each as text.

    Returns:
      int [ny, nx], -1 for a count of 0; and the texts.

    Example:
      >>> step, texts = count_steps(np.array([[0, 1, 3, 99]]))
      >>> step.tolist(), texts
      ([[-1, 0, 1, 6]], ('1+', '2+', '4+', '8+', '14+', '27+', '52+'))
    """
    top = int(counts.max(initial=0))
    if top == 0:
        return np.full(counts.shape, -1), ()
    edges = np.unique(np.ceil(np.geomspace(1, top + 1, min(top, len(RAMP)) + 1)).astype(int))
    step = np.searchsorted(edges, counts, side="right") - 1
    texts = tuple(f"{e / 1000:.3g}k+" if e >= 1000 else f"{e}+" for e in edges[:-1].tolist())
    return np.where(counts > 0, np.minimum(step, len(texts) - 1), -1), texts


def plot_loss_curves(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a PNG of the losses over the steps, and of AP where the run was evaluated.

    Args:
      rows: rows of the run's log: "step", and numbers by name. Names that are "loss" or end in
        "_loss" are drawn on the left, "AP", "AP50", "AP75" and "mask_AP" on the right. Of several
        rows with the same step the last counts; numbers that are not finite are left out.
    """
    names = sorted({name for row in rows for name in row}, key=lambda name: (name != "loss", name))
    losses = [name for name in names if name == "loss" or name.endswith("_loss")]
    scores = [name for name in ("AP", "AP50", "AP75", "mask_AP") if name in names]
    with chart_style(losses):
        panels = [new_axes("loss", width=5.5, height=4.2)]
        _draw_series(panels[0], rows, losses, marker="")
        if any((np.asarray(line.get_ydata()) > 0).any() for line in panels[0].lines):
            set_log(panels[0])
        if scores:
            panels.append(new_axes("average precision", width=5.5, height=4.2))
            _draw_series(panels[1], rows, scores, marker="o")
            panels[1].set_ylim(0, 1)
        save_panels(path, panels)


def _draw_series(
    axes: "Axes", rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, marker: str
) -> None:
    for (color, _), name in zip(itertools.cycle(CURVES), names, strict=False):
        points = {row["step"]: row[name] for row in rows if name in row}
        steps, values = np.array(sorted(points.items()), float).reshape(-1, 2).T
        steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
        if not marker and len(values) > 40:  # noisy: faint, under its mean
            axes.plot(steps, values, color=color, linewidth=1, alpha=0.25)
            values = _smooth(values)
        axes.plot(steps, values, color=color, marker=marker, label=name)
    axes.set_xlabel("step")
    if names:
        axes.legend()


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a 20th of the curve; shorter at the ends."""
    window = np.ones(2 * max(len(values) // 40, 1) + 1)
    counts = np.convolve(np.ones_like(values), window, mode="same")
    return np.convolve(values, window, mode="same") / counts


def save_panels(path: str | Path, *rows: Sequence["Axes"]) -> None:
    """Writes rows of panels as a PNG, in light colours; letters that no font of this system has are
    their code points.
    """
    strips = [_joined([_pixels(axes) for axes in row], axis=1) for row in rows]
    save_png(path, _joined(strips, axis=0))


def _pixels(axes: "Axes") -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = _figure_of(axes)
    for text in figure.findobj(Text):
        text.set_text("\n".join(map(drawable, text.get_text().split("\n"))))
    names = [text.get_text() for text in axes.get_yticklabels()]
    spelled = [drawable(name) for name in names]
    if spelled != names:
        axes.set_yticks(axes.get_yticks(), labels=spelled)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def _joined(pictures: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    """Pictures along an axis, with white where one is smaller along the other."""
    most = max(picture.shape[1 - axis] for picture in pictures)
    padded = []
    for picture in pictures:
        missing = np.zeros((3, 2), int)
        missing[1 - axis, 1] = most - picture.shape[1 - axis]
        padded.append(np.pad(picture, missing, constant_values=255))
    return np.concatenate(padded, axis=axis)


_NAME = "name:"
_VARIABLES = {color: f"var(--{name})" for name, color in LIGHT.items()} | {
    color: f"var(--d{i})" for i, color in enumerate(RAMP)
}


def svg_of(axes: "Axes", finding: str, ids: str) -> str:
    """A panel as an `<svg>` element to stand in a page.

    Colours are variables of the page's style sheet (`--a`, `--ink`, ..), texts are in its font, and
    there are no style attributes, which a page's policy would have to allow.

    Args:
      finding: the id of what a screen reader says of it, after its title.
      ids: what the ids inside start with; unique in the page.
    """
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser may have the letter
        _figure_of(axes).savefig(stream, format="svg", transparent=True)
    root = ElementTree.fromstring(stream.getvalue())
    for parent in root.iter():
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
        given, parent.attrib = parent.attrib, {}
        for key, value in given.items():
            _set_attribute(parent, key.rpartition("}")[2], value, ids)
    root.attrib = {
        "class": "chart",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": axes.get_title(loc="left"),
        "aria-describedby": finding,
    }
    return ElementTree.tostring(root, encoding="unicode")


def _set_attribute(element: ElementTree.Element, key: str, value: str, ids: str) -> None:
    if key == "style":
        for declaration in value.split("; "):
            name, _, content = declaration.partition(": ")
            if name != "font-family":
                _set_attribute(element, name, content, ids)
    elif key == "id" and element.tag == "g":  # nothing refers to groups
        if value.startswith(_NAME):
            title = ElementTree.Element("title")
            title.text = value.removeprefix(_NAME)
            element.insert(0, title)
    elif key == "id":
        element.set(key, f"{ids}{value}")
    elif key == "href" or value.startswith("url(#"):
        element.set(key, value.replace("#", f"#{ids}", 1))
    else:
        value = re.sub(r"(\.\d\d)\d+", r"\1", value)  # hundredths of a point will do
        element.set(key, _VARIABLES.get(value, value))
