"""The consistency report as one HTML page that opens anywhere, and as PNGs."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harmonic_jax.files import write_text
from harmonic_jax.metrics.consistency import METRICS, spoken
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.report.boxes import encode_jpeg
from harmonic_jax.report.cases import CaseGroup, worst_cases
from harmonic_jax.report.charts import Chart, make_charts
from harmonic_jax.report.numbers import percent, show_interval, show_number
from harmonic_jax.report.pictures import Images, Picture, save_contact_sheet, take_pictures
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
    pictures = take_pictures(groups, images)
    with chart_style(names):
        charts = make_charts(study, report)
        html = _render(
            title=title,
            class_names=names,
            charts=[_drawn(chart) for chart in charts],
            **_cases(groups, pictures, images),
            **_numbers(report),
        )
        # Names may hold control characters, and what UTF-8 cannot say.
        write_text(files[0], printable(html))
        for chart in charts if pngs else ():
            files.append(folder / f"{chart.name}.png")
            save_panels(files[-1], chart.panels)
    if pngs and any(picture.pixels is not None for row in pictures for picture in row):
        files.append(folder / CONTACT_SHEET)
        worst = [picture for row in pictures for picture in row[:_OF_EACH_GROUP]]
        save_contact_sheet(files[-1], worst, names)
    return files


def _render(**context: Any) -> str:
    """`page.html`, filled in; it escapes every text."""
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
        "number": lambda entry: show_number(entry.get("value")),
        "interval": show_interval,
    }
    colors = {"light": (LIGHT, RAMP), "dark": (DARK, DARK_RAMP)}
    return environment.get_template("page.html").render(colors=colors, metrics=METRICS, **context)


def _drawn(chart: Chart) -> dict[str, Any]:
    """A chart with its panels as SVG."""
    panels = [
        svg_of(axes, chart.finding, f"{chart.name}-{i}-") for i, axes in enumerate(chart.panels)
    ]
    more = [svg_of(axes, "", f"{chart.name}-more-{i}-") for i, axes in enumerate(chart.more)]
    return {**vars(chart), "panels": panels, "more": more}


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


def _cases(
    groups: Sequence[CaseGroup], pictures: Sequence[Sequence[Picture]], images: Images
) -> dict[str, Any]:
    """The worst cases as the page shows them, in pictures as long as the page stays small."""
    left, counts = MOST_BYTES, Counter[str]()
    shown = []
    for group, row in zip(groups, pictures, strict=True):
        shots = []
        for picture in row:
            uri = ""
            if picture.pixels is None:
                counts["without"] += 1
            else:
                data = base64.b64encode(encode_jpeg(picture.pixels, quality=_QUALITY)).decode()
                if len(data) <= left:
                    left -= len(data)
                    uri = f"data:image/jpeg;base64,{data}"
                else:
                    counts["dropped"] += 1
            case = picture.case
            name = images.names.get(case.image_id, f"image {case.image_id}")
            shots.append({"case": case, "name": name, "uri": uri, **_shapes(picture)})
        shown.append((group, shots))
    total = sum(map(len, pictures))
    notes = []
    if counts["without"]:
        notes.append(
            f"{percent(counts['without'], total)} of the pictures are boxes on a blank ground: "
            "their images were not at hand."
        )
    if counts["dropped"]:
        notes.append(
            f"{counts['dropped']} pictures are boxes on a blank ground, so that the page stays "
            "small."
        )
    labels = sorted({picture.case.label for row in pictures for picture in row})
    return {"groups": shown, "picture_notes": notes, "labels": labels}


def _shapes(picture: Picture) -> dict[str, Any]:
    """The size of a picture in pixels of its image, and its boxes as kinds and SVG paths."""
    left, top, right, bottom = picture.window
    paths = []
    for outline in picture.case.outlines:
        x1, y1, x2, y2 = (outline.box - [left, top, left, top]).tolist()
        paths.append((outline.kind, f"M{x1:.1f} {y1:.1f}H{x2:.1f}V{y2:.1f}H{x1:.1f}z"))
    return {"width": right - left, "height": bottom - top, "paths": paths}
