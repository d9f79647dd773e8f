"""The report's numbers as a reader sees them."""

from collections.abc import Mapping
from typing import Any

Entry = Mapping[str, Any]
NO_VALUE = "–"


def value_of(metrics: Mapping[str, Entry], name: str) -> float:
    """A number of the report; NaN where there is none."""
    value = metrics.get(name, {}).get("value")
    return float("nan") if value is None else float(value)


def show_number(value: float | None) -> str:
    """Three decimals; a dash for None and NaN.

    Example:
      >>> show_number(0.12345), show_number(None)
      ('0.123', '–')
    """
    return NO_VALUE if value is None or value != value else f"{value:.3f}"


def show_interval(entry: Entry) -> str:
    """The interval alone, or nothing.

    Example:
      >>> show_interval({"value": 0.5, "interval": [0.4, 0.6125], "resamples": 100})
      '0.400 to 0.613'
    """
    return " to ".join(map(show_number, entry.get("interval") or ()))


def in_words(metrics: Mapping[str, Entry], name: str) -> str:
    """A number with its interval, for a sentence.

    Example:
      >>> in_words({"AP": {"value": 0.5, "interval": [0.4, 0.6]}}, "AP")
      '0.500 (0.400 to 0.600)'
    """
    entry = metrics.get(name, {})
    text, interval = show_number(entry.get("value")), show_interval(entry)
    return f"{text} ({interval})" if interval else text


def percent(part: float, whole: float) -> str:
    """
    Example:
      >>> percent(1, 3), percent(1, 0)
      ('33 %', '–')
    """
    return f"{100 * part / whole:.0f} %" if whole else NO_VALUE
