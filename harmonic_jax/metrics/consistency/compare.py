"""Two detectors on the same images, number by number, with intervals of the differences.

The resamples of both take the same images, so what an easy or a hard image does to both of them
cancels out. The dict is JSON-able; its keys:

  version     1
  settings    num_images, runs_a, runs_b, resamples, seed, confidence
  overall     {metric: row}
  areas       {"small" | "medium" | "large": {metric: row}}
  classes     {class name: {metric: row}}
  summary     of "overall": compared (numbers with an interval), significant (of them), by_chance
              (how many of so many would be by chance alone), better_a, better_b (metrics)

  row         {"a", "b": mean over the runs, "spread_a", "spread_b": standard deviation over the
              runs, None for a single one, "values_a", "values_b": of each run, "difference": b - a,
              "interval": [low, high], "significant": whether that excludes 0, "better": "a" | "b" |
              "neither"}; None for what has no value
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonic_jax.metrics.consistency import METRICS, lines_of, spoken
from harmonic_jax.metrics.consistency.report import number
from harmonic_jax.metrics.consistency.sampling import (
    CONFIDENCE,
    OVERALL,
    Samples,
    by_section,
    percentile_interval,
)

VERSION = 1
Comparison = dict[str, Any]


def compare_samples(a: Sequence[Samples], b: Sequence[Samples]) -> Comparison:
    """Compares one or more runs with one or more others.

    With several runs a side, a resample also draws the runs of that side anew, with replacement:
    the interval then holds what another seed would change as far as these few runs show it.

    Args:
      a: the runs of one side.
      b: those of the other; all of one ground truth, sampled with one seed.

    Raises:
      ValueError: a side is empty, or the samples do not belong together.
    """
    samples = [*a, *b]
    if not a or not b:
        raise ValueError(f"there are {len(a)} runs on one side and {len(b)} on the other")
    first = samples[0]
    for other in samples[1:]:
        if (other.num_images, other.seed) != (first.num_images, first.seed):
            raise ValueError("the runs were sampled on other images, or with another seed")
        if other.values.keys() != first.values.keys():
            raise ValueError("the runs know other classes")
    rows = {
        place: {
            metric: _row(metric, *([run.values[place][metric] for run in side] for side in (a, b)),
                         seed=first.seed)
            for metric in METRICS
            if all(metric in run.values[place] for run in samples)
        }
        for place in first.values
    }  # fmt: skip
    settings = {
        "num_images": first.num_images,
        "runs_a": len(a),
        "runs_b": len(b),
        "resamples": min(run.resamples for run in samples),
        "seed": first.seed,
        "confidence": CONFIDENCE,
    }
    summary = _summary(rows[OVERALL, ""])
    return {"version": VERSION, **by_section(rows), "settings": settings, "summary": summary}


def _row(metric: str, a: list[np.ndarray], b: list[np.ndarray], *, seed: int) -> dict[str, Any]:
    length = min(len(values) for values in (*a, *b))
    side_a, side_b = (np.stack([values[:length] for values in side]) for side in (a, b))
    row: dict[str, Any] = {}
    for name, side in (("a", side_a), ("b", side_b)):
        own = side[:, 0]
        defined = bool(np.isfinite(own).all())
        row[name] = float(own.mean()) if defined else None
        row[f"spread_{name}"] = float(own.std(ddof=1)) if defined and len(own) > 1 else None
        row[f"values_{name}"] = [float(v) if np.isfinite(v) else None for v in own]
    row |= {"difference": None, "interval": None, "significant": None, "better": None}
    if row["a"] is None or row["b"] is None:
        return row
    row["difference"] = row["b"] - row["a"]
    rng = np.random.default_rng(seed + 1)
    drawn = _draw_runs(side_b[:, 1:], rng) - _draw_runs(side_a[:, 1:], rng)
    interval = percentile_interval(drawn)
    if interval is None:
        return row
    low, high = interval
    is_significant = low > 0.0 or high < 0.0
    row |= {"interval": [low, high], "significant": is_significant, "better": "neither"}
    if is_significant and METRICS[metric].better != "neither":
        row["better"] = "b" if (low > 0.0) == (METRICS[metric].better == "higher") else "a"
    return row


def _draw_runs(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[runs, resamples] -> [resamples], the mean of as many runs, drawn anew at each resample."""
    runs, resamples = samples.shape
    chosen = rng.integers(0, runs, (runs, resamples))
    mean: np.ndarray = np.take_along_axis(samples, chosen, axis=0).mean(axis=0)
    return mean


def _summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    compared = [name for name, row in rows.items() if row["interval"] is not None]
    return {
        "compared": len(compared),
        "significant": sum(bool(rows[name]["significant"]) for name in compared),
        "by_chance": (1.0 - CONFIDENCE) * len(compared),
        "better_a": [name for name in compared if rows[name]["better"] == "a"],
        "better_b": [name for name in compared if rows[name]["better"] == "b"],
    }


def format_comparison(result: Comparison, *, names: tuple[str, str] = ("A", "B")) -> str:
    """The overall numbers side by side, and in words which differences are significant."""
    settings = result["settings"]
    cells = {name: _cells(row) for name, row in result[OVERALL].items()}
    lines = [
        f"A: {names[0]} ({_runs(settings['runs_a'])})",
        f"B: {names[1]} ({_runs(settings['runs_b'])})",
        f"{settings['num_images']} images; [low, high]: {100 * settings['confidence']:g} % interval"
        " of the difference, the same images drawn for both; *: it excludes 0",
        *lines_of(cells, head=f"{'A':>16}{'B':>16}{'B - A':>9}"),
    ]
    return "\n".join([*lines, "", sentence(result)])


def _cells(row: dict[str, Any]) -> str:
    """A and B, each with its spread, the difference, and whether it is significant."""
    text = "".join(f"{_with_spread(row, side):>16}" for side in "ab")
    text += f"{_signed(row['difference']):>9}"
    if row["interval"] is None:
        return text
    low, high = (_signed(value) for value in row["interval"])
    return f"{text}  [{low}, {high}]{' *' if row['significant'] else ''}"


def sentence(result: Comparison) -> str:
    """What is significant, how much of it chance would give, and what the interval knows of."""
    summary, settings = result["summary"], result["settings"]
    if not summary["compared"]:
        return "Nothing could be compared: without resamples there are no intervals."
    parts = [
        f"Of {summary['compared']} numbers compared, {summary['significant']} differ significantly "
        f"(the {100 * settings['confidence']:g} % interval of the difference excludes 0); if the "
        f"two were equally good, about {summary['by_chance']:.0f} would by chance."
    ]
    for side in "ab":
        better = summary[f"better_{side}"]
        if better:
            rows = {spoken(name): result[OVERALL][name]["difference"] for name in better}
            told = "; ".join(f"{name} ({_signed(value)})" for name, value in rows.items())
            parts.append(f"{side.upper()} is better in: {told}.")
    fewest = min(settings["runs_a"], settings["runs_b"])
    if fewest == 1:
        parts.append(
            "At least one side is a single run: how much another seed would change it is not in "
            "the intervals."
        )
    elif fewest < 5:
        parts.append("With fewer than 5 runs a side, the intervals understate what seeds change.")
    return " ".join(parts)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs, mean ± standard deviation"


def _with_spread(row: dict[str, Any], side: str) -> str:
    text = number(row[side])
    spread = row[f"spread_{side}"]
    return text if spread is None else f"{text} ± {number(spread)}"


def _signed(value: float | None) -> str:
    text = number(value)
    return f"+{text}" if value is not None and not text.startswith("-") else text
