"""The linear assignment problem: each row of a matrix its own column, at the least total cost."""

import jax
import jax.numpy as jnp

from harmonic_jax.ops._types import AnyArray, Array, Bool, Float, Int


def assign(cost: Float[AnyArray, "g q"], valid: Bool[AnyArray, " g"]) -> Int[Array, " g"]:
    """The column of each row, all different, whose costs have the least sum.

    Rows whose cheapest columns differ have them at once. For each other row a shortest path finds
    the cheapest chain of moves to a free column. Rows that are not valid take no time.

    Args:
      cost: `[g, q]`, finite; sums of q of them, too.
      valid: `[g]`; other rows take part in nothing.

    Returns:
      `[g]` int32; -1 of rows that are not valid, and of valid ones behind the first q. It has no
      gradient.

    >>> cost = jnp.array([[1.0, 2.0, 9.0], [1.0, 8.0, 9.0], [0.0, 0.0, 0.0]])
    >>> assign(cost, jnp.array([True, True, False])).tolist()
    [1, 0, -1]

    Source: Crouse, "On implementing 2D rectangular assignment algorithms", 2016; SciPy's
    `linear_sum_assignment`.
    """
    cost, valid = jax.lax.stop_gradient(jnp.asarray(cost, jnp.float32)), jnp.asarray(valid)
    nobody, num_columns = cost.shape
    valid &= jnp.cumsum(valid) <= num_columns  # a search for one more would never end
    rows, columns = jnp.arange(nobody), jnp.arange(num_columns)
    best = jnp.argmin(cost, axis=1)
    owner = jnp.full(num_columns, nobody).at[best].min(jnp.where(valid, rows, nobody))
    own = jnp.where(valid & (owner[best] == rows), best, -1)

    def is_waiting(own: jax.Array) -> jax.Array:
        return valid & (own < 0)

    def step(state: tuple) -> tuple:
        own, owner, u, v, row, distance, source, is_seen, first, length = state
        # From `row`, reached at a cost of `length`, to all columns.
        through = length + cost[row] - u[row] - v
        is_better = ~is_seen & (through < distance)
        distance = jnp.where(is_better, through, distance)
        source = jnp.where(is_better, row, source)
        column = jnp.argmin(jnp.where(is_seen, jnp.inf, distance))
        length, row = distance[column], owner[column]
        is_free = row == nobody

        rise = jnp.where(is_seen & is_free, length - distance, 0.0)
        v -= rise
        u += jnp.where(own >= 0, rise[own], jnp.where(is_free & (rows == first), length, 0.0))

        def move(chain: tuple) -> tuple:
            own, owner, column, _ = chain
            mover = source[column]
            owner, left = owner.at[column].set(mover), own[mover]
            return own.at[mover].set(column), owner, left, mover != first

        own, owner, *_ = jax.lax.while_loop(lambda c: c[3], move, (own, owner, column, is_free))
        first = jnp.where(is_free, jnp.argmax(is_waiting(own)), first)
        return (
            own, owner, u, v,
            jnp.where(is_free, first, row),
            jnp.where(is_free, jnp.inf, distance),
            source,
            ~is_free & (is_seen | (columns == column)),
            first,
            jnp.where(is_free, 0.0, length),
        )  # fmt: skip

    first = jnp.argmax(is_waiting(own))
    start = (
        own, owner, cost.min(axis=1), jnp.zeros(num_columns, jnp.float32),
        first, jnp.full(num_columns, jnp.inf, jnp.float32), jnp.zeros(num_columns, first.dtype),
        jnp.zeros(num_columns, bool), first, jnp.float32(0),
    )  # fmt: skip
    return jax.lax.while_loop(lambda state: is_waiting(state[0]).any(), step, start)[0]
