"""Work on padded rows that is not done for the padding."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from harmonic_jax.ops._types import AnyArray, Array, Bool, Float


def map_filled(
    function: Callable[[Array], Array],
    rows: Float[AnyArray, "b r ..."],
    is_filled: Bool[AnyArray, "b r"],
    *,
    num_chunks: int,
) -> Float[Array, "b r ..."]:
    """A function of single rows, applied a part of the rows at a time, and not to empty parts.

    Shapes stay static, and time follows the number of rows that exist: with filled rows first, as
    samplers and postprocessing leave them, a batch whose fullest image fills a quarter of its
    rows costs a quarter. The gradient skips the same parts.

    Args:
      function: `[n, *shape]` -> `[n, *out]`; treats each row by itself.
      rows: `[b, r, *shape]`.
      is_filled: `[b, r]`, best with the filled ones first.
      num_chunks: parts that r is cut into, >= 1.

    Returns:
      `[b, r, *out]`: zeros where no image has a filled row in the part; elsewhere the function's
      values, those of rows that are not filled included.

    >>> rows = jnp.array([[[1.0], [2.0], [3.0], [4.0]]])
    >>> is_filled = jnp.array([[True, False, False, False]])
    >>> map_filled(jnp.square, rows, is_filled, num_chunks=2)[0, :, 0].tolist()
    [1.0, 4.0, 0.0, 0.0]
    """
    batch, number = is_filled.shape
    size = -(-number // num_chunks)
    missing = size * num_chunks - number

    def split(x: AnyArray) -> Array:
        x = jnp.pad(jnp.asarray(x), [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, num_chunks, size, *x.shape[2:]).swapaxes(0, 1)

    def flat(x: Array) -> Array:
        return x.reshape(batch * size, *x.shape[2:])

    def skip(x: Array) -> Array:
        shape = jax.eval_shape(function, x)
        return jnp.zeros(shape.shape, shape.dtype)

    def step(_: None, part: tuple[Array, Array]) -> tuple[None, Array]:
        x, filled = part
        out = jax.lax.cond(filled.any(), function, skip, flat(x))
        return None, out.reshape(batch, size, *out.shape[1:])

    _, out = jax.lax.scan(step, None, (split(rows), split(is_filled)))
    joined = out.swapaxes(0, 1).reshape(batch, size * num_chunks, *out.shape[3:])
    return joined[:, :number]
