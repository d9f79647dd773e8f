"""The simulated detectors, and how often intervals hold their true difference."""

import numpy as np
import pytest

from benchmarks.bootstrap_coverage import coverage, numbers, resamples, simulate
from harmonic_jax.metrics.consistency.sampling import sample_metrics


def test_numbers_and_draws_are_those_of_compare() -> None:
    ways = resamples(30, 7, seed=4)
    drawn = next(iter(ways.values()))
    for case in simulate(np.random.default_rng(1), 30):
        values = sample_metrics(case, resamples=7, seed=4).values["overall", ""]
        for name, value in numbers(case, drawn).items():
            assert value == pytest.approx(values[name], abs=1e-12), name


def test_ways_to_take_images() -> None:
    drawn, unique, most, half = resamples(50, 20, seed=0).values()
    assert all((weights[0] == 1).all() for weights in (drawn, unique, most, half))
    assert (drawn.sum(axis=1) == 50).all()
    assert (unique == np.minimum(drawn, 1)).all()
    assert set(most[1:].sum(axis=1)) == {40}
    assert set(half[1:].sum(axis=1)) == {25}
    assert most.max() == half.max() == 1


@pytest.mark.slow
def test_intervals_without_repeats_hold_too_little() -> None:
    _, held = coverage(100, number=200, truth_images=50_000)
    with_repeats, unique, most, _ = (shares["AP"] for shares in held.values())
    assert with_repeats > 0.88
    assert most < unique < with_repeats
    assert most < 0.8
