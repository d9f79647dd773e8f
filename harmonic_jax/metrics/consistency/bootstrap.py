"""Intervals by resampling images: every number is a function of how often each image counts.

A resample of n images with replacement is a row of weights, whole numbers that sum to n. Each
metric takes all rows at once and returns one value a row; the first row, all ones, gives the
number itself, so there is one formula and no second one for the resamples.
"""

import math
from collections.abc import Iterator

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000
FEWEST_RESAMPLES = 100
_WORK = 50_000_000  # rows of a table times resamples, of a metric that sorts or ranks
_AT_ONCE = 4_000_000


def bootstrap_weights(num_images: int, resamples: int, *, seed: int) -> np.ndarray:
    """How often each image counts: int32 [1 + resamples, num_images], the first row all ones.

    Example:
      >>> weights = bootstrap_weights(3, 2, seed=0)
      >>> weights[0].tolist(), weights.sum(axis=1).tolist()
      ([1, 1, 1], [3, 3, 3])
    """
    weights = np.ones((1 + resamples, num_images), np.int32)
    if num_images:
        rng, chance = np.random.default_rng(seed), np.full(num_images, 1 / num_images)
        for row in weights[1:]:
            row[:] = rng.multinomial(num_images, chance)
    return weights


def affordable_resamples(num_rows: int, most: int) -> int:
    """Resamples of a metric whose work grows with the rows: fewer for large data sets."""
    return min(most, max(FEWEST_RESAMPLES, _WORK // max(num_rows, 1)))


def percentile_interval(samples: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile interval of resampled values; NaN marks a resample without a value.

    None where fewer than half of the resamples have one: the rest would tell of few images.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Example:
      >>> percentile_interval(np.arange(101.0))
      (2.5, 97.5)
      >>> percentile_interval(np.array([1.0, np.nan, np.nan]))
    """
    defined = samples[np.isfinite(samples)]
    if defined.size == 0 or 2 * defined.size < samples.size:
        return None
    tail = round(50.0 * (1.0 - CONFIDENCE), 9)  # 2.5, not a little more
    low, high = np.percentile(defined, [tail, 100.0 - tail])
    return float(low), float(high)


def grouped_sums(
    values: np.ndarray, image: np.ndarray, group: np.ndarray, num_groups: int, weights: np.ndarray
) -> np.ndarray:
    """Weighted sums of rows, `values` [n] or [n, m], by group 0..k-1: [b, k] or [b, k, m].

    Example:
      >>> values, image = np.array([1.0, 2.0, 4.0]), np.array([0, 1, 1])
      >>> grouped_sums(values, image, np.zeros(3, int), 1, np.array([[1, 1], [0, 2]])).tolist()
      [[7.0], [12.0]]
    """
    # Rows of one image and group have one weight: they are summed once, not at every resample.
    cell, entry = np.unique(group * weights.shape[1] + image, return_inverse=True)
    columns = values.reshape(len(values), math.prod(values.shape[1:])).T
    sums = np.stack([np.bincount(entry, column, len(cell)) for column in columns], axis=1)
    cell_group, cell_image = np.divmod(cell, max(weights.shape[1], 1))
    result = np.zeros((len(weights), num_groups, len(columns)))
    rows = np.arange(len(cell))
    for k, part, here, counts in by_group(rows, cell_group, num_groups, cell_image, weights):
        result[part, k] = counts @ sums[here]
    return result.reshape(len(weights), num_groups, *values.shape[1:])


def by_group(
    rows: np.ndarray, group: np.ndarray, num_groups: int, image: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[int, slice, np.ndarray, np.ndarray]]:
    """Goes through groups of rows, and through resamples as far as a table of them fits in memory.

    Yields a group, the resamples, the group's of `rows`, which are ordered by group, [m], and how
    often each of these counts in each of the resamples, [.., m].
    """
    bounds = np.searchsorted(group[rows], np.arange(num_groups + 1))
    for k in range(num_groups):
        here = rows[bounds[k] : bounds[k + 1]]
        step = max(1, _AT_ONCE // max(len(here), 1))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            yield k, part, here, weights[part, image[here]]


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element by element, NaN where the denominator is 0 or less."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    out = np.full(shape, np.nan)
    np.divide(numerator, denominator, out=out, where=np.broadcast_to(denominator > 0, shape))
    return out


def mean_of_classes(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))
