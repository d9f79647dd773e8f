"""Figures of a grid's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.ablation_grid import Grid, GridError
from benchmarks.ablation_results import METRICS, Row, paired_difference, runs_of

matplotlib.use("agg")
import matplotlib.pyplot as plt

GAINS = ("AP", "AP75", "pearson", "mean_gap", "nms_mean_loss")
BLUE, GREY = "#0072B2", "0.45"
MARGIN = 0.2  # of the task-contrastive loss


def draw_gains(rows: Sequence[Row], grid: Grid, path: Path) -> None:
    """Each arm's paired difference to the baseline with its interval: a row a case."""
    cases = [case for case in grid.cases if any(row["case"] == case for row in rows)]
    if not cases:
        raise GridError("there are no results to draw")
    arms = {case: _compared(rows, grid, case) for case in cases}
    heights = [0.9 + 0.3 * len(arms[case]) for case in cases]
    size = (2.6 * len(GAINS), sum(heights))
    figure, axes = _subplots(len(cases), len(GAINS), size, sharey="row", height_ratios=heights)
    for row_of_axes, case in zip(axes, cases, strict=True):
        base = runs_of(rows, case, grid.baseline)
        for axis, metric in zip(row_of_axes, GAINS, strict=True):
            axis.axvline(0.0, color="0.6", linewidth=1)
            for place, arm in enumerate(arms[case]):
                gain = paired_difference(runs_of(rows, case, arm), base, metric)
                if gain is None:
                    continue
                colour = BLUE if gain.sign else GREY
                if gain.low is not None and gain.high is not None:
                    axis.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2)
                axis.plot([gain.mean], [place], "o", color=colour, markersize=5)
            better = "more" if METRICS[metric].more_is_better else "less"
            axis.set_title(f"{METRICS[metric].title}\n({better} is better)", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.set_yticks(range(len(arms[case])), arms[case])
        row_of_axes[0].set_ylabel(case, fontsize=9)
        row_of_axes[0].set_ylim(len(arms[case]) - 0.5, -0.5)
    figure.suptitle(f"Difference to {grid.baseline}, 95 % intervals", fontsize=9)
    _save(figure, path)


def _compared(rows: Sequence[Row], grid: Grid, case: str) -> list[str]:
    """The arms that have runs of a case, but for the baseline."""
    return [arm for arm in grid.arms if arm != grid.baseline and runs_of(rows, case, arm)]


def draw_density(rows: Sequence[Row], case: str, arms: Sequence[str], path: Path) -> None:
    """Where the detections of some arms lie by score and IoU, side by side, of the same seeds.

    Each panel's cells are shares of its own detections, in steps of one colour scale; cells
    without a detection stay white.
    """
    of_arm = {arm: runs_of(rows, case, arm) for arm in arms}
    seeds = sorted(set.intersection(*(set(runs) for runs in of_arm.values())))
    if not seeds:
        raise GridError(f"{case} has no seed with all of {list(arms)}")
    counts = [np.sum([runs[s]["density"] for s in seeds], axis=0) for runs in of_arm.values()]
    shares = [count / count.sum() for count in counts]
    scale = matplotlib.colors.LogNorm(1e-5, max(share.max() for share in shares))
    figure, axes = _subplots(1, len(arms), (3.6 * len(arms) + 0.6, 3.7), sharey=True)
    for axis, arm, share in zip(axes[0], arms, shares, strict=True):
        image = axis.pcolormesh(
            *[np.linspace(0.0, 1.0, len(share) + 1)] * 2,
            np.ma.masked_equal(share, 0.0),
            norm=scale,
            cmap="viridis_r",
            rasterized=True,
        )
        axis.plot([0, 1], [0, 1], "k--", linewidth=1)
        for shift in (MARGIN, -MARGIN):
            axis.plot([max(0, -shift), min(1, 1 - shift)], [max(0, shift), min(1, 1 + shift)], "k:")
        found = [runs_of(rows, case, arm)[s]["metrics"] for s in seeds]
        pearson, gap = (
            float(np.mean([m[name] for m in found])) for name in ("pearson", "mean_gap")
        )
        axis.set_title(f"{arm}: correlation {pearson:.3f}, mean gap {gap:.3f}", fontsize=9)
        axis.set_xlabel("score")
        axis.set_aspect("equal")
    axes[0, 0].set_ylabel("IoU with the object")
    figure.colorbar(image, ax=axes[0].tolist(), label="share of detections", shrink=0.85)
    _save(figure, path)


def draw_starts(
    rows: Sequence[Row], case: str, arms: Sequence[str], path: Path, *, steps: int
) -> None:
    """The gradient's norm in the first steps, a line a run, in logarithmic scale."""
    figure, axes = _subplots(1, len(arms), (2.1 * len(arms), 2.4), sharey=True)
    for axis, arm in zip(axes[0], arms, strict=True):
        runs = runs_of(rows, case, arm) | runs_of(rows, case, arm, status="diverged")
        for run in runs.values():
            at = np.array(run["curve"]["step"])
            axis.semilogy(at[at <= steps], np.array(run["curve"]["grad_norm"])[at <= steps], BLUE)
        axis.set_title(arm, fontsize=8)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("gradient norm", fontsize=8)
    _save(figure, path)


def _subplots(
    num_rows: int, num_columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, np.ndarray[Any, np.dtype[Any]]]:
    figure, axes = plt.subplots(
        num_rows, num_columns, figsize=size, squeeze=False, layout="constrained", **options
    )
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of the library the same results give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
