"""Small studies to draw."""

from typing import Any

import numpy as np

from harmonic_jax.metrics.consistency.report import report_of
from harmonic_jax.metrics.consistency.sampling import sample_metrics
from harmonic_jax.metrics.consistency.study import Study, study
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

NASTY = "<script>alert(1)</script>"
NAMES = ("cat", NASTY, "cost $\\x$ & \"more'")
IMAGE_SIZE = (120, 160)


def tables(seed: int = 0, *, images: int = 30, names: tuple[str, ...] = NAMES) -> Any:
    """Objects, detections of every kind, and boxes before NMS."""
    rng = np.random.default_rng(seed)
    objects, raw_copies = images * 3, 3
    image_id = np.repeat(np.arange(images) * 10, 3)
    start = rng.uniform(0, 60, (objects, 2))
    boxes = np.hstack([start, start + rng.uniform(10, 60, (objects, 2))])
    labels = rng.integers(0, len(names), objects)
    truth = GroundTruthTable(
        image_ids=np.arange(images) * 10,
        image_id=image_id,
        boxes=boxes,
        labels=labels,
        is_crowd=np.zeros(objects, bool),
        is_difficult=np.zeros(objects, bool),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        class_names=names,
        category_ids=tuple(range(1, len(names) + 1)),
    )

    def boxes_near(copies: int, spread: float) -> DetectionTable:
        rows = np.repeat(np.arange(objects), copies)
        noise = rng.normal(0, 1, (len(rows), 4)) * rng.uniform(0, spread, (len(rows), 1))
        near = boxes[rows] + noise
        near = np.hstack([near[:, :2], np.maximum(near[:, 2:], near[:, :2] + 1)])
        wrong = rng.random(len(rows)) < 0.15
        label = np.where(wrong, rng.integers(0, len(names), len(rows)), labels[rows])
        return DetectionTable(image_id[rows], near, rng.uniform(0, 1, len(rows)), label)

    return truth, boxes_near(1, 20), boxes_near(raw_copies, 8)


def none_of(truth: GroundTruthTable) -> DetectionTable:
    return DetectionTable([], [], [], [])


def studied(
    truth: GroundTruthTable,
    found: DetectionTable,
    raw: DetectionTable | None = None,
    *,
    resamples: int = 5,
) -> tuple[Study, dict[str, Any]]:
    case = study(truth, found, raw)
    samples = sample_metrics(case, resamples=resamples, seed=0)
    return case, report_of(case, samples, resamples=resamples)
