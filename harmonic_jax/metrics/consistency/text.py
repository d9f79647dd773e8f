"""The report as text, for a terminal."""

from collections.abc import Mapping
from typing import Any

from harmonic_jax.metrics.consistency.names import METRICS
from harmonic_jax.terminal import column_width, padded

Entries = Mapping[str, Mapping[str, Any]]

_OF_CLASSES = ("AP", "pearson", "mean_gap", "over_margin", "LaECE", "oLRP", "nms_mean_loss")


def format_report(report: Mapping[str, Any]) -> str:
    """All of it: the overall part, then area ranges and classes, a column each of the main numbers.

    Args:
      report: as `consistency_report` returns it.
    """
    parts = [format_overall(report)]
    for section, title in (("areas", "by COCO's area ranges"), ("classes", "by class")):
        parts.append(_table(title, report[section], report["counts"][section]))
    return "\n\n".join(parts)


def format_overall(report: Mapping[str, Any]) -> str:
    """The numbers of the whole data set with their intervals, and the notes."""
    settings = report["settings"]
    left_out = settings["num_ignored"] + settings["num_over_limit"]
    lines = [
        f"{settings['num_images']} images, {settings['num_objects']} objects, "
        f"{settings['num_detections']} detections, {left_out} of them left out "
        f"({settings['num_ignored']} on ignored objects, {settings['num_over_limit']} beyond the "
        "best 100 of an image and class)"
    ]
    if settings["num_raw"] is not None:
        lines.append(f"{settings['num_raw']} boxes before NMS")
    lines.append(_about_intervals(report))
    group = ""
    width = max(len(metric.title) for metric in METRICS.values()) + 2
    for name, entry in report["overall"].items():
        metric = METRICS[name]
        if metric.group != group:
            group = metric.group
            lines += ["", group]
        lines.append(f"  {metric.title:{width}}{_cell(name, entry)}")
    if settings["notes"]:
        lines += ["", *(f"note: {note}" for note in settings["notes"])]
    return "\n".join(lines)


def _about_intervals(report: Mapping[str, Any]) -> str:
    """How they were made; metrics that sort every resample may have fewer of them."""
    settings, entries = report["settings"], report["overall"].values()
    most = settings["resamples"]
    if most == 0:
        return "no intervals: no resamples"
    text = f"[low, high]: {100 * settings['confidence']:g} % interval over images, {most} resamples"
    fewest = min(entry["resamples"] for entry in entries)
    if fewest < most:
        text += f" ({fewest} for AP, Spearman, LRP and the gains of errors)"
    return text


def number(name: str, value: float | None) -> str:
    """A number as it is shown: counts without decimals, the rest with three.

    Example:
      >>> number("AP", 0.12345), number("num_both", 12.0), number("AP", None)
      ('0.123', '12', '-')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if name.startswith("num_") else f"{value:.3f}"


def _cell(name: str, entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return f"{'-':>8}  ({entry['reason']})"
    text = f"{number(name, entry['value']):>8}"
    if entry["interval"] is not None:
        low, high = entry["interval"]
        text += f"  [{number(name, low)}, {number(name, high)}]"
    return text


def _table(title: str, rows: Mapping[str, Entries], counts: Mapping[str, Any]) -> str:
    present = [name for name in _OF_CLASSES if any(name in row for row in rows.values())]
    width = column_width(rows, heading=title) + 2
    heads = ["objects", "boxes", *present]
    lines = [f"{title:{width}}" + "".join(f"{head:>{_wide(head)}}" for head in heads)]
    for name, entries in rows.items():
        cells = [str(counts[name]["objects"]), str(counts[name]["detections"])]
        cells += [number(key, entries[key]["value"]) for key in present]
        pairs = zip(heads, cells, strict=True)
        cells = [f"{cell:>{_wide(head)}}" for head, cell in pairs]
        lines.append(padded(name, width) + "".join(cells))
    return "\n".join(lines)


def _wide(head: str) -> int:
    return max(9, len(head) + 2)
