"""Random balanced samples of anchors and RoIs, of a fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from harmonic_jax.ops._types import AnyArray, Array, Bool, Int, Key, UInt32

AnyKey = Key[Array, ""] | UInt32[Array, "_"]
"""New-style and old-style random keys."""


class Sample(NamedTuple):
    """What was drawn: positives first, then negatives, then padding."""

    indices: Int[Array, "*b m"]  # int32, into the population; 0 where not valid
    is_positive: Bool[Array, "*b m"]
    valid: Bool[Array, "*b m"]


def sample_balanced(
    key: AnyKey,
    is_positive: Bool[AnyArray, " n"],
    is_negative: Bool[AnyArray, " n"],
    *,
    num_samples: int,
    positive_fraction: float,
) -> Sample:
    """Draw positives up to a fraction of the sample, and fill it up with negatives.

    p = min(positives, floor(num_samples * positive_fraction)) positives and
    min(negatives, num_samples - p) negatives, without replacement, every subset of these sizes
    equally likely (up to ties of 30-bit random numbers).

    Args:
      key: a random key. The sample is a function of it, n and the two masks.
      is_positive: `[n]`.
      is_negative: `[n]`, False where is_positive is True. What is neither is never drawn.
      num_samples: m, the size of the sample, >= 1.
      positive_fraction: in [0, 1].

    Returns:
      `Sample` of `[m]`; fewer than m are valid where positives and negatives do not suffice.

    Raises:
      ValueError: num_samples or positive_fraction out of range.

    >>> is_positive = jnp.array([True, False, False, False])
    >>> is_negative = jnp.array([False, False, True, True])
    >>> sample = sample_balanced(
    ...     jax.random.key(0), is_positive, is_negative, num_samples=4, positive_fraction=0.5
    ... )
    >>> sorted(sample.indices[sample.valid].tolist()), sample.valid.tolist()
    ([0, 2, 3], [True, True, True, False])

    Source: Ren et al., Faster R-CNN, 2015, section 3.1.3.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be >= 1")
    if not 0.0 <= positive_fraction <= 1.0:
        raise ValueError(f"positive_fraction is {positive_fraction}; it must be in [0, 1]")
    priority = _random_priority(key, is_positive.shape)
    max_positive = int(num_samples * positive_fraction)
    positives, num_positive = _draw(priority, is_positive, max_positive, slots=num_samples)
    negatives, num_negative = _draw(priority, is_negative, num_samples, slots=num_samples)
    num_negative = jnp.minimum(num_negative, num_samples - num_positive)

    slot = jnp.arange(num_samples, dtype=jnp.int32)
    from_positives = slot < num_positive
    valid = slot < num_positive + num_negative
    after_positives = negatives[jnp.maximum(slot - num_positive, 0)]
    indices = jnp.where(from_positives, positives, after_positives)
    return Sample(jnp.where(valid, indices, 0), from_positives, valid)


def _random_priority(key: AnyKey, shape: tuple[int, ...]) -> Array:
    """Random float32 > 0 of 2**30 different values.

    Uniform numbers have 2**23 values, and among 250 000 anchors thousands would be tied. Positive
    floats are ordered as their bits are; the offset keeps clear of subnormal ones.
    """
    bits = jax.random.bits(key, shape, jnp.uint32) >> 2
    return jax.lax.bitcast_convert_type(bits + jnp.uint32(0x00800000), jnp.float32)


def _draw(priority: Array, is_member: AnyArray, size: int, *, slots: int) -> tuple[Array, Array]:
    """Indices of at most `size` random members, padded to `[slots]`, and how many they are."""
    size = min(size, priority.shape[0])
    _, indices = jax.lax.top_k(jnp.where(is_member, priority, -1.0), size)
    num_drawn = jnp.minimum(jnp.sum(is_member, dtype=jnp.int32), size)
    return jnp.pad(indices.astype(jnp.int32), (0, slots - size)), num_drawn
