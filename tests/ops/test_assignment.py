"""The assignment against SciPy: of any costs, of padded rows, and without any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from harmonic_jax.ops.assignment import assign

run = jax.jit(jax.vmap(assign))


def costs_of(kind: str, rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    noise = rng.normal(size=(8, rows, columns))
    match kind:
        case "noise":
            return noise
        case "ties":
            return rng.integers(0, 4, noise.shape)
        case "rivals":  # all rows want the same columns: long chains of moves
            return np.sort(noise[:, :1]) + 0.05 * noise
        case _:  # a column that may not be taken, and one almost so
            noise[:, :, :2] = [1e6, 1e4]
            return noise


@pytest.mark.parametrize("kind", ["noise", "ties", "rivals", "forbidden"])
@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (20, 50)])
def test_equals_scipy(kind: str, rows: int, columns: int) -> None:
    """Of bfloat16 too, in one program whatever is valid."""
    rng = np.random.default_rng(rows)
    cost = costs_of(kind, rng, rows, columns).astype(np.float32)
    for part in (1.0, 0.4, 0.0):
        valid = rng.random((8, rows)) < part
        found = np.asarray(run(cost, valid))
        np.testing.assert_array_equal(found >= 0, valid)
        for own, some, image in zip(found, valid, cost.astype(float), strict=True):
            left = image[some]
            assert len(set(own[some])) == len(left)
            best = left[linear_sum_assignment(left)].sum()
            np.testing.assert_allclose(left[range(len(left)), own[some]].sum(), best, rtol=1e-5)
    halves = jnp.asarray(cost, jnp.bfloat16)
    np.testing.assert_array_equal(run(halves, valid), run(jnp.float32(halves), valid))


def test_every_row_is_moved() -> None:
    """The last row wants the first's column, which then takes the second's, and so on."""
    rows = np.arange(30)
    cost = np.where(rows[None] == rows[:, None] + 1, 1.0, 99.0) * (rows[None] != rows[:, None])
    cost[29] = np.where(rows == 0, 0.0, 99.0)
    np.testing.assert_array_equal(jax.jit(assign)(cost, np.ones(30, bool)), (rows + 1) % 30)


def test_of_more_rows_than_columns_the_first_are_assigned() -> None:
    """A search for one more column would never end."""
    rng = np.random.default_rng(0)
    cost, valid = rng.normal(size=(8, 7, 4)), np.array([1, 0, 1, 1, 0, 1, 1], bool)
    found = np.asarray(run(jnp.float32(cost), np.tile(valid, (8, 1))))
    first = [0, 2, 3, 5]
    assert (np.delete(found, first, axis=1) == -1).all()
    for own, image in zip(found, cost, strict=True):
        _, best = linear_sum_assignment(image[first])
        np.testing.assert_array_equal(own[first], best)


def test_float64_elsewhere_changes_nothing() -> None:
    cost = np.array([[1.0, 2, 9], [1, 8, 9]])
    with jax.enable_x64(True):
        assert assign(jnp.asarray(cost), jnp.ones(2, bool)).tolist() == [1, 0]
