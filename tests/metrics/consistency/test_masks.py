"""Every number by the IoU of masks: against loops with pycocotools' float64 IoU."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from harmonic_jax.masks import encode_masks
from harmonic_jax.metrics.coco import coco_metrics
from harmonic_jax.metrics.consistency.measures import KINDS, find_errors
from harmonic_jax.metrics.consistency.report import consistency_report
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from tests.metrics.consistency import brute
from tests.metrics.synthetic import awkward_masks


def case(seed: int) -> tuple[GroundTruthTable, DetectionTable]:
    """No two scores are equal: at equal ones the LRP of the loops cuts between them."""
    truth, found = awkward_masks(seed)
    order = np.random.default_rng(seed).permutation(len(found.scores))
    found = dataclasses.replace(found, scores=(order + 1) / (len(order) + 1))
    return truth, found


@pytest.mark.parametrize("seed", [0, 1, 2, 7, 11])
def test_every_measure_equals_loops_over_masks(seed: int) -> None:
    truth, found = case(seed)
    study = Study(truth, found, iou_type="segm")
    report = consistency_report(truth, found, iou_type="segm", resamples=0)
    for area in brute.AREAS:
        entries = report["overall"] if area == "all" else report["areas"][area]
        expected = brute.calibration(truth, found, area) | brute.lrp(truth, found, area)
        expected["AP"] = coco_metrics(truth, found, iou_type="segm")[
            "AP" if area == "all" else f"AP_{area}"
        ]
        for name, value in expected.items():
            ours = entries[name]["value"]
            missing = -1.0 if name == "AP" else np.nan
            ours = missing if ours is None else ours
            assert ours == pytest.approx(value, nan_ok=True), (area, name)
    best = brute.best_pairs(truth, found)
    rows = sorted(best)
    assert study.pairs.detection.tolist() == rows
    score, iou = found.scores[rows], np.array([best[d][0] for d in rows])
    pearson, spearman = (
        statistic(score, iou)[0] for statistic in (scipy.stats.pearsonr, scipy.stats.spearmanr)
    )
    expected = {"pearson": pearson, "spearman": spearman, "mean_gap": np.abs(score - iou).mean()}
    ours = {name: report["overall"][name]["value"] for name in expected}
    assert ours == pytest.approx(expected, abs=1e-9)
    own = np.array([brute.area_of(found, d) for d in rows])
    area = np.where(study.pairs.object >= 0, truth.area[study.pairs.object], own)
    assert study.pairs.area_range.tolist() == [int(a > 1024) + int(a > 9216) for a in area]
    kind, _, _, sizes = find_errors(study)
    kinds = {d: (KINDS[kind[d]], int(sizes[d])) for d in np.flatnonzero(kind >= 0).tolist()}
    assert kinds == brute.errors(truth, found)


def test_masks_are_what_is_compared() -> None:
    """Two halves of one box: the same box, no pixel in common."""
    left = np.zeros((1, 40, 40), bool)
    left[:, 5:35, 5:20] = True
    left[:, 5, 5:35] = True
    right = left[:, :, ::-1]
    box, none = [[5, 5, 35, 35]], [False]
    truth = GroundTruthTable(
        image_ids=[1], image_id=[1], boxes=box, labels=[0], is_crowd=none, is_difficult=none,
        area=[900.0], class_names=("cat",), category_ids=(1,), masks=encode_masks(left),
    )  # fmt: skip
    found = DetectionTable([1], box, [0.9], [0], masks=encode_masks(right))
    iou = (left & right).sum() / (left | right).sum()
    for iou_type, gap in (("bbox", 0.1), ("segm", 0.9 - iou)):
        report = consistency_report(truth, found, iou_type=iou_type, resamples=0)
        assert report["overall"]["mean_gap"]["value"] == pytest.approx(gap)
        assert report["settings"]["iou_type"] == iou_type
    boxes = dataclasses.replace(found, masks=None)
    with pytest.raises(ValueError, match="the detection table has no masks"):
        consistency_report(truth, boxes, iou_type="segm")
