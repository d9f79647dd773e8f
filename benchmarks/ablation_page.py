"""Writes the numbers and figures of docs/results.md anew, from the committed results alone.

    python -m benchmarks.ablation_page

The page's own words stay; what stands between `<!-- made: NAME -->` and `<!-- end -->` is made
here, and the figures in docs/results/.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.ablation_figures import draw_density, draw_gains, draw_starts
from benchmarks.ablation_grid import Grid, load_grid
from benchmarks.ablation_results import Row, paired_difference, read_results, runs_of
from benchmarks.ablation_tables import branch_table, cost_table, tables, turned_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
FIGURES = ROOT / "docs" / "results"
RESULTS = ROOT / "benchmarks" / "results"
GRIDS = {
    "voc": "voc", "voc_tuning": "voc_tuning", "voc_rtdetr": "voc_rtdetr", "starts": "starts",
    "photos": "photos",
    "rates": "scenes", "components": "scenes", "gradients": "scenes", "rivals": "scenes",
    "constants": "scenes",
}  # fmt: skip
DETECTORS = {
    "retinanet": "RetinaNet", "ssd": "SSD", "refinedet": "RefineDet", "faster-rcnn": "Faster R-CNN",
    "rtdetr": "RT-DETR",
}  # fmt: skip
DATA = {
    "voc": "On PASCAL VOC 2007",
    "scenes": "On occluded scenes",
    "bccd": "On photos of blood cells",
}
WITHOUT_FIGURES = ("rates", "voc_tuning", "voc_rtdetr", "starts")
_BLOCK = re.compile(r"(<!-- made: ([\w-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
OTHERS = {
    "branch_gradients": branch_table,
    "factor_gradients": turned_table,
    "loss_cost": cost_table,
}
NOTHING = "*Not run yet.*"
START = 300  # steps whose gradients are shown


def main() -> None:
    rows = read_all(RESULTS)
    PAGE.write_text(fill(PAGE.read_text(), rows))
    for path in draw(rows, FIGURES):
        print(f"written: {path.relative_to(ROOT)}")
    print(f"written: {PAGE.relative_to(ROOT)}")


def read_all(folder: Path) -> dict[str, list[Row]]:
    """The lines of every results file, by its name."""
    rows = {name: read_results(folder / f"{name}.jsonl") for name in {*GRIDS.values()}}
    for name in OTHERS:
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows[name] = [json.loads(line) for line in lines]
    return rows


def fill(page: str, rows: Mapping[str, Sequence[Row]]) -> str:
    """The page with every made part made anew."""

    def block(match: re.Match[str]) -> str:
        return match[1] + make(match[2], rows) + match[3]

    return _BLOCK.sub(block, page)


def make(name: str, rows: Mapping[str, Sequence[Row]]) -> str:
    """One made part: `verdict`, the table of another script, or those of a grid, by its name."""
    if name == "verdict":
        return " ".join(
            verdict(rows[GRIDS[grid]], load_named(grid)) for grid in ("voc", "components", "photos")
        ).strip()
    if name in OTHERS:
        return OTHERS[name](rows[name]) or NOTHING
    shown = [f"![{figure.words}](results/{figure.name})" for figure in figures_of(rows, name)]
    return "\n\n".join([tables(of_grid(rows, name), load_named(name)) or NOTHING, *shown])


def of_grid(rows: Mapping[str, Sequence[Row]], name: str) -> list[Row]:
    """The lines of a grid's runs; none while all that are there are of the parts' grid as well."""
    names, shared = ({run.name for run in load_named(grid).runs()} for grid in (name, "components"))
    found = [row for row in rows[GRIDS[name]] if row["name"] in names]
    own = name == "components" or any(row["name"] not in shared for row in found)
    return found if own else []


def verdict(rows: Sequence[Row], grid: Grid) -> str:
    """Whether full HarDet gained AP over the baseline: the page's first sentence on a data set.

    Where an interval has 0 in it, the sentence begins with that.
    """
    gains = {}
    for case in grid.cases:
        base, full = (runs_of(rows, case, arm) for arm in (grid.baseline, "hardet"))
        gain = paired_difference(full, base, "AP")
        if gain is not None and gain.num_seeds > 1:
            gains[case] = gain
    if not gains:
        return ""
    said: dict[int, list[str]] = {0: [], -1: [], 1: []}
    for case, gain in gains.items():
        detector = DETECTORS[case.rsplit("-", 1)[0]]
        said[gain.sign].append(f"{detector} {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
    parts = {
        0: "no gain or loss of AP is shown (the 95 % interval has 0 in it) for",
        -1: "HarDet lost AP on",
        1: "HarDet gained AP on",
    }
    text = "; ".join(f"{parts[sign]} {', '.join(names)}" for sign, names in said.items() if names)
    return f"{DATA[next(iter(gains)).rsplit('-', 1)[1]]} {text}."


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the page: its file, the words for those who do not see it, and how it is made."""

    name: str
    words: str
    draw: Callable[[Path], None]


def draw(rows: Mapping[str, Sequence[Row]], folder: Path) -> list[Path]:
    """Writes all figures for which there are results."""
    written = []
    for figure in (figure for name in GRIDS for figure in figures_of(rows, name)):
        figure.draw(folder / figure.name)
        written.append(folder / figure.name)
    return written


def figures_of(rows: Mapping[str, Sequence[Row]], name: str) -> list[Figure]:
    """The figures of a grid for which there are results."""
    found, grid = of_grid(rows, name), load_named(name)
    if not found or name in WITHOUT_FIGURES:
        return []
    words = f"{grid.title}: differences to {grid.baseline} with 95 % intervals"
    figures = [Figure(f"{name}.png", words, partial(draw_gains, found, grid))]
    for case in grid.cases:
        arms = [arm for arm in grid.arms if runs_of(found, case, arm)]
        if name == "components" and {"baseline", "hardet"} <= {*arms}:
            pair = ["baseline", "hardet"]
            words = f"{case}: where detections lie by score and IoU, baseline and HarDet"
            path = f"density-{case}.png"
            figures.append(Figure(path, words, partial(draw_density, found, case, pair)))
        if name == "gradients" and arms:
            words = f"{case}: gradient norms of the first {START} steps"
            path = f"starts-{case}.png"
            draws = partial(draw_starts, found, case, arms, steps=START)
            figures.append(Figure(path, words, draws))
    return figures


def load_named(name: str) -> Grid:
    return load_grid(ROOT / "benchmarks" / "grids" / f"{name}.py")


if __name__ == "__main__":
    main()
