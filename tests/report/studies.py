"""Small studies to draw."""

import functools
from typing import Any

import numpy as np

from harmonic_jax.metrics.consistency.report import report_of
from harmonic_jax.metrics.consistency.sampling import sample_metrics
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

NASTY = "<script>alert(1)</script>"
NAMES = ("cat", NASTY, 'cost $\\x$ & "more"')
IMAGE_SIZE = (120, 160)
NO_DETECTIONS = DetectionTable([], [], [], [])


def truth_of(
    image_ids: Any, image_id: Any, boxes: Any, labels: Any, names: tuple[str, ...]
) -> GroundTruthTable:
    """A data set without crowds."""
    boxes = np.array(boxes, float).reshape(-1, 4)
    none = np.zeros(len(boxes), bool)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    ids = tuple(range(1, len(names) + 1))
    return GroundTruthTable(image_ids, image_id, boxes, labels, none, none, area, names, ids)


def tables(seed: int = 0, *, images: int = 30, names: tuple[str, ...] = NAMES) -> Any:
    """Objects, detections of every kind, and boxes before NMS."""
    rng = np.random.default_rng(seed)
    objects = images * 3
    image_id = np.repeat(np.arange(images) * 10, 3)
    start = rng.uniform(0, 60, (objects, 2))
    boxes = np.hstack([start, start + rng.uniform(10, 60, (objects, 2))])
    labels = rng.integers(0, len(names), objects)

    def boxes_near(copies: int, spread: float) -> DetectionTable:
        rows = np.repeat(np.arange(objects), copies)
        noise = rng.normal(0, 1, (len(rows), 4)) * rng.uniform(0, spread, (len(rows), 1))
        near = boxes[rows] + noise
        near = np.hstack([near[:, :2], np.maximum(near[:, 2:], near[:, :2] + 1)])
        wrong = rng.random(len(rows)) < 0.15
        label = np.where(wrong, rng.integers(0, len(names), len(rows)), labels[rows])
        return DetectionTable(image_id[rows], near, rng.uniform(0, 1, len(rows)), label)

    truth = truth_of(np.arange(images) * 10, image_id, boxes, labels, names)
    return truth, boxes_near(1, 20), boxes_near(3, 8)


def studied(
    truth: GroundTruthTable,
    found: DetectionTable,
    raw: DetectionTable | None = None,
    *,
    resamples: int = 5,
) -> tuple[Study, dict[str, Any]]:
    case = Study(truth, found, raw)
    samples = sample_metrics(case, resamples=resamples, seed=0)
    return case, report_of(case, samples)


@functools.cache
def drawn() -> tuple[Study, dict[str, Any]]:
    """What most tests draw."""
    return studied(*tables(images=100))


def gray_image(image_id: int) -> np.ndarray:
    return np.full((*IMAGE_SIZE, 3), 40 + image_id % 200, np.uint8)
