"""The page of two detectors: what it draws is what was compared, and it stands alone."""

import re
from pathlib import Path

import numpy as np
import pytest

from harmonic_jax.metrics.consistency import METRICS
from harmonic_jax.metrics.consistency.compare import Comparison, compare_samples
from harmonic_jax.metrics.consistency.report import report_of
from harmonic_jax.metrics.consistency.sampling import sample_metrics
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.report import Images, comparison, write_comparison
from harmonic_jax.report.comparison import differing_images
from harmonic_jax.report.plots import LIGHT, chart_style
from tests.report.studies import NASTY, gray_image, tables
from tests.report.test_page import Page

Sides = list[list[Study]]


@pytest.fixture(scope="module")
def compared() -> tuple[Sides, Comparison]:
    """Boxes far from objects, and boxes near to them."""
    truth, far, near = tables(images=60)
    sides = [[Study(truth, found)] for found in (far, near)]
    samples = [[sample_metrics(case, resamples=30, seed=0) for case in side] for side in sides]
    return sides, compare_samples(*samples)


def test_the_page_stands_alone(compared: tuple[Sides, Comparison], tmp_path: Path) -> None:
    sides, result = compared
    names = dict.fromkeys(sides[0][0].truth.image_ids.tolist(), NASTY)
    images = Images(gray_image, names)
    file = write_comparison(tmp_path, result, sides, images, title=f"A: {NASTY}; B: b")
    text = file.read_text("utf-8")
    page = Page(text)
    assert page.texts["h1"] == [f"A: {NASTY}; B: b"]
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not re.search(r"https?:|@import", text)
    assert not any("style" in attrs for _, attrs in page.elements)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    shots = [attrs for _, attrs in page.elements if attrs.get("class") == "shot"]
    assert len(shots) == text.count("data:image/jpeg") > 16
    for row in result["overall"].values():
        low, high = row["interval"]
        numbers = f"<td>{row['a']:.3f}</td><td>{row['b']:.3f}</td>"
        assert numbers in text
        assert f"<td>{row['difference']:.3f}<small>{low:.3f} to {high:.3f}</small>" in text
    assert "B is better in: AP (+" in text


def test_charts_show_differences_and_both_curves(compared: tuple[Sides, Comparison]) -> None:
    sides, result = compared
    with chart_style():
        (axes,) = comparison._differences(result).panels
        panels = comparison._curves(sides).panels
    rows = [row for row in result["overall"].values() if row["interval"]]
    assert len(rows) > 15
    assert [text.get_text() for text in axes.get_yticklabels()] == list(result["overall"])
    for place, (row, points, interval) in enumerate(
        zip(rows, axes.lines[1:], axes.collections, strict=True)
    ):
        assert (points.get_xdata(), points.get_ydata()) == ([row["difference"]], [place])
        ends = interval.get_segments()[0]
        assert ends.tolist() == [[row["interval"][0], place], [row["interval"][1], place]]
        assert points.get_color() == LIGHT.get(row["better"], LIGHT["muted"])
    reports = [report_of(case, sample_metrics(case, resamples=0, seed=0)) for (case,) in sides]
    for panel, key in zip(panels, ("0.50", "0.75"), strict=True):
        for line, report in zip(panel.lines, reports, strict=True):
            assert line.get_ydata() == pytest.approx(report["curves"]["precision"]["all"][key])
    assert [line.get_label() for line in panels[0].lines] == ["A", "B"]
    assert set(result["overall"]) <= set(METRICS)


def test_images_that_differ_equal_loops(compared: tuple[Sides, Comparison]) -> None:
    sides, _ = compared
    truth = sides[0][0].truth
    counts: list[dict[int, int]] = []
    for (case,) in sides:
        found = case.found
        counts.append({})
        for image in truth.image_ids.tolist():
            number = int((truth.image_id == image).sum())
            rows = sorted(
                np.flatnonzero(found.image_id == image).tolist(), key=lambda d: -found.scores[d]
            )
            counts[-1][image] = sum(case.positives.is_true[d] for d in rows[:number])
    a, b = counts
    groups = {group.kind: group for group in differing_images(sides)}
    assert groups["a"].total == sum(a[i] > b[i] for i in a) > 0
    assert groups["b"].total == sum(b[i] > a[i] for i in a) > 16
    ahead = sorted((b[i] - a[i] for i in a), reverse=True)
    assert [b[case.image_id] - a[case.image_id] for case in groups["b"].cases] == ahead[:16]
    for case in groups["b"].cases:
        number = int((truth.image_id == case.image_id).sum())
        told = f"of {number} objects A finds {a[case.image_id]}, B {b[case.image_id]}"
        assert case.text == told
        assert [len(part.boxes) for part in case.boxes.values()][1] <= number
        mine = sides[1][0].found.image_id == case.image_id
        best = np.sort(sides[1][0].found.scores[mine])[::-1][:number]
        assert case.boxes["raw"].scores == pytest.approx(best)
