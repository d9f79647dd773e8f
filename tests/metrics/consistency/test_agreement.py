"""Correlations against SciPy, by hand, and with images counted several times."""

import numpy as np
import pytest

from harmonic_jax.metrics.consistency.bootstrap import (
    bootstrap_weights,
    grouped_sums,
    percentile_interval,
)
from harmonic_jax.metrics.consistency.measures import agreement, spearman

stats = pytest.importorskip("scipy.stats", reason="SciPy is the reference of the correlations")


def rows(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, IoUs (many of them 0), images, groups; with ties."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 25, n) / 25
    iou = np.where(rng.random(n) < 0.4, 0.0, np.clip(score + rng.normal(0, 0.2, n), 0, 1).round(1))
    return score, iou, rng.integers(0, 9, n), rng.integers(0, 3, n)


@pytest.mark.parametrize("seed", range(3))
def test_each_group_and_resample_equals_scipy_on_copied_rows(seed: int) -> None:
    score, iou, image, group = rows(seed)
    weights = bootstrap_weights(9, 20, seed=seed)
    found = agreement(score, iou, image, group, 3, weights)
    ranks = spearman(score, iou, image, group, 3, weights)
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
    found = agreement(score, iou, zeros, zeros, 1, np.ones((1, 1)))
    assert found["high_score_low_iou"][0, 0] == pytest.approx(2 / 3)
    assert found["mean_gap"][0, 0] == pytest.approx((0 + 0.41 + 0.6 + 0.31 + 0.3 + 0.2) / 6)


def test_no_variance_and_no_rows_have_no_value() -> None:
    score, iou, image = np.full(5, 0.3), np.array([0.1, 0.4, 0.0, 0.9, 0.3]), np.arange(5)
    group = np.array([0, 0, 0, 0, 0])
    found = agreement(score, iou, image, group, 2, bootstrap_weights(5, 3, seed=0))
    assert np.isnan(found["pearson"]).all()
    assert np.isnan(spearman(score, iou, image, group, 2, np.ones((1, 5), int))).all()
    assert found["mean_gap"][0, 0] == pytest.approx((0.2 + 0.1 + 0.3 + 0.6 + 0.0) / 5)
    assert np.isnan(found["mean_gap"][:, 1]).all()


def test_grouped_sums_equal_loops() -> None:
    rng = np.random.default_rng(0)
    values, image, group = rng.random((40, 2)), rng.integers(0, 6, 40), rng.integers(0, 4, 40)
    weights = bootstrap_weights(6, 5, seed=1)
    expected = np.zeros((6, 4, 2))
    for value, i, k in zip(values, image, group, strict=True):
        expected[:, k] += weights[:, i, None] * value
    assert grouped_sums(values, image, group, 4, weights) == pytest.approx(expected)
    assert grouped_sums(values[:, 0], image, group, 4, weights) == pytest.approx(expected[..., 0])
    nothing = grouped_sums(values[:0], image[:0], group[:0], 4, weights)
    assert nothing.shape == expected.shape
    assert not nothing.any()


def test_an_interval_leaves_out_one_in_forty_on_each_side() -> None:
    samples = np.random.default_rng(0).permutation(1001) / 1000
    assert percentile_interval(samples) == pytest.approx((0.025, 0.975))
    half_undefined = np.where(np.arange(1001) % 2 == 0, samples, np.nan)
    assert percentile_interval(half_undefined) is not None
    half_undefined[:2] = np.nan
    assert percentile_interval(half_undefined) is None


def test_intervals_cover_the_mean_of_a_known_distribution() -> None:
    """Of 200 samples of 80 images, about 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        x = rng.exponential(1.0, (80, 1))
        weights = bootstrap_weights(80, 300, seed=trial)
        interval = percentile_interval((weights[1:] @ x)[:, 0] / 80)
        assert interval is not None
        held += interval[0] <= 1.0 <= interval[1]
    assert 0.88 <= held / 200 <= 0.99
