"""Balanced sampling: exact counts, uniformity, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import ops
from harmonic_jax.ops.sampling import _random_priority

STATIC = ("num_samples", "positive_fraction")
sample_balanced = jax.jit(ops.sample_balanced, static_argnames=STATIC)
N = 60
# Positives, negatives, size of the sample, fraction.
COUNTS = [
    (30, 30, 16, 0.5),
    (3, 40, 16, 0.5),
    (40, 3, 16, 0.25),
    (0, 50, 16, 0.5),
    (50, 0, 16, 0.5),
    (0, 0, 16, 0.5),
    (30, 30, 16, 0.0),
    (30, 30, 16, 1.0),
    (5, 6, 100, 0.5),
    (30, 30, 7, 0.5),
    (30, 30, 1, 0.9),
]


def population(positives, negatives, seed=0):
    """Shuffled states: 1, 0, and -1 for what is neither."""
    state = np.full(N, -1)
    state[:positives] = 1
    state[positives : positives + negatives] = 0
    return np.random.default_rng(seed).permutation(state)


@pytest.mark.parametrize(("positives", "negatives", "size", "fraction"), COUNTS)
def test_a_sample_holds_members_once_and_in_order(positives, negatives, size, fraction):
    state = population(positives, negatives, 1)
    arguments = jax.random.key(5), state == 1, state == 0
    sample = sample_balanced(*arguments, num_samples=size, positive_fraction=fraction)
    indices, is_positive, valid = (np.asarray(array) for array in sample)
    assert indices.shape == is_positive.shape == valid.shape == (size,)
    assert indices.dtype == np.int32
    num_positive = min(positives, int(size * fraction))
    num_valid = num_positive + min(negatives, size - num_positive)
    np.testing.assert_array_equal(valid, np.arange(size) < num_valid)
    np.testing.assert_array_equal(is_positive, np.arange(size) < num_positive)
    assert not indices[~valid].any()
    np.testing.assert_array_equal(state[indices[valid]], is_positive[valid])
    assert len(set(indices[valid])) == num_valid


def test_every_pair_is_equally_likely():
    """Pairs, not single elements: a sampler of neighbors would pass a test of the margins."""
    state = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1, 0, -1])
    keys = jax.random.split(jax.random.key(0), 8000)
    sample = jax.jit(
        jax.vmap(
            lambda key: ops.sample_balanced(
                key, state == 1, state == 0, num_samples=4, positive_fraction=0.5
            )
        )
    )(keys)
    assert sample.valid.all()
    for drawn in (sample.indices[:, :2], sample.indices[:, 2:]):
        pairs = np.sort(np.asarray(drawn), axis=1) // 2
        _, counts = np.unique(pairs[:, 0] * 10 + pairs[:, 1], return_counts=True)
        assert len(counts) == 10
        chi_squared = np.sum((counts - 800.0) ** 2) / 800.0
        assert chi_squared < 27.9  # 99.9 % of 9 degrees of freedom.


def test_random_numbers_are_positive_and_hardly_tied():
    """Ties favor low indices: uniform float32 numbers have 2400 among 200 000."""
    priority = np.asarray(_random_priority(jax.random.key(2), (200_000,)))
    assert np.isfinite(priority).all()
    assert priority.min() >= np.finfo(np.float32).tiny
    assert len(priority) - len(np.unique(priority)) < 60  # 19 expected


def test_the_key_decides():
    state = population(30, 30)

    def draw(key):
        sample = sample_balanced(key, state == 1, state == 0, num_samples=16, positive_fraction=0.5)
        return sample.indices.tolist()

    assert draw(jax.random.key(7)) == draw(jax.random.key(7))
    assert draw(jax.random.key(7)) != draw(jax.random.key(8))
    assert draw(jax.random.PRNGKey(7)) == draw(jax.random.key(7))


def test_nobody_to_draw_from():
    nobody = jnp.zeros(0, jnp.bool_)
    sample = sample_balanced(
        jax.random.key(0), nobody, nobody, num_samples=4, positive_fraction=0.5
    )
    assert sample.valid.tolist() == [False] * 4


def test_impossible_samples():
    nobody = jnp.zeros(3, jnp.bool_)
    for size, fraction, message in ((0, 0.5, "num_samples is 0"), (4, 1.5, "fraction is 1.5")):
        with pytest.raises(ValueError, match=message):
            sample_balanced(
                jax.random.key(0), nobody, nobody, num_samples=size, positive_fraction=fraction
            )
