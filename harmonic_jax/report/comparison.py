"""Two detectors on one page: differences with intervals, curves, and images they differ on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harmonic_jax.files import write_text
from harmonic_jax.metrics.coco import RECALLS
from harmonic_jax.metrics.consistency.compare import Comparison, sentence
from harmonic_jax.metrics.consistency.report import ALL, precision_tables
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.matching import rank_in_runs
from harmonic_jax.metrics.tables import DetectionTable, take_rows
from harmonic_jax.report.boxes import LabelledBoxes
from harmonic_jax.report.cases import NUM_CASES, Case, CaseGroup, Images, add_pictures
from harmonic_jax.report.charts import Chart, curves_panel
from harmonic_jax.report.page import drawn, pictures_of, render
from harmonic_jax.report.plots import LINES, add_legend, chart_style, new_axes, set_rows
from harmonic_jax.terminal import printable

Sides = Sequence[Sequence[Study]]


def write_comparison(
    folder: Path, result: Comparison, sides: Sides, images: Images, *, title: str
) -> Path:
    """Writes comparison.html, a page like that of `write_page`, and returns its path.

    Args:
      folder: made if absent; a page in it is replaced.
      result: of `compare_samples`, of the same studies.
      sides: the runs of A and of B, of one ground truth.
      images, title: as of `write_page`, which raises the same.
    """
    groups = differing_images(sides)
    add_pictures(groups, images)
    with chart_style():
        charts = {"differences": _differences(result), "precision_recall": _curves(sides)}
        html = render(
            "comparison.html",
            title=title,
            report=result,
            sentence=sentence(result),
            charts={name: drawn(name, chart) for name, chart in charts.items()},
            **pictures_of(groups, images) | {"labels": []},
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "comparison.html"
    write_text(file, printable(html))
    return file


def _differences(result: Comparison) -> Chart:
    """B - A of every number that has an interval."""
    rows = {name: row for name, row in result["overall"].items() if row["interval"]}
    axes = new_axes("B - A", height=0.8 + 0.24 * len(rows))
    set_rows(axes, list(rows))
    axes.axvline(0.0, **LINES["guide"])
    for place, row in enumerate(rows.values()):
        series = row["better"] if row["better"] in LINES else "guide"
        marker, color = {"a": "o", "b": "s"}.get(series, "d"), LINES[series]["color"]
        axes.hlines(place, *row["interval"], color=color)
        axes.plot(row["difference"], place, marker, color=color)
    return Chart((axes,))


def _curves(sides: Sides) -> Chart:
    """The means over classes and over the runs of a side."""
    tables = [[precision_tables(study)[ALL] for study in side] for side in sides]
    panels = []
    for key in ("0.50", "0.75"):
        a, b = (np.mean([np.array(t[key], float) for t in side], axis=0) for side in tables)
        panels.append(curves_panel(f"IoU {key[1:]}", RECALLS, {"A": a, "B": b}))
        add_legend(panels[-1])
    return Chart(panels)


def differing_images(sides: Sides) -> list[CaseGroup]:
    """The 16 images in which A finds most objects more than B, and the reverse, without pictures.

    Of each image as many boxes count as it has objects, the best by score; a box finds an object
    that it takes at IoU .5. Of several runs a side the first is looked at.
    """
    (a, best_a), (b, best_b) = (_found_first(side[0]) for side in sides)
    truth, positives, overlaps = sides[0][0].truth, sides[0][0].positives, sides[0][0].overlaps
    groups = []
    for kind, ahead in (("a", a - b), ("b", b - a)):
        cases, places = [], np.argsort(-ahead, kind="stable")[: (ahead > 0).sum()]
        for place in places[:NUM_CASES].tolist():
            image_id = int(truth.image_ids[place])
            rows = np.flatnonzero((overlaps.object_image == place) & positives.is_counted)
            boxes = {"truth": LabelledBoxes(truth.boxes[rows], truth.labels[rows])}
            for name, best in (("found", best_a), ("raw", best_b)):  # as the page draws A and B
                here = take_rows(best, best.image_id == image_id)
                boxes[name] = LabelledBoxes(here.boxes, here.labels, here.scores)
            text = f"of {len(rows)} objects A finds {a[place]:.0f}, B {b[place]:.0f}"
            cases.append(Case(image_id, -1, text, boxes))
        groups.append(CaseGroup(kind, len(places), cases))
    return [group for group in groups if group.total]


def _found_first(study: Study) -> tuple[np.ndarray, DetectionTable]:
    """Objects that its best boxes find in each image, [images], and these boxes."""
    positives, image, num_images = study.positives, study.overlaps.image, len(study.truth.image_ids)
    objects = study.overlaps.object_image[positives.is_counted]
    rows = np.lexsort((-study.found.scores, image))
    rows = rows[(positives.is_true | positives.is_false)[rows]]
    limit = np.bincount(objects, minlength=num_images)[image[rows]]
    rows = rows[rank_in_runs(image[rows]) < limit]
    found = np.bincount(image[rows], positives.is_true[rows], num_images)
    return found, take_rows(study.found, rows)
