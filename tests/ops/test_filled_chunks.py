"""Rows that do not exist cost nothing, and change nothing for those that do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from harmonic_jax.ops.filled_chunks import map_filled


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 7), (7, 7)])
@pytest.mark.parametrize("num_chunks", [1, 3, 9])
def test_filled_rows_get_the_functions_value(counts, num_chunks) -> None:
    rows = np.random.default_rng(0).normal(size=(2, 7, 3, 2)).astype(np.float32)
    is_filled = np.arange(7) < np.array(counts)[:, None]
    out = map_filled(lambda x: jnp.sin(x).sum(-1), rows, is_filled, num_chunks=num_chunks)
    assert out.shape == (2, 7, 3)
    np.testing.assert_allclose(out[is_filled], np.sin(rows).sum(-1)[is_filled], rtol=1e-6)


def test_empty_parts_are_not_computed() -> None:
    calls = []

    def function(x):
        jax.debug.callback(lambda _: calls.append(1), x)
        return 2 * x

    is_filled = jnp.arange(8)[None] < 3
    out = jax.jit(lambda r: map_filled(function, r, is_filled, num_chunks=4))(jnp.ones((1, 8, 1)))
    jax.effects_barrier()
    assert len(calls) == 2  # of four parts
    assert out[0, :, 0].tolist() == [2.0] * 4 + [0.0] * 4


def test_gradients() -> None:
    rows = jnp.linspace(-1.0, 1.0, 12).reshape(2, 6, 1)
    is_filled = jnp.arange(6)[None] < jnp.array([[1], [4]])
    weight = jnp.array([[1.5]])

    def loss(rows, weight):
        out = map_filled(lambda x: jnp.tanh(x * weight), rows, is_filled, num_chunks=3)
        return jnp.where(is_filled[..., None], out, 0.0).sum()

    check_grads(jax.jit(loss), (rows, weight), order=1, modes=["rev"], rtol=1e-2)
    grads = jax.jit(jax.grad(loss))(rows, weight)
    assert (grads[~is_filled] == 0).all()
