"""LaECE and LRP as their authors compute them: from the matches of pycocotools."""

import contextlib
import dataclasses
import io
from typing import Any

import numpy as np
import pytest

from harmonic_jax.metrics.consistency.report import consistency_report
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from tests.metrics.consistency import brute
from tests.metrics.synthetic import coco_dicts, index_for_pycocotools

pytest.importorskip("pycocotools", reason="pycocotools is the reference of the matchings")


def matches(
    truth: GroundTruthTable, found: DetectionTable, threshold: float
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Of each class scores, IoUs with the matched objects (0: none), and the number of objects."""
    from pycocotools import mask
    from pycocotools.cocoeval import COCOeval

    annotations, results = coco_dicts(truth, found)
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = index_for_pycocotools(annotations)
        detected = indexed.loadRes(results)
        evaluation = COCOeval(indexed, detected, "bbox")
        evaluation.params.iouThrs = np.array([threshold])
        evaluation.params.areaRng, evaluation.params.maxDets = [[0, 1e10]], [100]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()

    def iou(detection: int, annotation: float) -> float:
        if not annotation:
            return 0.0
        boxes: list[Any] = [detected.anns[detection]["bbox"], indexed.anns[int(annotation)]["bbox"]]
        return float(mask.iou(boxes[:1], boxes[1:], [0])[0, 0])

    classes, images = len(truth.class_names), len(truth.image_ids)
    result = []
    for k in range(classes):
        parts = [e for e in evaluation.evalImgs[k * images : (k + 1) * images] if e is not None]
        scores = np.concatenate([e["dtScores"] for e in parts])
        ious = [
            iou(d, g) for e in parts for d, g in zip(e["dtIds"], e["dtMatches"][0], strict=True)
        ]
        result.append((scores, np.array(ious), sum(len(e["gtIds"]) for e in parts)))
    return result


@pytest.mark.parametrize("seed", range(2))
def test_equal_to_the_authors_formulas(seed: int) -> None:
    """The threshold is the least that is not 0, at which pycocotools lets a detection that
    overlaps nothing take an object."""
    truth, found = brute.detector_case(seed, num_images=40)
    truth = dataclasses.replace(truth, is_crowd=np.zeros(len(truth.labels), bool))
    laece, olrp = [], []
    for s, u, _ in matches(truth, found, 1e-12):
        bins = np.ceil(s * 25).clip(1, 25)
        inside = [bins == j for j in np.unique(bins)]
        laece.append(sum(i.mean() * abs(s[i].mean() - u[i].mean()) for i in inside))
    for s, u, n in matches(truth, found, 0.5):
        order = np.argsort(-s, kind="stable")
        tp, fp = np.cumsum(u[order] > 0), np.cumsum(u[order] == 0)
        loc = tp - np.cumsum(u[order])
        errors = (loc / 0.5 + fp + n - tp) / (n + fp)
        i = np.argmin(errors)
        olrp.append((errors[i], loc[i] / tp[i], fp[i] / (tp[i] + fp[i]), 1 - tp[i] / n))
    values = consistency_report(truth, found, resamples=0)["overall"]
    assert values["LaECE"]["value"] == pytest.approx(np.mean(laece))
    for name, value in zip(
        ("oLRP", "oLRP_loc", "oLRP_FP", "oLRP_FN"), np.mean(olrp, axis=0), strict=True
    ):
        assert values[name]["value"] == pytest.approx(value), name
