"""Losses summed over a batch, and what they are divided by, kept apart.

So a batch processed in parts and a batch sharded over devices give the gradient of the whole.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
