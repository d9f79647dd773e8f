"""Losses summed over a batch, and what they are divided by, kept apart.

So a batch processed in parts and a batch sharded over devices give the gradient of the whole.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums over all samples of a batch; `add` joins the parts of one batch.

    Attributes:
      total: float32 scalar, what is minimised, not yet divided.
      terms: float32 scalars by name, for logs; each a sum over samples.
      normalizer: float32 scalar; the loss is total / max(normalizer, 1).
      num_positive: float32 scalar, for logs.
    """

    total: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    normalizer: Float[Array, ""]
    num_positive: Float[Array, ""]

    def add(self, other: "LossSums") -> "LossSums":
        return jax.tree.map(jnp.add, self, other)

    def scale(self) -> Float[Array, ""]:
        """1 / max(normalizer, 1): times a gradient of `total`, that of the loss."""
        return 1.0 / jnp.maximum(self.normalizer, 1.0)

    def normalized(self) -> dict[str, Float[Array, ""]]:
        """`loss` and every term, divided by max(normalizer, 1)."""
        scale = self.scale()
        return {"loss": self.total * scale} | {k: v * scale for k, v in self.terms.items()}


def masked(values: Float[Array, "*b"], is_sample: Bool[Array, "*s"]) -> Float[Array, "*b"]:
    """`values` [*s, ...] with zeros where `is_sample` [*s] is False: whatever stands there, no sum
    and no gradient sees it."""
    expanded = is_sample.reshape(is_sample.shape + (1,) * (values.ndim - is_sample.ndim))
    return jnp.where(expanded, values, 0.0)


def join_groups(
    groups: Sequence[LossSums], is_real: Bool[Array, " b"], *, batch_axis: str | None = None
) -> LossSums:
    """Groups of samples with normalizers of their own (anchors, RoIs, masks) as one.

    loss = sum_g total_g / max(normalizer_g, 1)

    Each group is multiplied by the number of real images, which becomes the common normalizer.
    The parts of a batch that is processed in parts are divided by counts of their own: their
    sum is the whole batch's gradient as far as those counts are proportional to the images.

    Args:
      groups: sums over the same batch, with different terms.
      is_real: [b], False for slots that only fill the batch.
      batch_axis: within `jax.shard_map`, the mesh axis that splits the batch: the normalizers are
        then those of all devices, and the sums returned are this device's share.

    Returns:
      Their sum; `num_positive` is that of the last group.

    >>> import jax.numpy as jnp
    >>> def group(name: str, total: float, count: float) -> LossSums:
    ...     total, count = jnp.float32(total), jnp.float32(count)
    ...     return LossSums(total, {name: total}, count, count)
    >>> joined = join_groups([group("rpn", 6.0, 3.0), group("box", 8.0, 2.0)], jnp.ones(5, bool))
    >>> {name: float(value) for name, value in joined.normalized().items()}
    {'loss': 6.0, 'rpn': 2.0, 'box': 4.0}
    """
    own_images = is_real.sum(dtype=jnp.float32)
    counts = jnp.stack([own_images, *(group.normalizer for group in groups)])
    if batch_axis is not None:
        counts = jax.lax.psum(counts, batch_axis)
    weights = counts[0] / jnp.maximum(counts[1:], 1.0)
    weighted = list(zip(groups, weights, strict=True))
    total = sum((g.total * weight for g, weight in weighted), jnp.zeros((), jnp.float32))
    terms = {k: v * weight for g, weight in weighted for k, v in g.terms.items()}
    return LossSums(total, terms, own_images, groups[-1].num_positive)
