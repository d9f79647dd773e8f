"""The report's numbers as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from harmonic_jax.metrics.consistency import METRICS, Metric, spoken
from harmonic_jax.report.numbers import Entry, show_interval, show_number

_ARROWS = {"higher": ("↑", "more is better"), "lower": ("↓", "less is better"), "neither": ("", "")}
_TILES = ("AP", "spearman", "mean_gap", "LaECE", "AP_headroom", "nms_mean_loss")
_OF_CLASSES = (
    "AP", "AP50", "AP75", "spearman", "mean_gap", "high_score_low_iou", "LaECE", "oLRP",
    "AP_headroom", "dAP_missed",
)  # fmt: skip


def tiles(overall: Mapping[str, Entry]) -> str:
    """The first numbers to look at, each with its interval."""
    items = [
        f"<li><span>{escape(METRICS[name].title)} {_arrow(METRICS[name])}</span>"
        f"<b>{show_number(overall[name]['value'])}</b>"
        f"<small>{escape(show_interval(overall[name]) or 'no interval')}</small></li>"
        for name in _TILES
        if name in METRICS and overall.get(name, {}).get("value") is not None
    ]
    return f'<ul class="tiles">{"".join(items)}</ul>' if items else ""


def metric_table(report: Mapping[str, Any]) -> str:
    """Every metric, for all sizes and for each area range."""
    columns: dict[str, Mapping[str, Entry]] = {"all": report["overall"], **report["areas"]}
    rows, group = [], ""
    for name, metric in METRICS.items():
        entries = [column.get(name, {}) for column in columns.values()]
        if not any(entries):
            continue
        if metric.group != group:
            group = metric.group
            rows.append(
                f'<tr><th class="group" colspan="{len(columns) + 1}" scope="rowgroup">'
                f"{escape(group)}</th></tr>"
            )
        cells = "".join(_cell(entry) for entry in entries)
        rows.append(f'<tr><th scope="row">{escape(metric.title)} {_arrow(metric)}</th>{cells}</tr>')
    table = _table("All numbers, by size of the objects", ("", *columns), rows)
    return table + _reasons(entry for column in columns.values() for entry in column.values())


def class_table(report: Mapping[str, Any]) -> str:
    """The main metrics of every class."""
    classes: Mapping[str, Mapping[str, Entry]] = report["classes"]
    names = [name for name in _OF_CLASSES if any(name in row for row in classes.values())]
    counts: Mapping[str, Mapping[str, int]] = report["counts"]["classes"]
    heads = ["class", "objects", "boxes"]
    heads += [spoken(name) for name in names]
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td>{counts[name]["objects"]:,}</td>'
        f"<td>{counts[name]['detections']:,}</td>"
        + "".join(_cell(row.get(metric, {})) for metric in names)
        + "</tr>"
        for name, row in classes.items()
    ]
    return _table("Numbers of every class", heads, rows)


def _table(name: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(name)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(entry: Entry) -> str:
    interval = show_interval(entry)
    small = f"<small>{escape(interval)}</small>" if interval else ""
    return f"<td>{show_number(entry.get('value'))}{small}</td>"


def _arrow(metric: Metric) -> str:
    sign, words = _ARROWS[metric.better]
    if not sign:
        return ""
    return f'<span role="img" aria-label="{words}" title="{words}">{sign}</span>'


def _reasons(entries: Any) -> str:
    """Why some places hold a dash, each reason once."""
    reasons = sorted({entry["reason"] for entry in entries if entry.get("reason")})
    if not reasons:
        return ""
    return (
        f'<p class="quiet">A dash stands where there is no value: {escape("; ".join(reasons))}.</p>'
    )
