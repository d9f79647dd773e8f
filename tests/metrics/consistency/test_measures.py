"""Definitions by hand on cases small enough for paper, and correlations against SciPy."""

import numpy as np
import pytest

from harmonic_jax.metrics.coco import RECALLS, needed_positives
from harmonic_jax.metrics.consistency.measures import Rows, agreement, lrp_errors, spearman
from harmonic_jax.metrics.consistency.sampling import (
    bootstrap_weights,
    percentile_interval,
    sample_metrics,
)
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.tables import DetectionTable
from tests.metrics.test_coco import make_found, make_truth


def rows(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, IoUs (many of them 0), images, groups; with ties."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 25, n) / 25
    iou = np.where(rng.random(n) < 0.4, 0.0, np.clip(score + rng.normal(0, 0.2, n), 0, 1).round(1))
    return score, iou, rng.integers(0, 9, n), rng.integers(0, 3, n)


@pytest.mark.parametrize("seed", range(3))
def test_each_group_and_resample_equals_scipy_on_copied_rows(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the reference of the correlations")
    score, iou, image, group = rows(seed)
    weights = bootstrap_weights(9, 20, seed=seed)
    columns = Rows(score, iou, image, group, 3)
    found, ranks = agreement(columns, weights), spearman(columns, weights)
    for b, counts in enumerate(weights):
        for k in range(3):
            use = np.repeat(np.arange(len(score)), counts[image] * (group == k))
            s, u = score[use], iou[use]
            assert found["pearson"][b, k] == pytest.approx(stats.pearsonr(s, u).statistic)
            assert ranks[b, k] == pytest.approx(stats.spearmanr(s, u).statistic)
            assert found["mean_gap"][b, k] == pytest.approx(np.abs(s - u).mean())


def test_rates_by_hand() -> None:
    """The borders: .5 is high, and .5 is good."""
    score = np.array([0.5, 0.9, 0.6, 0.49, 0.2, 0.2])
    iou = np.array([0.5, 0.49, 0.0, 0.8, 0.5, 0.0])
    zeros = np.zeros(6, int)
    found = agreement(Rows(score, iou, zeros, zeros, 1), np.ones((1, 1)))
    assert found["high_score_low_iou"][0, 0] == pytest.approx(2 / 3)
    assert found["mean_gap"][0, 0] == pytest.approx((0 + 0.41 + 0.6 + 0.31 + 0.3 + 0.2) / 6)


def test_no_variance_and_no_rows_have_no_value() -> None:
    score, iou, image = np.full(5, 0.3), np.array([0.1, 0.4, 0.0, 0.9, 0.3]), np.arange(5)
    group = np.array([0, 0, 0, 0, 0])
    columns = Rows(score, iou, image, group, 2)
    found = agreement(columns, bootstrap_weights(5, 3, seed=0))
    assert np.isnan(found["pearson"]).all()
    assert np.isnan(spearman(columns, np.ones((1, 5), int))).all()
    assert found["mean_gap"][0, 0] == pytest.approx((0.2 + 0.1 + 0.3 + 0.6 + 0.0) / 5)
    assert np.isnan(found["mean_gap"][:, 1]).all()


def test_an_interval_leaves_out_one_in_forty_on_each_side() -> None:
    samples = np.random.default_rng(0).permutation(1001) / 1000
    assert percentile_interval(samples) == pytest.approx((0.025, 0.975))
    half_undefined = np.where(np.arange(1001) % 2 == 0, samples, np.nan)
    assert percentile_interval(half_undefined) is not None
    half_undefined[:2] = np.nan
    assert percentile_interval(half_undefined) is None


TWO = make_truth([[0, 0, 10, 10], [20, 0, 30, 10]])
KEPT = make_found([[0, 0, 10, 6], [20, 0, 30, 8]], [0.9, 0.7])
RAW = make_found(
    [[0, 0, 10, 6], [0, 0, 10, 9], [20, 0, 30, 8], [20, 0, 30, 4]], [0.9, 0.8, 0.7, 0.3]
)
# Object 0 has boxes of IoU .6 and .9, scored the wrong way round; object 1 has one of .8.
SWAPPED = make_found([[0, 0, 10, 6], [0, 0, 10, 9], [20, 0, 30, 8]], [0.9, 0.8, 0.7])
# TP (loss .2), FP, TP (loss 0), FP of two objects: the third place is the best.
IN_TURN = make_found(
    [[0, 0, 10, 8], [50, 0, 60, 10], [20, 0, 30, 10], [70, 0, 80, 10]], [0.9, 0.8, 0.7, 0.6]
)
# Scores .93 and .95 lie in one bin of 25 and one of 10; .31 and .35 in two and one. One to one,
# IoUs are .8, 1, 0 and 0 (object 1 is taken by the better score).
BINNED = make_found(
    [[0, 0, 10, 8], [20, 0, 30, 10], [50, 0, 60, 10], [20, 0, 30, 3]], [0.95, 0.93, 0.31, 0.35]
)
BY_HAND = {
    # Ranked as scored. IoU .50 to .60: TP FP TP. To .80: FP TP TP, as the box of .6 finds nothing.
    # To .90: TP FP TP. At .95 nothing is found. Ranked by IoU .9, .8, .6: up to .80 both are found
    # before anything false; to .90: TP, false.
    "a better box behind a worse one": (
        SWAPPED,
        None,
        {
            "AP": (3 * (51 + 50 * 2 / 3) / 101 + 4 * 2 / 3 + 2 * 51 / 101 / 2) / 10,
            "AP_ranked_by_iou": (7 + 2 * 51 / 101) / 10,
            "pearson": np.corrcoef([0.9, 0.8, 0.7], [0.6, 0.9, 0.8])[0, 1],
            "mean_gap": (0.3 + 0.1 + 0.1) / 3,
        },
    ),
    # NMS kept a box of IoU .6 where there was one of .9; the other object keeps its best. The best
    # boxes have IoU .9 and .8: both count up to .80, one of two up to .90.
    "what NMS loses": (
        KEPT, RAW, {"nms_mean_loss": 0.15, "AP_best_raw": (7 + 2 * 51 / 101) / 10}
    ),
    # A truncated list of raw boxes must not make NMS look as if it gained.
    "a box that is kept was there before": (
        KEPT, make_found([[0, 0, 10, 6]], [0.9]), {"nms_mean_loss": 0.0}
    ),
    "calibration": (
        BINNED,
        None,
        {
            "LaECE": 2 / 4 * abs(0.94 - 0.9) + 0.31 / 4 + 0.35 / 4,
            "D_ECE": (2 * 0.06 + 0.31 + 0.35) / 4,
        },
    ),
    "optimal LRP": (
        IN_TURN,
        None,
        {"oLRP": (0.2 / 0.5 + 1 + 0) / 3, "oLRP_loc": 0.1, "oLRP_FP": 1 / 3, "oLRP_FN": 0.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    found, raw, expected = BY_HAND[name]
    values = sample_metrics(Study(TWO, found, raw), resamples=0, seed=0).values["overall", ""]
    assert {key: float(values[key][0]) for key in expected} == pytest.approx(expected)


def test_a_true_positive_of_weight_zero_is_no_place_to_stop() -> None:
    """IoUs of .5 leave the error at 1 all along; of equal places the first with a true positive."""
    truth = make_truth([[0, 0, 10, 10]] * 2, image_ids=[1, 2], image_id=[1, 2])
    found = DetectionTable([1, 2], [[0, 0, 10, 5]] * 2, [0.9, 0.8], [0, 0])
    case = Study(truth, found)
    values = lrp_errors(case, case.positives, np.array([[2.0]]), np.array([[0, 2]]))
    assert {name: float(column[0, 0]) for name, column in values.items()} == pytest.approx(
        {"oLRP": 1.0, "oLRP_loc": 0.5, "oLRP_FP": 0.0, "oLRP_FN": 0.0}
    )


def test_needed_positives_are_those_of_cocos_search() -> None:
    """0.07 * 100 is more than 7 in floating point, 7 / 100 is not less than 0.07."""
    for n in range(1, 400):
        expected = np.searchsorted(np.arange(1, n + 1) / n, RECALLS) + 1
        assert (needed_positives(np.array([n]))[0] == expected).all(), n
