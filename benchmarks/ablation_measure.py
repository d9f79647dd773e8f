"""What a finished run is measured by: every metric, resamples of some, a density, a curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation_results import METRICS, Row
from harmonic_jax.metrics.coco import AT_75
from harmonic_jax.metrics.consistency import METRICS as ALL_METRICS
from harmonic_jax.metrics.consistency.measures import (
    Rows,
    agreement,
    average_precisions,
    grouped_means,
    mean_of_classes,
    objects_of_classes,
)
from harmonic_jax.metrics.consistency.sampling import OVERALL, bootstrap_weights, sample_metrics
from harmonic_jax.metrics.consistency.study import Pairs, Study
from harmonic_jax.metrics.files import load_coco_annotations, load_coco_results, load_raw

RESAMPLES = 200
CELLS = 25
CURVE = ("loss", "grad_norm", "positive_score", "positive_iou")


def measure(report: Path) -> Row:
    """The numbers of a run.

    Args:
      report: the folder that `eval.py --report` wrote.

    Returns:
      `metrics`, `resamples` and `density` of a row, see `ablation_results`.
    """
    truth = load_coco_annotations(report / "annotations.json")
    found = load_coco_results(report / "detections.json", truth)
    case = Study(truth, found, load_raw(report / "raw_boxes.npz", truth))
    values = sample_metrics(case, resamples=0, seed=0).values[OVERALL, ""]
    samples = resampled_metrics(case, RESAMPLES)
    return {
        "metrics": {name: _plain(values[name], 6)[0] for name in ALL_METRICS if name in values},
        "resamples": {name: _plain(samples[name], 4) for name in METRICS},
        "density": density(case.pairs),
    }


def resampled_metrics(case: Study, resamples: int) -> dict[str, np.ndarray]:
    """METRICS over all classes: float64 [1 + resamples], the first of the images as they are.

    The report of `eval.py` resamples every metric by class and size as well: a minute a run.
    """
    weights = bootstrap_weights(len(case.truth.image_ids), resamples, seed=0)
    objects = objects_of_classes(case, case.positives.is_counted, weights)
    at_thresholds = average_precisions(case.matching, 0, objects, weights)
    precisions = {"AP": at_thresholds.mean(axis=0), "AP50": at_thresholds[0]}
    precisions["AP75"] = at_thresholds[AT_75]
    values = {name: mean_of_classes(column) for name, column in precisions.items()}
    pairs, group = case.pairs, np.zeros(len(case.pairs), np.int64)
    agreed = agreement(Rows(pairs.score, pairs.iou, pairs.image, group, 1), weights)
    best = case.best_boxes
    assert best is not None
    image, group = case.overlaps.object_image[best.object], np.zeros(len(best.object), np.int64)
    agreed["nms_mean_loss"] = grouped_means(best.before - best.after, image, group, 1, weights)
    return values | {name: column[:, 0] for name, column in agreed.items()}


def density(pairs: Pairs) -> list[list[int]]:
    """Number of detections by IoU (rows) and score (columns), CELLS each way over [0, 1]."""
    edges = np.linspace(0.0, 1.0, CELLS + 1)
    counts, _, _ = np.histogram2d(pairs.iou, pairs.score, bins=(edges, edges))
    return [[int(n) for n in row] for row in counts]


def training_curve(rows: list[dict[str, Any]]) -> Mapping[str, list[float]]:
    """CURVE and `step` of a training log, four digits each."""
    train = [row for row in rows if row["kind"] == "train"]
    curve = {name: [float(f"{row[name]:.4g}") for row in train] for name in CURVE}
    return {"step": [row["step"] for row in train]} | curve


def _plain(values: np.ndarray, digits: int) -> list[float | None]:
    """As JSON: what has no value is null."""
    return [round(float(x), digits) if np.isfinite(x) else None for x in values]
