"""What is drawn lies where the numbers say; colours can be told apart."""

import itertools
import re
from typing import Any

import numpy as np
import pytest

from harmonic_jax.report.breakdown import bars_panel, classes_figure, errors_figure
from harmonic_jax.report.palette import DARK, DARK_RAMP, LIGHT, RAMP
from harmonic_jax.report.panels import Cells, Line, Panel, Rectangles, fraction_axis
from harmonic_jax.report.precision import curves_figure, headroom_figure
from harmonic_jax.report.scores import count_steps, density_figure, reliability_figure
from harmonic_jax.report.svg import Frame, draw_panel
from tests.report.tables import studied, tables


def paths(svg: str, css: str) -> list[str]:
    return re.findall(rf'<path class="{css}" d="([^"]*)"', svg)


def panel_of(*marks: Any) -> Panel:
    return Panel("title", fraction_axis("x"), fraction_axis("y"), marks, height=1.0)


def test_cells_cover_what_is_not_empty_once() -> None:
    """Runs of equal cells are joined: the area of each step stays that of its cells."""
    rng = np.random.default_rng(0)
    step = np.where(rng.random((20, 30)) < 0.6, rng.integers(0, 3, (20, 30)), -1)
    x_edges, y_edges = np.linspace(0, 1, 31), np.linspace(0, 1, 21)
    panel = panel_of(Cells(x_edges, y_edges, step, ("1+", "2+", "3+")))
    svg, frame = draw_panel(panel, ""), Frame(panel, top=0.0)
    cell = (frame.right - frame.left) / 30 * (frame.bottom - frame.top) / 20
    for i, place in enumerate((0, 3, 6)):  # three steps, spread over the ramp
        path = paths(svg, f"d{place}")[-1]  # the legend's sample comes first
        numbers = np.array(re.findall(r"M(\S+) (\S+?)H(\S+?)V(\S+?)H", path), float)
        x1, y1, x2, y2 = numbers.T
        area = np.abs((x2 - x1) * (y2 - y1)).sum()
        assert area == pytest.approx(cell * (step == i).sum(), rel=0.01)


def test_a_line_s_ends_are_the_corners_and_nan_breaks_it() -> None:
    x = np.array([0.0, 0.5, 0.75, 1.0])
    panel = panel_of(Line(x, np.array([0.0, np.nan, 0.75, 1.0]), "a"))
    (path,) = paths(draw_panel(panel, ""), "line a")
    frame = Frame(panel, top=26.0)
    assert path.startswith(f"M{frame.left:g} {frame.bottom:g}M")
    assert path.endswith(f"L{frame.right:g} {frame.top:g}")
    assert path.count("M") == 2


@pytest.mark.parametrize("top", [1, 2, 3, 7, 8, 50, 12_345, 3_000_000])
def test_steps_hold_their_counts(top: int) -> None:
    counts = np.unique(np.round(np.geomspace(1, top, 200)))
    step, texts = count_steps(np.append(counts, 0)[None])
    assert step[0, -1] == -1
    assert step[0, -2] == len(texts) - 1
    assert step[0, 0] == 0
    lows = [float(t[:-1].removesuffix("k")) * (1000 if "k" in t else 1) for t in texts]
    assert lows == sorted(set(lows))
    ends = [*lows[1:], np.inf]
    for count, i in zip(counts, step[0, :-1], strict=True):
        rounding = 0.006 * count if count > 1000 else 0  # texts have three digits
        assert lows[i] - rounding <= count < ends[i] + rounding


def test_the_density_counts_every_box() -> None:
    case, report = studied(*tables())
    figure = density_figure(case, report)
    assert [panel.title.split(":")[0] for panel in figure.panels] == ["Before NMS", "After NMS"]
    for panel, pairs in zip(figure.panels, (case.raw_pairs, case.pairs), strict=True):
        assert pairs is not None
        cells = next(mark for mark in panel.marks if isinstance(mark, Cells))
        row = np.minimum((pairs.iou * 50).astype(int), 49)
        column = np.minimum((pairs.score * 50).astype(int), 49)
        filled = np.zeros((50, 50), bool)
        filled[row, column] = True
        assert (filled == (cells.step >= 0)).mean() > 0.999  # a value on an edge may round
    far = int((np.abs(case.pairs.score - case.pairs.iou) > 0.2).sum())
    assert f"Of {len(case.pairs):,} boxes {far:,} (" in figure.finding


def test_bars_and_curves_are_the_report_s_numbers() -> None:
    _, report = studied(*tables())
    overall = report["overall"]
    errors = errors_figure(report)
    assert errors is not None
    kinds = ("location", "class", "both", "duplicate", "background", "missed")
    bars = next(mark for mark in errors.panels[0].marks if isinstance(mark, Rectangles))
    assert bars.x2.tolist() == [overall[f"dAP_{kind}"]["value"] for kind in kinds]

    classes = classes_figure(report)
    assert classes is not None
    names = [text for _, text in classes.panels[0].y.ticks]
    values = [report["classes"][name]["AP"]["value"] for name in names]
    assert values == sorted(values)
    assert len(values) == 3
    bars = next(mark for mark in classes.panels[1].marks if isinstance(mark, Rectangles))
    assert bars.x2.tolist() == [report["classes"][name]["mean_gap"]["value"] for name in names]

    lines = [mark for mark in curves_figure(report).panels[0].marks if isinstance(mark, Line)]
    for line, key in zip(lines, ("AP50", "AP75"), strict=True):
        full = np.interp(report["curves"]["recall"], line.x, line.y)
        assert full.mean() == pytest.approx(overall[key]["value"], abs=1e-12)

    head = headroom_figure(report).panels[0].marks
    drawn = [mark.x2.tolist() for mark in head if isinstance(mark, Rectangles)]
    assert drawn == [
        [overall[f"AP{suffix}"]["value"]] for suffix in ("", "_ranked_by_iou", "_best_raw")
    ]


def test_reliability_leaves_out_bins_of_few_boxes() -> None:
    _, report = studied(*tables(images=100))
    table = report["reliability"]["all"]
    table["count"][3] = 9
    figure = reliability_figure(report)
    assert figure is not None
    lines = [mark for mark in figure.panels[0].marks if isinstance(mark, Line)]
    keep = [i for i in range(25) if table["count"][i] >= 10]
    assert 3 not in keep
    assert len(keep) > 5
    assert lines[1].y.tolist() == [table["mean_iou"][i] for i in keep]
    assert lines[2].y.tolist() == [table["precision"][i] for i in keep]
    assert "above the IoUs" in figure.finding  # scores at random, few good boxes


def linear(color: str) -> np.ndarray:
    value = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    """WCAG's ratio."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    t = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes, 2009, severity 1; linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip


@pytest.mark.parametrize(("colors", "ramp"), [(LIGHT, RAMP), (DARK, DARK_RAMP)])
def test_colours_can_be_read(colors: dict[str, str], ramp: tuple[str, ...]) -> None:
    for name in ("ink", "muted"):
        assert contrast(colors[name], colors["paper"]) > 4.5, name
        assert contrast(colors[name], colors["card"]) > 4.5, name
    for name in ("a", "b", "c"):
        assert contrast(colors[name], colors["paper"]) > 3, name
    for name, matrix in VISION.items():
        seen = [lab(matrix @ linear(colors[key])) for key in ("a", "b", "c")]
        for one, other in itertools.combinations(seen, 2):
            assert np.linalg.norm(one - other) > 20, name
    away = [contrast(color, colors["paper"]) for color in ramp]
    assert away == sorted(away)
    assert min(b / a for a, b in itertools.pairwise(away)) > 1.15


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0])
def test_texts_beside_bars_stay_in_the_picture(scale: float) -> None:
    """With the widest letters of the page's font, at most .62 of its size on average."""
    names = ["a name that takes all the room there is", "b", "c"]
    rows = [
        {"m": {"value": v * scale, "interval": [v * scale, 1.3 * v * scale]}} for v in (1, 0.5, 0)
    ]
    panel = bars_panel("title", "x", names, rows, "m", "a")
    svg, frame = draw_panel(panel, ""), Frame(panel, top=0.0)
    notes = re.findall(r'class="note" x="(\S+?)".*?>([^<]*)</text>', svg)
    assert len(notes) == 3
    for x, text in notes:
        assert float(x) + 0.62 * 11 * len(text) * 0.9 < 340
    bars = next(mark for mark in panel.marks if isinstance(mark, Rectangles))
    assert frame.x(bars.x2)[0] - frame.left > 50  # and there are still bars
