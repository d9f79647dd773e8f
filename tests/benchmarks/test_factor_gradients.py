"""The shares of positives that the gradient through the factors turns around."""

import numpy as np

from benchmarks.factor_gradients import shares


def test_shares_by_hand() -> None:
    # Confident and badly placed; well placed and not confident; both good; both bad.
    cls_loss, loc_loss = np.float32([0.05, 4.6, 0.1, 3.0]), np.float32([3.0, 0.1, 0.1, 3.0])
    found = shares(cls_loss, loc_loss)
    assert found["positives"] == 4
    assert found["less_confident"] == found["less_confident_by_analysis"] == 0.25
    assert found["pushed_away"] == found["pushed_away_by_analysis"] == 0.25


def test_shares_are_those_of_the_analysis() -> None:
    rng = np.random.default_rng(0)
    cls_loss, loc_loss = rng.uniform(0, 6, (2, 5000)).astype(np.float32)
    found = shares(cls_loss, loc_loss)
    assert abs(found["less_confident"] - found["less_confident_by_analysis"]) < 1e-3
    assert abs(found["pushed_away"] - found["pushed_away_by_analysis"]) < 1e-3
    assert 0.05 < found["pushed_away"] < 0.5
    # Nothing is turned around below the thresholds of the analysis.
    below = shares(cls_loss.clip(0, 1.278), loc_loss.clip(0, 1.278))
    assert below["less_confident"] == below["pushed_away"] == 0.0
