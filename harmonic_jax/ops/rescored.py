"""What the suppressions return that change scores or boxes, and what they share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Real

from harmonic_jax.ops.boxes import AnyArray


class Rescored(NamedTuple):
    """The boxes that are left, best new score first. Rows that are not valid hold zeros."""

    boxes: Float[Array, "*b max_outputs 4"]  # float32, as the scores
    scores: Float[Array, "*b max_outputs"]
    indices: Int[Array, "*b max_outputs"]  # int32, into the input: the box that this one was
    valid: Bool[Array, "*b max_outputs"]


def nothing(max_outputs: int) -> Rescored:
    """The result of no boxes.

    >>> nothing(2).valid.tolist()
    [False, False]
    """
    boxes, indices = jnp.zeros((max_outputs, 4), jnp.float32), jnp.zeros(max_outputs, jnp.int32)
    return Rescored(boxes, boxes[:, 0], indices, indices.astype(jnp.bool_))


def candidate_scores(
    scores: Real[AnyArray, " n"], valid: Bool[AnyArray, " n"] | None, *, min_score: float
) -> Float[Array, " n"]:
    """The scores of boxes that take part in float32, and -inf for the others.

    Args:
      scores: `[n]`; a row with NaN takes no part.
      valid: `[n]`, False for padding (None: none is).
      min_score: only scores above this take part.

    >>> import jax.numpy as jnp
    >>> candidate_scores(jnp.array([0.5, jnp.nan, 0.1]), None, min_score=0.2).tolist()
    [0.5, -inf, -inf]
    """
    scores = jnp.asarray(scores, jnp.float32)
    is_candidate = scores > min_score  # NaN compares as False.
    if valid is not None:
        is_candidate &= jnp.asarray(valid)
    return jnp.where(is_candidate, scores, -jnp.inf)


def take_best(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    indices: Integer[Array, " n"],
    *,
    min_score: float,
    max_outputs: int,
) -> Rescored:
    """The rows with the best scores above a limit, as a result of fixed size.

    Of equal scores the lower row comes first.

    >>> import jax.numpy as jnp
    >>> rows = jnp.array([4, 7])
    >>> scores = jnp.array([0.3, 0.6])
    >>> best = take_best(jnp.zeros((2, 4)), scores, rows, min_score=0.0, max_outputs=3)
    >>> best.indices.tolist(), best.valid.tolist()
    ([7, 4, 0], [True, True, False])
    """
    missing = max(max_outputs - scores.shape[0], 0)
    boxes = jnp.pad(boxes, ((0, missing), (0, 0)))
    indices = jnp.pad(indices, (0, missing))
    scores = jnp.pad(scores, (0, missing), constant_values=-jnp.inf)
    best, rows = jax.lax.top_k(scores, max_outputs)
    valid = best > min_score
    return Rescored(
        jnp.where(valid[:, None], boxes[rows], 0.0),
        jnp.where(valid, best, 0.0),
        jnp.where(valid, indices[rows].astype(jnp.int32), 0),
        valid,
    )
