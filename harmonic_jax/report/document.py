"""The page: everything in one HTML file, which loads nothing and runs no script but its own."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from harmonic_jax.report.cases import CaseGroup
from harmonic_jax.report.numbers import percent
from harmonic_jax.report.panels import Figure, Panel
from harmonic_jax.report.pictures import MOST_BYTES, ByteBudget, Images, Picture, draw_picture
from harmonic_jax.report.style import HATCHES, SCRIPT, STYLE
from harmonic_jax.report.svg import draw_panel
from harmonic_jax.report.tables import class_table, metric_table, tiles


def page_html(
    title: str,
    report: Mapping[str, Any],
    figures: Sequence[Figure],
    groups: Sequence[CaseGroup],
    pictures: Sequence[Sequence[Picture]],
    images: Images,
    class_names: Sequence[str],
) -> str:
    """The whole page; every text from outside is escaped."""
    body = [
        _head(title, report),
        tiles(report["overall"]),
        *(_figure(figure) for figure in figures),
        _cases(groups, pictures, images, class_names),
        "<h2>All numbers</h2>",
        _intervals(report["settings"]),
        metric_table(report),
        f"<details><summary>Every class ({len(report['classes'])})</summary>"
        f"{class_table(report)}</details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{HATCHES}"
        + "\n".join(part for part in body if part)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def _policy() -> str:
    """Should a text ever get through unescaped, the browser still runs and loads nothing."""

    def allowed(content: str) -> str:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    return (
        f"default-src 'none'; img-src data:; style-src {allowed(STYLE)}; "
        f"script-src {allowed(SCRIPT)}; base-uri 'none'; form-action 'none'"
    )


def _head(title: str, report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    counts = ", ".join(
        f"{settings[f'num_{name}']:,} {name}" for name in ("images", "objects", "detections")
    )
    notes = "".join(f"<p>Note: {escape(str(note))}.</p>" for note in settings["notes"])
    choices = "".join(
        f'<label><input type="radio" name="theme" id="{key}"{checked}> {words}</label>'
        for key, words, checked in (
            ("auto", "as the device", " checked"),
            ("light", "light", ""),
            ("dark", "dark", ""),
        )
    )
    return (
        f'<header><h1>{escape(title)}</h1><p class="quiet">Consistency of scores and boxes: '
        f"{counts}.</p>{notes}<fieldset><legend><small>Colours</small></legend>{choices}"
        "</fieldset></header>"
    )


def _figure(figure: Figure) -> str:
    more = ""
    if figure.more:
        panels = f'<div class="panels">{_drawn(figure.more, "")}</div>'
        summary = f"<summary>{escape(figure.more_title)}</summary>"
        more = f'<details class="many">{summary}{panels}</details>'
    return (
        f'<section><h2>{escape(figure.title)}</h2><figure class="panels">'
        f"{_drawn(figure.panels, figure.finding)}"
        f"<figcaption><p>{escape(figure.finding)}</p>"
        f'<p class="quiet">{escape(figure.reading)}</p></figcaption></figure>{more}</section>'
    )


def _drawn(panels: Sequence[Panel], description: str) -> str:
    return "".join(f"<div>{draw_panel(panel, description)}</div>" for panel in panels)


def _cases(
    groups: Sequence[CaseGroup],
    pictures: Sequence[Sequence[Picture]],
    images: Images,
    class_names: Sequence[str],
) -> str:
    if not groups:
        return (
            "<h2>Worst cases</h2><p>There are none: no box is far from its score, none missed.</p>"
        )
    budget, parts = ByteBudget(MOST_BYTES), []
    for i, (group, row) in enumerate(zip(groups, pictures, strict=True)):
        shots = "".join(_shot(picture, images, budget) for picture in row)
        parts.append(
            f"<details{' open' if i == 0 else ''}><summary>{escape(group.title)} "
            f"({len(group.cases)} of {group.total:,})</summary><p>{escape(group.reading)}</p>"
            f'<div class="shots">{shots}</div></details>'
        )
    without = sum(picture.pixels is None for row in pictures for picture in row)
    total = sum(len(row) for row in pictures)
    notes = ""
    if without:
        notes += (
            f"<p>{percent(without, total)} of the pictures are boxes on a blank ground: their "
            "images were not at hand.</p>"
        )
    if budget.num_dropped:
        notes += (
            f"<p>{budget.num_dropped} pictures are boxes on a blank ground, so that the page stays "
            "small.</p>"
        )
    labels = sorted({picture.case.label for row in pictures for picture in row})
    options = "".join(
        f'<option value="{label}">{escape(class_names[label])}</option>' for label in labels
    )
    return (
        "<section><h2>Worst cases</h2><p>The part of the image around the boxes, worst first, at "
        f"most two of an image in a group.</p>{_KEY}{notes}"
        '<p class="filter" hidden><label>Show <select id="class"><option value="">all classes'
        f"</option>{options}</select></label></p>{''.join(parts)}</section>"
    )


def _shot(picture: Picture, images: Images, budget: ByteBudget) -> str:
    case = picture.case
    name = images.names.get(case.image_id)
    where = f"image {case.image_id}" if name is None else name
    return (
        f'<figure data-label="{case.label}">{draw_picture(picture, budget)}<figcaption>'
        f"{escape(case.text)}<br><small>{escape(where)}</small></figcaption></figure>"
    )


def _sample(kind: str) -> str:
    shape = 'd="M3 3H39V19H3z"'
    return (
        f'<svg viewBox="0 0 42 22" aria-hidden="true"><path class="rim" {shape}/>'
        f'<path class="box {kind}" {shape}/></svg>'
    )


_KEY = (
    f'<ul class="key"><li>{_sample("truth")}true object (dashed)</li>'
    f"<li>{_sample('found')}detection (solid)</li>"
    f"<li>{_sample('other')}before NMS (dotted)</li></ul>"
)


def _intervals(settings: Mapping[str, Any]) -> str:
    if not settings["resamples"]:
        return '<p class="quiet">Computed without intervals.</p>'
    confidence = f"{100 * settings['confidence']:g} %"
    return (
        f'<p class="quiet">Small numbers are {confidence} intervals: the metric over images drawn '
        "with replacement, again and again (bootstrap). They tell how far the number would move "
        "with other images of the same kind. AP and errors are means over classes.</p>"
    )
