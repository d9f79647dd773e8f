"""The consistency report as one HTML page that opens anywhere, and as PNGs."""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.files import write_text
from harmonic_jax.metrics.consistency import METRICS, spoken
from harmonic_jax.metrics.consistency.report import number
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.report.boxes import encode_jpeg
from harmonic_jax.report.cases import (
    Case,
    CaseGroup,
    Images,
    add_pictures,
    save_contact_sheet,
    worst_cases,
)
from harmonic_jax.report.charts import Chart, make_charts
from harmonic_jax.report.plots import (
    DARK,
    DARK_RAMP,
    LIGHT,
    RAMP,
    chart_style,
    save_panels,
    svg_of,
)
from harmonic_jax.terminal import printable

PAGE = "consistency.html"
CONTACT_SHEET = "worst_cases.png"
CHARTS = ("score_iou", "reliability", "head_room", "precision_recall", "classes", "errors")
MOST_BYTES = 5_500_000  # of all pictures of a page, as they stand in it
_QUALITY = 82
_OF_EACH_GROUP = 3  # on the contact sheet
_TILES = ("AP", "spearman", "mean_gap", "LaECE", "AP_headroom", "nms_mean_loss")
_OF_CLASSES = (
    "AP", "AP50", "AP75", "spearman", "mean_gap", "high_score_low_iou", "LaECE", "oLRP",
    "AP_headroom", "dAP_missed",
)  # fmt: skip


def write_page(
    folder: str | Path,
    study: Study,
    report: Mapping[str, Any],
    images: Images | None = None,
    *,
    title: str = "Consistency report",
    pngs: bool = True,
) -> list[Path]:
    """Writes consistency.html, and PNGs of its charts beside it.

    The page is one file: charts are SVG, pictures are small JPEGs inside it; it stays under 8 MB
    for any data set, needs no network and no script, and is light or dark as the reader's device.

    Args:
      folder: made if absent; files of an earlier page are replaced.
      study: the tables and matchings.
      report: the numbers of the same study (`harmonic_jax.metrics.consistency.report`).
      images: where pictures of the worst cases come from; None: boxes on a blank ground.
      title: of the page.
      pngs: write the charts and the worst cases as PNGs too.

    Returns:
      The files written, the page first.

    Raises:
      OSError: a file cannot be written.
      ValueError: `images` gives something that is no uint8 RGB image.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / PAGE]
    for name in (*(f"{chart}.png" for chart in CHARTS), CONTACT_SHEET):
        (folder / name).unlink(missing_ok=True)  # one that this report has no use for
    images = images or Images()
    names = study.truth.class_names
    groups = worst_cases(study)
    add_pictures(groups, images)
    with chart_style(names):
        charts = make_charts(study, report)
        html = render(
            "page.html",
            title=title,
            class_names=names,
            charts={name: drawn(name, chart) for name, chart in charts.items()},
            **pictures_of(groups, images),
            **_numbers(report),
        )
        # Names may hold control characters, and what UTF-8 cannot say.
        write_text(files[0], printable(html))
        for name, chart in charts.items() if pngs else ():
            files.append(folder / f"{name}.png")
            save_panels(files[-1], chart.panels)
    if pngs and any(case.pixels is not None for group in groups for case in group.cases):
        files.append(folder / CONTACT_SHEET)
        worst = [case for group in groups for case in group.cases[:_OF_EACH_GROUP]]
        save_contact_sheet(files[-1], worst, names)
    return files


def render(page: str, **context: Any) -> str:
    """A template of this folder, filled in; it escapes every text."""
    colors = {"light": (LIGHT, RAMP), "dark": (DARK, DARK_RAMP)}
    return _template(page).render(colors=colors, metrics=METRICS, spoken=spoken, **context)


@functools.cache
def _template(page: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "digest": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "thousands": lambda count: f"{count:,}",
        "number": number,
        "percent": lambda part, whole: f"{100 * part / whole:.0f} %" if whole else number(None),
    }
    return environment.get_template(page)


def drawn(name: str, chart: Chart) -> dict[str, Any]:
    """What the page needs of a chart: its panels as SVG."""
    finding = f"{name}-finding"  # the id of the words that tell it
    panels = [svg_of(axes, finding, f"{name}-{i}-") for i, axes in enumerate(chart.panels)]
    more = [svg_of(axes, finding, f"{name}-more-{i}-") for i, axes in enumerate(chart.more)]
    return {**chart.facts, "panels": panels, "more": more, "num_classes": chart.num_classes}


def _numbers(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's tables are made of."""
    overall, classes = report["overall"], report["classes"]
    columns = {"all": overall, **report["areas"]}
    groups: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        if any(name in column for column in columns.values()):
            groups.setdefault(metric.group, []).append(name)
    entries = [entry for column in columns.values() for entry in column.values()]
    return {
        "report": report,
        "columns": columns,
        "metric_groups": groups,
        "tiles": [name for name in _TILES if overall.get(name, {}).get("value") is not None],
        "of_classes": {
            name: spoken(name)
            for name in _OF_CLASSES
            if any(name in entries for entries in classes.values())
        },
        "reasons": sorted({entry["reason"] for entry in entries if entry.get("reason")}),
    }


def pictures_of(groups: Sequence[CaseGroup], images: Images) -> dict[str, Any]:
    """Cases as a page shows them, in pictures as long as the page stays small."""
    cases, left = [case for group in groups for case in group.cases], MOST_BYTES
    uris: dict[Case, str] = {}
    for case in cases:
        if case.pixels is not None:
            data = base64.b64encode(encode_jpeg(case.pixels, quality=_QUALITY)).decode()
            if len(data) <= left:
                left -= len(data)
                uris[case] = f"data:image/jpeg;base64,{data}"
    num_without = sum(case.pixels is None for case in cases)
    return {
        "groups": groups,
        "names": images.names,
        "uris": uris,
        "paths_of": _paths,
        "num_cases": len(cases),
        "num_without": num_without,
        "num_dropped": len(cases) - num_without - len(uris),
        "labels": sorted({case.label for case in cases}),
    }


def _paths(case: Case) -> list[tuple[str, str]]:
    """The boxes of a case, as kinds and SVG paths in pixels of its window."""
    left, top, _, _ = case.window
    return [
        (kind, f"M{x1:.1f} {y1:.1f}H{x2:.1f}V{y2:.1f}H{x1:.1f}z")
        for kind, objects in case.boxes.items()
        for x1, y1, x2, y2 in (objects.boxes - [left, top, left, top]).tolist()
    ]
