"""Figures of a grid's results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.ablation_grid import Grid, GridError
from benchmarks.ablation_results import METRICS, Row, paired_difference, runs_of
from harmonic_jax.report.plots import (
    LIGHT,
    LINES,
    chart_style,
    new_axes,
    new_density,
    save_panels,
    set_log,
    set_rows,
)

GAINS = ("AP", "AP75", "pearson", "mean_gap", "nms_mean_loss")


def draw_gains(rows: Sequence[Row], grid: Grid, path: Path) -> None:
    """Each arm's paired difference to the baseline with its 95 % interval: a row a case; blue where
    the interval leaves out 0."""
    panels = []
    with chart_style():
        for case in grid.cases:
            arms = [arm for arm in grid.arms if arm != grid.baseline and runs_of(rows, case, arm)]
            if arms:
                panels.append([_gains(rows, grid, case, arms, metric) for metric in GAINS])
        if not panels:
            raise GridError("there are no results to draw")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_panels(path, *panels)


def _gains(rows: Sequence[Row], grid: Grid, case: str, arms: Sequence[str], metric: str) -> Axes:
    is_first = metric == GAINS[0]
    better = "more" if METRICS[metric].more_is_better else "less"
    title = f"{METRICS[metric].title}\n({better} is better)"
    axes = new_axes(title, width=3.3 if is_first else 2.3, height=max(1.5, 0.9 + 0.24 * len(arms)))
    set_rows(axes, arms)
    base = runs_of(rows, case, grid.baseline)
    axes.axvline(0.0, color=LIGHT["muted"], linewidth=1)
    for place, arm in enumerate(arms):
        gain = paired_difference(runs_of(rows, case, arm), base, metric)
        if gain is None:
            continue
        color = LIGHT["a"] if gain.sign else LIGHT["muted"]
        axes.plot([gain.low, gain.high], [place, place], color=color)
        axes.plot([gain.mean], [place], "o", color=color)
    axes.locator_params(axis="x", nbins=4)
    if is_first:
        axes.set_ylabel(case)
    else:
        axes.tick_params(labelleft=False)
    return axes


def draw_density(rows: Sequence[Row], case: str, arms: Sequence[str], path: Path) -> None:
    """Where the detections of some arms lie by score and IoU, side by side, of the same seeds."""
    of_arm = {arm: runs_of(rows, case, arm) for arm in arms}
    seeds = sorted(set.intersection(*(set(runs) for runs in of_arm.values())))
    if not seeds:
        raise GridError(f"{case} has no seed with all of {list(arms)}")
    panels = []
    with chart_style():
        for arm, runs in of_arm.items():
            pearson, gap = (
                np.mean([runs[seed]["metrics"][name] for seed in seeds])
                for name in ("pearson", "mean_gap")
            )
            counts = np.sum([runs[seed]["density"] for seed in seeds], axis=0)
            title = f"{arm}: correlation {pearson:.3f}, mean gap {gap:.3f}"
            panels.append(new_density(title, counts))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_panels(path, panels)


def draw_starts(
    rows: Sequence[Row], case: str, arms: Sequence[str], path: Path, *, steps: int
) -> None:
    """The gradient's norm in the first steps, a line a run, in logarithmic scale."""
    panels = []
    with chart_style():
        for arm in arms:
            axes = new_axes(arm, width=2.4, height=2.6)
            runs = runs_of(rows, case, arm) | runs_of(rows, case, arm, status="diverged")
            for run in runs.values():
                at = np.array(run["curve"]["step"])
                norms = np.array(run["curve"]["grad_norm"])[at <= steps]
                axes.plot(at[at <= steps], norms, **LINES["a"], linewidth=1)
            set_log(axes)
            axes.set_xlabel("step")
            panels.append(axes)
        panels[0].set_ylabel("gradient norm")
        low, high = np.array([axes.get_ylim() for axes in panels]).T
        for axes in panels:
            axes.set_ylim(low.min(), high.max())
        path.parent.mkdir(parents=True, exist_ok=True)
        save_panels(path, panels)
