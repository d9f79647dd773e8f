"""Transformer layers: attention over cells, over queries, and of queries to maps."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from harmonic_jax.detectors.parts.heads import Linear
from harmonic_jax.ops.deformable_attention import deformable_attention

Activation = Callable[[jax.Array], jax.Array]
layer_norm = partial(nnx.LayerNorm, epsilon=1e-5)
xavier = nnx.initializers.xavier_uniform()


class Attention(nnx.Module):
    """Self-attention; positions are added to queries and keys, not to values."""

    def __init__(self, channels: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        linear = partial(Linear, channels, channels, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value, self.output = linear(), linear(), linear(), linear()
        self.num_heads = num_heads

    def __call__(self, x: jax.Array, places: jax.Array, mask: jax.Array | None) -> jax.Array:
        placed = x + places.astype(x.dtype)
        query, key, value = (
            a.reshape(*x.shape[:2], self.num_heads, -1)
            for a in (self.query(placed), self.key(placed), self.value(x))
        )
        mask = None if mask is None else mask[:, None]
        seen = jax.nn.dot_product_attention(query, key, value, mask=mask)
        return self.output(seen.reshape(x.shape))


class MLP(nnx.Module):
    """Linear layers with an activation between them."""

    def __init__(
        self,
        *sizes: int,
        activation: Activation = jax.nn.relu,
        last_init: Initializer = xavier,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        inits = [*[xavier] * (len(sizes) - 2), last_init]
        layers = zip(pairwise(sizes), inits, strict=True)
        self.layers = nnx.List([linear(*pair, kernel_init=init) for pair, init in layers])
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in list(self.layers)[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class CrossAttention(nnx.Module):
    """Each head of a query reads some places of each map, near its box (deformable attention).

    `shape` counts heads, maps, and places.
    """

    def __init__(
        self, channels: int, shape: tuple[int, int, int], *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        num_heads, _, num_points = self.shape = shape
        linear = partial(Linear, channels, dtype=dtype, rngs=rngs)
        zeros, count = nnx.initializers.zeros, math.prod(shape)
        # At first each head looks in a direction of its own, each point farther than the last.
        angles = 2 * np.pi * np.arange(num_heads) / num_heads
        ways = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
        ways /= np.abs(ways).max(axis=-1, keepdims=True)
        steps = ways[:, None, None] * np.arange(1, num_points + 1)[:, None]
        steps = np.broadcast_to(steps, (*shape, 2)).ravel()
        self.offsets = linear(
            2 * count, kernel_init=zeros, bias_init=lambda *_: jnp.asarray(steps, jnp.float32)
        )
        self.weights = linear(count, kernel_init=zeros)
        self.value = linear(channels, kernel_init=xavier)
        self.output = linear(channels, kernel_init=xavier)

    def __call__(
        self, x: jax.Array, boxes: Float[Array, "b q 4"], memory: Sequence[jax.Array]
    ) -> jax.Array:
        b, q, _ = x.shape
        num_heads, _, num_points = self.shape
        offsets = self.offsets(x).astype(jnp.float32).reshape(b, q, *self.shape, 2)
        weights = self.weights(x).astype(jnp.float32).reshape(b, q, num_heads, -1)
        weights = jax.nn.softmax(weights, axis=-1).reshape(b, q, *self.shape)
        centers, sizes = jnp.split(boxes[:, :, None, None, None], 2, axis=-1)
        points = centers + offsets * sizes * (0.5 / num_points)
        levels = [self.value(level).reshape(*level.shape[:3], num_heads, -1) for level in memory]
        read = jax.vmap(deformable_attention)(levels, points, weights)
        return self.output(read.reshape(x.shape).astype(x.dtype))


class TransformerLayer(nnx.Module):
    """Cells or queries `[b, n, c]` look at each other, and queries with boxes at maps too.

    `hidden` and `activation` are of the MLP; `reads` counts the maps, and places in each, that a
    head reads; None: it is a layer without maps.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        hidden: int,
        activation: Activation,
        reads: tuple[int, int] | None = None,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        made: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.attention = Attention(channels, num_heads, **made)
        self.attention_norm = layer_norm(channels, **made)
        if reads is not None:
            self.cross = CrossAttention(channels, (num_heads, *reads), **made)
            self.cross_norm = layer_norm(channels, **made)
        self.ffn = MLP(channels, hidden, channels, activation=activation, **made)
        self.ffn_norm = layer_norm(channels, **made)

    def __call__(
        self,
        x: jax.Array,
        places: jax.Array,
        mask: jax.Array | None = None,
        boxes: Float[Array, "b n 4"] | None = None,
        memory: Sequence[jax.Array] = (),
    ) -> jax.Array:
        x = self.attention_norm(x + self.attention(x, places, mask))
        if boxes is not None:
            x = self.cross_norm(x + self.cross(x + places.astype(x.dtype), boxes, memory))
        return self.ffn_norm(x + self.ffn(x))


def sine_places(height: int, width: int, channels: int) -> np.ndarray:
    """`[1, h * w, c]`: sine and cosine of row and column, of c / 4 wavelengths up to 10,000."""
    rates = 10_000.0 ** -(np.arange(channels // 4) / (channels // 4))
    rows, columns = np.mgrid[:height, :width].reshape(2, -1, 1) * rates
    places = (np.sin(rows), np.cos(rows), np.sin(columns), np.cos(columns))
    return np.concatenate(places, axis=1, dtype=np.float32)[None]
