"""Tables of a grid's results, in Markdown."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_results import (
    METRICS,
    VOC_METRICS,
    Difference,
    Row,
    paired_difference,
    runs_of,
)


def tables(rows: Sequence[Row], grid: Grid) -> str:
    """Of each case the values of every arm, and the differences to the baseline and references."""
    parts = []
    for case in grid.cases:
        if any(row["case"] == case for row in rows):
            parts += [f"**{case}**", values_table(rows, grid, case)]
            references = (grid.baseline, *grid.references)
            parts += [gains_table(rows, grid, case, reference) for reference in references]
    return "\n\n".join(part for part in parts if part)


def values_table(rows: Sequence[Row], grid: Grid, case: str) -> str:
    """Mean and standard deviation over seeds; runs that diverged are listed, not averaged."""
    of_case = [row for row in rows if row["case"] == case]
    has_voc = any("VOC07_mAP" in row.get("metrics", {}) for row in of_case)
    metrics = METRICS | VOC_METRICS if has_voc else METRICS
    lines = [_heads("arm", "runs", *(shown.title for shown in metrics.values()))]
    for arm in grid.arms:
        runs, lost = runs_of(rows, case, arm), runs_of(rows, case, arm, status="diverged")
        number = f"{len(runs)}" + (f", {len(lost)} diverged" if lost else "")
        if runs or lost:
            lines.append(_line(arm, number, *(_mean(runs, metric) for metric in metrics)))
    return "\n".join(lines)


def gains_table(rows: Sequence[Row], grid: Grid, case: str, reference: str) -> str:
    """Paired differences to an arm with their intervals, bold where those leave out 0.

    Those of one seed are of the images alone, and never bold. Nothing where there is no pair.
    """
    base = runs_of(rows, case, reference)
    heads = (shown.title for shown in METRICS.values())
    lines = [_heads(f"minus {reference}", "pairs", *heads)]
    for arm in grid.arms:
        runs = runs_of(rows, case, arm)
        pairs = len(runs.keys() & base.keys())
        if arm != reference and pairs:
            gains = (format_gain(paired_difference(runs, base, m), m) for m in METRICS)
            lines.append(_line(arm, str(pairs) if pairs > 1 else "1: images alone", *gains))
    return "\n".join(lines) if len(lines) > 1 else ""


def cost_table(rows: Sequence[Row]) -> str:
    """What `loss_cost` measured: a step with and without HarDet."""
    if not rows:
        return ""
    heads = ("detector", "batch", "device", "step", "with HarDet", "difference, 95 % interval")
    lines = [_heads(*heads, "arithmetic", "working memory")]
    for row in rows:
        low, middle, high = (f"{100 * share:+.2f}" for share in row["ratio interval"])
        times = (f"{1e3 * row[f'seconds {side}']:.0f} ms" for side in ("baseline", "hardet"))
        shape = " x ".join(str(number) for number in (row["batch"], *row["size"]))
        place = (row["detector"], shape, row["device"])
        flops, memory = (
            tuple(row[f"{what} {side}"] for side in ("baseline", "hardet"))
            for what in ("flops", "temporary bytes")
        )
        ratio = f"{middle} % ({low} to {high})"
        arithmetic = f"{100 * (flops[1] / flops[0] - 1):+.3f} %"
        added = f"{(memory[1] - memory[0]) / 1e6:+.1f} MB of {memory[0] / 1e6:.0f}"
        lines.append(_line(*place, *times, ratio, arithmetic, added))
    return "\n".join(lines)


def turned_table(rows: Sequence[Row]) -> str:
    """What `factor_gradients` found: shares of positives whose loss is turned around."""
    if not rows:
        return ""
    heads = ("training", "step", "C is", "positives", "median C", "median L")
    lines = [_heads(*heads, "less confident: dF/dC < 0", "box pushed away: dF/dL < 0")]
    for row in rows:
        medians = (f"{row[name]:.2f}" for name in ("median_cls", "median_loc"))
        shares = (f"{100 * row[name]:.1f} %" for name in ("less_confident", "pushed_away"))
        place = (row["case"], str(row["step"]), row["source"], str(row["positives"]))
        lines.append(_line(*place, *medians, *shares))
    return "\n".join(lines)


def branch_table(rows: Sequence[Row]) -> str:
    """What `branch_gradients` found: norms of the gradient at the shared maps, by branch."""
    if not rows:
        return ""
    lines = [_heads("trained", "loss", "cls branch", "box branch", "box branch's share")]
    for row in rows:
        norms = (f"{row[name]:.1e}" for name in ("cls", "box"))
        lines.append(_line(row["run"], row["loss"], *norms, f"{100 * row['share']:.0f} %"))
    return "\n".join(lines)


def format_gain(gain: Difference | None, metric: str) -> str:
    """A difference as a cell of a table.

    >>> format_gain(Difference(0.02, 0.01, 0.03, 5), "AP")
    '**+0.020** [+0.010, +0.030]'
    >>> format_gain(Difference(0.02, 0.01, 0.03, 1), "AP")
    '+0.020 [+0.010, +0.030]'
    """
    if gain is None:
        return "-"
    digits = METRICS[metric].digits
    mean = f"{gain.mean:+.{digits}f}"
    bold = f"**{mean}**" if gain.sign else mean
    return f"{bold} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"


def _mean(runs: Mapping[int, Row], metric: str) -> str:
    digits = (METRICS | VOC_METRICS)[metric].digits
    values = [run["metrics"].get(metric) for run in runs.values()]
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{spread}"


def _heads(*cells: str) -> str:
    return _line(*cells) + "\n|" + "---|" * len(cells)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
