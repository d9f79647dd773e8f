"""What is drawn lies where the numbers say; colours can be told apart."""

import itertools
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from harmonic_jax.report.charts import make_charts
from harmonic_jax.report.plots import (
    DARK,
    DARK_RAMP,
    LIGHT,
    RAMP,
    chart_style,
    count_steps,
    new_bars,
    new_confusion,
    new_density,
    plot_loss_curves,
    svg_of,
)
from tests.report.studies import drawn


def bars_of(axes: Any) -> list[float]:
    return [patch.get_width() for patch in axes.patches]


def test_the_density_shows_every_box() -> None:
    case, report = drawn()
    chart = make_charts(case, report)["score_iou"]
    titles = [axes.get_title(loc="left").split(":")[0] for axes in chart.panels]
    assert titles == ["Before NMS", "After NMS"]
    for axes, pairs in zip(chart.panels, (case.raw_pairs, case.pairs), strict=True):
        cells = np.concatenate([patch.get_path().vertices for patch in axes.patches])
        corners = np.unique(np.round(cells.reshape(-1, 5, 2)[:, 0] * 50).astype(int), axis=0)
        place = np.minimum(np.stack([pairs.score, pairs.iou], axis=1) * 50, 49).astype(int)
        expected = np.unique(place, axis=0)
        different = set(map(tuple, corners.tolist())) ^ set(map(tuple, expected.tolist()))
        assert len(different) <= 0.01 * len(expected)  # a value on an edge may round
    far = int((np.abs(case.pairs.score - case.pairs.iou) > 0.2).sum())
    assert chart.facts["after"] == {"boxes": len(case.pairs), "apart": far}


@pytest.mark.parametrize("top", [1, 2, 7, 8, 12_345, 3_000_000])
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


def test_bars_and_curves_are_the_report_s_numbers() -> None:
    case, report = drawn()
    overall, charts = report["overall"], make_charts(case, report)
    kinds = ("location", "class", "both", "duplicate", "background", "missed")
    expected = [overall[f"dAP_{kind}"]["value"] for kind in kinds]
    assert bars_of(charts["errors"].panels[0]) == expected

    panels = charts["classes"].panels
    for axes, metric in zip(panels, ("AP", "mean_gap"), strict=True):
        names = [text.get_gid().removeprefix("name:") for text in axes.get_yticklabels()]
        assert bars_of(axes) == [report["classes"][name][metric]["value"] for name in names]
    values = bars_of(panels[0])
    assert values == sorted(values)
    assert len(values) == 3

    (axes,) = charts["precision_recall"].panels
    for line, key in zip(axes.lines, ("AP50", "AP75"), strict=True):
        assert np.mean(line.get_ydata()) == pytest.approx(overall[key]["value"], abs=1e-12)

    (axes,) = charts["head_room"].panels
    assert bars_of(axes) == [
        overall[name]["value"] for name in ("AP", "AP_ranked_by_iou", "AP_best_raw")
    ]


def test_reliability_leaves_out_bins_of_few_boxes() -> None:
    case, report = drawn()
    table = report["reliability"]["all"]
    few = {**table, "count": [9 if i == 3 else n for i, n in enumerate(table["count"])]}
    report = report | {"reliability": report["reliability"] | {"all": few}}
    chart = make_charts(case, report)["reliability"]
    keep = [i for i in range(25) if few["count"][i] >= 10]
    assert 3 not in keep
    assert len(keep) > 5
    for line, column in zip(chart.panels[0].lines[1:], ("mean_iou", "precision"), strict=True):
        assert line.get_xdata().tolist() == [table["mean_score"][i] for i in keep]
        assert line.get_ydata().tolist() == [table[column][i] for i in keep]
    steps = chart.panels[1].patches[0].get_data()
    assert steps.values.tolist() == few["count"]
    assert steps.baseline == chart.panels[1].get_ylim()[0] > 0  # on a logarithmic axis
    assert chart.facts["gap"] > 0.1  # scores at random, few good boxes


def test_a_panel_as_svg() -> None:
    """A line's ends are the corners, cells cover their area, colours are the page's."""
    with chart_style():
        axes = new_density("<b>&", np.array([[0, 1], [3, 3]]))
        axes.plot([0.0, 0.4, 0.5, 1.0], [0.0, np.nan, 0.5, 1.0], color=LIGHT["ink"])
        svg = svg_of(axes, "finding", "one-")
    assert 'aria-label="&lt;b&gt;&amp;" aria-describedby="finding"' in svg
    assert ">&lt;b&gt;&amp;</text>" in svg
    assert not re.search(r"style=|http|<style|font-family|#[0-9a-f]{6}\b", svg)
    assert all(
        name.startswith("one-") for name in re.findall(r'(?:id=|url\(#|href="#)"?(\w+-)', svg)
    )
    (line,) = re.findall(r'<path d="([^"]*)"[^>]*stroke="var\(--ink\)"', svg)
    x, y = np.array(re.findall(r"([\d.]+) ([\d.]+)", line), float).T
    (x1, y1, width, height) = map(
        float, *re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', svg)
    )
    np.testing.assert_allclose([x[0], y[0]], [x1, y1 + height], atol=0.02)
    np.testing.assert_allclose([x[-1], y[-1]], [x1 + width, y1], atol=0.02)
    assert line.count("M") == 2  # NaN breaks it
    for color, share in (("d0", 0.25), ("d6", 0.5)):
        path = re.findall(rf'<path d="([^"]*)"[^>]*fill="var\(--{color}\)"', svg)[0]
        corners = np.array(re.findall(r"([\d.]+) ([\d.]+)", path), float).reshape(-1, 4, 2)
        sides = corners.max(axis=1) - corners.min(axis=1)
        assert sides.prod(axis=1).sum() == pytest.approx(share * width * height, rel=0.01)


def test_texts_beside_bars_stay_in_the_picture() -> None:
    """Digits and signs take about half of a font's size each."""
    name = "a name that takes all the room there is"
    rows = {name: {"value": 1.0, "interval": [0.9, 1.3]}, "b": {"value": 0.5}, "c": {"value": None}}
    with chart_style():
        svg = svg_of(new_bars("title", "x", rows), "", "")
    assert f"<title>{name}</title>" in svg
    assert ">a name that takes a…</text>" in svg
    for text in ("1.000", "0.500"):
        (x,) = re.findall(rf'x="([\d.]+)"[^>]*>{re.escape(text)}</text>', svg)
        assert float(x) + 0.53 * 8 * len(text) < 288
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+\s+L ([\d.]+)[^>]*fill="var\(--a\)"', svg)
    assert len(bars) == 2
    assert float(bars[0][1]) - float(bars[0][0]) > 50  # there is room for them


def test_confusions_are_shares_of_their_rows() -> None:
    """Of many classes the largest; every cell of half a per cent and more has its number."""
    names = [f"class {k}" for k in range(100)]
    columns = ("(annotated)", *names, "(missed)")
    counts = np.eye(101, dtype=int) * np.arange(101)[:, None]
    counts[99, 3], counts[99, 100] = 100, 1
    lines = zip([*names, "(background)"], counts.tolist(), strict=True)
    with chart_style():
        axes = new_confusion([dict(zip(columns, (a, *n), strict=True)) for a, n in lines])
    shown = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert len(shown) == 82  # the diagonal of 80 and background; and what 99 is taken for
    assert {((79, 79), "50"), ((0, 79), "50"), ((80, 80), "100")} <= shown
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["class 3", *names[21:], "(missed)"]
    assert len(axes.patches) == len(axes.texts)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path)))


def test_loss_curves(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": step, "kind": "train", "loss": 2 / (1 + step), "cls_loss": 0.0, "grad_norm": 9.0}
        for step in range(0, 1000, 10)
    ]
    plot_loss_curves(tmp_path / "a.png", rows)
    plot_loss_curves(tmp_path / "b.png", [*rows, {"step": 500, "kind": "eval", "AP": 0.2}])
    without, with_scores = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert with_scores.shape[1] > without.shape[1] > 400  # a second panel
    # A run that was killed writes the steps after its last checkpoint again.
    plot_loss_curves(tmp_path / "c.png", [*rows[:60], {"step": 520, "loss": 99.0}, *rows[50:]])
    assert np.array_equal(pixels(tmp_path / "c.png"), without)
    few = [{"step": 1, "loss": float("inf")}, {"step": 2, "loss": float("nan")}]
    for rows in ([], few):
        plot_loss_curves(tmp_path / "c.png", rows)
        assert pixels(tmp_path / "c.png").size


def contrast(*colors: str) -> float:
    """WCAG's ratio of two colours."""
    rgb = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    low, high = np.sort(linear @ [0.2126, 0.7152, 0.0722]) + 0.05
    return float(high / low)


@pytest.mark.parametrize(("colors", "ramp"), [(LIGHT, RAMP), (DARK, DARK_RAMP)])
def test_colours_can_be_read(colors: dict[str, str], ramp: tuple[str, ...]) -> None:
    for name in ("ink", "muted"):
        assert contrast(colors[name], colors["paper"]) > 4.5, name
        assert contrast(colors[name], colors["card"]) > 4.5, name
    for name in ("a", "b"):
        assert contrast(colors[name], colors["paper"]) > 3, name
    away = [contrast(color, colors["paper"]) for color in ramp]
    assert away == sorted(away)
    assert min(b / a for a, b in itertools.pairwise(away)) > 1.15
