"""The results of grids: lines of JSON, from which alone tables and figures are made.

A line is one run:

  name, case, arm, seed   its place in the grid
  status                  "done" or "diverged"
  message                 of a run that diverged: the step and the terms
  revision, config        of the code, and of the run: what must not be mixed
  device, seconds         what it ran on, and how long training took (null: in several parts)
  curve                   {"step", "loss", "grad_norm", ..: [..]} of the training log
  metrics                 {metric: number or null}, see `metrics.consistency`; of VOC also its own
  resamples               {metric: [..]} of METRICS: of the images as they are, then of resamples
                          of the images, the same ones in every run
  density                 detections by IoU and score, see `ablation_measure.density`
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.ablation_grid import GridError

Row = dict[str, Any]
DRAWS = 5000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Shown:
    """How a metric is shown: its title, its digits, and whether more is better."""

    title: str
    digits: int
    more_is_better: bool


METRICS: dict[str, Shown] = {
    "AP": Shown("AP", 3, True),
    "AP50": Shown("AP50", 3, True),
    "AP75": Shown("AP75", 3, True),
    "pearson": Shown("score-IoU correlation", 3, True),
    "mean_gap": Shown("mean gap of score and IoU", 3, False),
    "high_score_low_iou": Shown("IoU < .5 among scores >= .5", 3, False),
    "nms_mean_loss": Shown("IoU lost in NMS", 4, False),
}
VOC_METRICS: dict[str, Shown] = {
    "VOC07_mAP": Shown("VOC AP, 11 points", 3, True),
    "VOC_mAP": Shown("VOC AP, area", 3, True),
}
"""Shown without intervals, where a run has them."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference: its mean over seeds, and its interval.

    With one seed the interval is of the images alone: what another training would give, it does
    not say.
    """

    mean: float
    low: float
    high: float
    num_seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval, of several seeds, is above or below 0; else 0."""
        if self.num_seeds == 1:
            return 0
        return int(self.low > 0.0) - int(self.high < 0.0)


def read_results(path: Path) -> list[Row]:
    """The rows of a results file; none where there is no file.

    Raises:
      GridError: a line that is not JSON, a run that is there twice, or two revisions of the code.
    """
    if not path.exists():
        return []
    rows: dict[str, Row] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise GridError(f"{path}, line {number} is not JSON: {error}") from None
        if row["name"] in rows:
            raise GridError(f"{path}, line {number}: {row['name']} is there already")
        rows[row["name"]] = row
    revisions = sorted({row["revision"] for row in rows.values()})
    if len(revisions) > 1:
        raise GridError(f"{path} mixes results of the code revisions {revisions}")
    return list(rows.values())


def runs_of(rows: Sequence[Row], case: str, arm: str, *, status: str = "done") -> dict[int, Row]:
    """The runs of an arm by seed."""
    place = (case, arm, status)
    return {row["seed"]: row for row in rows if (row["case"], row["arm"], row["status"]) == place}


def paired_difference(
    runs: Mapping[int, Row], base: Mapping[int, Row], metric: str
) -> Difference | None:
    """The mean over seeds of a metric's difference, with a 95 % bootstrap interval.

    Both arms of a seed saw the same training images in the same order and were evaluated on the
    same images. The bootstrap draws the seeds anew and, for all of them, one resample of the
    images. A few seeds vary less when drawn from themselves than seeds do, so the part of a draw
    that comes from the seeds is stretched by sqrt(n / (n - 1)) t / z, the quantiles of Student's
    (n - 1 degrees of freedom) and the normal distribution: 1.6 for five seeds, 2.7 for three.

    Returns:
      None where no seed was run in both arms, or the metric has no value in one of them.

    Source: T. Hesterberg, What Teachers Should Know About the Bootstrap, 2015, on expanded
    intervals.
    """
    seeds = sorted(runs.keys() & base.keys())
    if not seeds:
        return None
    # [seeds, 1 + resamples]; the first column is of the images as they are.
    table = np.stack([_column(runs[s], metric) - _column(base[s], metric) for s in seeds])
    mean, n = float(table[:, 0].mean()), len(seeds)
    if not np.isfinite(mean):
        return None
    rng = np.random.default_rng(0)
    seed = rng.integers(n, size=(DRAWS, n))
    column = rng.integers(1, table.shape[1], size=DRAWS)
    drawn = table[seed, column[:, None]].mean(axis=1)
    images = table.mean(axis=0)[column]
    draws = images if n == 1 else images + stretch(n) * (drawn - images)
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.nanpercentile(draws, [tail, 100.0 - tail])
    return Difference(mean, float(low), float(high), n)


def stretch(num_seeds: int) -> float:
    """What the part of the seeds is multiplied by.

    >>> round(stretch(5), 2), round(stretch(3), 2)
    (1.58, 2.69)
    """
    n, level = num_seeds, 0.5 + LEVEL / 2
    return float(np.sqrt(n / (n - 1)) * stats.t.ppf(level, n - 1) / stats.norm.ppf(level))


def _column(row: Row, metric: str) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in row["resamples"][metric]])
