"""Best objects and one-to-one matchings against loops over boxes."""

import numpy as np
import pytest

from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.matching import IOU_THRESHOLDS
from tests.metrics.consistency import brute

SEEDS = range(15)


def test_best_objects_equal_loops() -> None:
    ignored = over = 0
    for seed in SEEDS:
        truth, found = brute.case(seed)
        pairs = Study(truth, found).pairs
        expected = brute.best_pairs(truth, found)
        assert pairs.detection.tolist() == sorted(expected), seed
        assert pairs.iou == pytest.approx([expected[d][0] for d in sorted(expected)])
        # Of equal overlaps the first object: the loop keeps the first as well.
        assert pairs.object.tolist() == [expected[d][1] for d in sorted(expected)], seed
        assert len(pairs) + pairs.num_ignored + pairs.num_over_limit == len(found.labels)
        ignored, over = ignored + pairs.num_ignored, over + pairs.num_over_limit
    assert min(ignored, over) > 10  # the cases do hold what the rules are about


def test_pairs_know_their_image_class_and_area() -> None:
    truth, found = brute.case(4)
    pairs = Study(truth, found).pairs
    assert (truth.image_ids[pairs.image] == found.image_id[pairs.detection]).all()
    assert (pairs.label == found.labels[pairs.detection]).all()
    assert (pairs.score == found.scores[pairs.detection]).all()
    own = found.sizes[pairs.detection].prod(axis=1)
    area = np.where(pairs.object >= 0, truth.area[pairs.object], own)
    assert (pairs.area_range == (area > 1024).astype(int) + (area > 9216)).all()
    assert set(pairs.area_range) == {0, 1, 2}


def test_boxes_before_nms_have_no_limit() -> None:
    truth, found = next(
        (t, f) for t, f in map(brute.case, range(7, 60, 10)) if Study(t, f).pairs.num_over_limit
    )
    pairs = Study(truth, found, found).raw_pairs
    assert pairs is not None
    assert pairs.num_over_limit == 0
    assert len(pairs) + pairs.num_ignored == len(found.labels)


def test_one_to_one_equals_loops() -> None:
    """At any IoU, and at .50, .75 and .95, in every area range."""
    for seed in SEEDS:
        truth, found = brute.case(seed)
        case = Study(truth, found)
        for threshold, matching, t in (
            (0.0, case.matching_any, 0),
            (0.5, case.matching, 0),
            (0.75, case.matching, 5),
            (IOU_THRESHOLDS[9], case.matching, 9),
        ):
            for a, area in enumerate(brute.AREAS):
                true, false = brute.greedy(truth, found, threshold, area)
                ours = matching.positives(t, a)
                rows = np.flatnonzero(ours.is_true)
                assert rows.tolist() == sorted(true), (seed, area)
                assert ours.object[rows].tolist() == [true[d][0] for d in rows]
                assert ours.iou[rows] == pytest.approx([true[d][1] for d in rows])
                assert np.flatnonzero(ours.is_false).tolist() == sorted(false), (seed, area)
