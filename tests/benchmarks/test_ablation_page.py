"""docs/results.md is what its committed results make it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_page import (
    DETECTORS,
    FIGURES,
    GRIDS,
    NOTHING,
    OTHERS,
    PAGE,
    RESULTS,
    draw,
    fill,
    load_named,
    make,
    read_all,
    verdict,
)
from tests.benchmarks.test_ablation import row

GRID = Grid(
    title="Parts",
    cases={"ssd-scenes": ("a.py",), "retinanet-scenes": ("b.py",)},
    arms={"baseline": (), "hardet": ("--x",)},
    baseline="baseline",
    seeds=(0, 1),
)


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    return read_all(RESULTS)


def test_the_page_is_made_of_the_results(rows: dict[str, Any]) -> None:
    assert fill(PAGE.read_text(), rows) == PAGE.read_text()


def test_the_page_has_every_grid() -> None:
    made = re.findall(r"<!-- made: ([\w-]+) -->", PAGE.read_text())
    assert made[0] == "verdict"
    assert set(made[1:]) == {*GRIDS, *OTHERS}


def test_the_page_begins_with_the_numbers_of_voc(rows: dict[str, Any]) -> None:
    title, first, printed, ssd, refinedet, *_ = PAGE.read_text().split("\n\n")
    assert title == "# Does HarDet help?"
    assert first.startswith("On PASCAL VOC 2007 `test`, HarDet")
    runs: dict[tuple[str, str], dict[int, Any]] = {}
    for line in rows["voc"]:
        runs.setdefault((line["case"], line["arm"]), {})[line["seed"]] = line["metrics"]

    def means(case: str, arm: str, metric: str) -> list[float]:
        """Without HarDet and with it, over the seeds of both."""
        pair = runs[case, "baseline"], runs[case, arm]
        return [np.mean([run[s][metric] for s in pair[0].keys() & pair[1].keys()]) for run in pair]

    for words, case, arm, metrics in (
        (first, "retinanet-voc", "hardet-balanced", ("AP", "AP50", "AP75")),
        (printed, "retinanet-voc", "hardet", ("AP50", "AP75")),
        (ssd, "ssd-voc", "hardet", ("AP", "AP50", "AP75")),
        (refinedet, "refinedet-voc", "hardet", ("AP", "AP50", "AP75")),
    ):
        assert all(f"{ap:.3f}"[1:] in words for ap in means(case, arm, "AP"))
        for metric in metrics:
            assert f"{abs(np.subtract(*means(case, arm, metric))):.3f}"[1:] in words


def test_the_section_of_rtdetr_has_its_numbers(rows: dict[str, Any]) -> None:
    section = PAGE.read_text().split("### RT-DETR\n")[1].split("<!-- made")[0]
    assert rows["voc_rtdetr"]
    for line in rows["voc_rtdetr"]:
        assert f"{line['metrics']['AP']:.3f}"[1:] in section
        assert f"{line['metrics']['pearson']:.2f}"[1:] in section


def test_every_figure_is_shown_and_made_of_the_results(
    rows: dict[str, Any], tmp_path: Path
) -> None:
    made = {path.name for path in draw(rows, tmp_path)}
    assert made == {path.name for path in FIGURES.glob("*.png")}
    shown = set(re.findall(r"\(results/([\w-]+\.png)\)", PAGE.read_text()))
    assert shown == made


def test_every_line_of_the_results_is_of_a_grid(rows: dict[str, Any]) -> None:
    for results in {*GRIDS.values()}:
        found = rows[results]
        names = {
            run.name
            for grid, file in GRIDS.items()
            if file == results
            for run in load_named(grid).runs()
        }
        assert {line["name"] for line in found} <= names
        assert {case.rsplit("-", 1)[0] for case in (line["case"] for line in found)} <= {*DETECTORS}


def test_a_grid_whose_own_arms_have_no_run_shows_nothing() -> None:
    """Baseline and HarDet are runs of many grids; alone they are no result of the rivals."""
    shared = [row(arm, 0, 0.3, case="retinanet-scenes") for arm in ("baseline", "hardet")]
    own = row("giou", 0, 0.3, case="retinanet-scenes")
    for line in (*shared, own):
        line["name"] = f"retinanet-scenes-{line['arm']}-seed0"
    assert make("rivals", {"scenes": shared}) == NOTHING
    assert "| giou | 1 |" in make("rivals", {"scenes": [*shared, own]})
    assert "| hardet | 1 |" in make("components", {"scenes": shared})


def test_the_verdict_names_what_is_not_shown_first() -> None:
    def lines(case: str, baseline: list[float], hardet: list[float]) -> list[dict[str, Any]]:
        return [
            row(arm, seed, ap, case=case)
            for arm, values in (("baseline", baseline), ("hardet", hardet))
            for seed, ap in enumerate(values)
        ]

    found = lines("ssd-scenes", [0.3, 0.4], [0.32, 0.42])
    assert verdict(found, GRID) == (
        "On occluded scenes HarDet gained AP on SSD +0.020 [+0.020, +0.020]."
    )
    found += lines("retinanet-scenes", [0.3, 0.4], [0.35, 0.39])
    assert re.match(
        r"On occluded scenes no gain or loss of AP is shown \(the 95 % interval has 0 in it\) for "
        r"RetinaNet \+0\.020 \[-0\.\d+, \+0\.\d+\]; HarDet gained AP on SSD",
        verdict(found, GRID),
    )
    assert verdict(found[:2], GRID) == ""
