"""Transformer layers: attention over the cells of a map, over queries, and of queries to maps."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from harmonic_jax.detectors.parts.heads import Linear
from harmonic_jax.ops.deformable_attention import deformable_attention

EPS = 1e-5
xavier = nnx.initializers.xavier_uniform()


class Attention(nnx.Module):
    """Self-attention; positions are added to queries and keys, not to values."""

    def __init__(self, channels: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        linear = partial(Linear, channels, channels, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value, self.output = linear(), linear(), linear(), linear()
        self.num_heads = num_heads

    def __call__(
        self, x: jax.Array, positions: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        b, n, c = x.shape
        placed = x + positions.astype(x.dtype)
        query, key, value = (
            a.reshape(b, n, self.num_heads, -1)
            for a in (self.query(placed), self.key(placed), self.value(x))
        )
        mask = None if mask is None else mask[:, None]
        return self.output(
            jax.nn.dot_product_attention(query, key, value, mask=mask).reshape(b, n, c)
        )


class FeedForward(nnx.Module):
    """Linear, activation, linear."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        activation: Callable[[jax.Array], jax.Array],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        linear = partial(Linear, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.enter, self.leave = linear(channels, hidden), linear(hidden, channels)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.leave(self.activation(self.enter(x)))


def layer_norm(channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(channels, epsilon=EPS, dtype=dtype, rngs=rngs)


class EncoderLayer(nnx.Module):
    """A transformer layer over the cells of a map, each of which knows its place."""

    def __init__(
        self, channels: int, num_heads: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        made: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.attention = Attention(channels, num_heads, **made)
        self.attention_norm = layer_norm(channels, **made)
        gelu = partial(jax.nn.gelu, approximate=False)
        self.ffn = FeedForward(channels, hidden, gelu, **made)
        self.ffn_norm = layer_norm(channels, **made)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        cells = x.reshape(b, h * w, c)
        cells = self.attention_norm(
            cells + self.attention(cells, jnp.asarray(sine_places(h, w, c)))
        )
        return self.ffn_norm(cells + self.ffn(cells)).reshape(x.shape)


def sine_places(height: int, width: int, channels: int) -> np.ndarray:
    """`[1, h * w, c]`: sine and cosine of row and column, of c / 4 wavelengths up to 10,000."""
    rates = 10_000.0 ** -(np.arange(channels // 4) / (channels // 4))
    rows, columns = np.mgrid[:height, :width].reshape(2, -1, 1) * rates
    places = (np.sin(rows), np.cos(rows), np.sin(columns), np.cos(columns))
    return np.concatenate(places, axis=1, dtype=np.float32)[None]


class MLP(nnx.Module):
    """Linear layers with ReLU between them; the last may begin at zero."""

    def __init__(
        self, *sizes: int, is_zero: bool = False, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        last = nnx.initializers.zeros if is_zero else xavier
        inits = [*[xavier] * (len(sizes) - 2), last]
        self.layers = nnx.List(
            [
                Linear(*pair, kernel_init=init, dtype=dtype, rngs=rngs)
                for pair, init in zip(pairwise(sizes), inits, strict=True)
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in list(self.layers)[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class CrossAttention(nnx.Module):
    """Each head of a query reads some places of each map, near its box (deformable attention).

    Args:
        channels: of queries and maps.
        shape: heads, maps, and places.
    """

    def __init__(
        self, channels: int, shape: tuple[int, int, int], *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        num_heads, _, num_points = self.shape = shape
        linear = partial(Linear, channels, dtype=dtype, rngs=rngs)
        zeros, count = nnx.initializers.zeros, math.prod(self.shape)
        # At first each head looks in a direction of its own, each point farther than the last.
        angles = 2 * np.pi * np.arange(num_heads) / num_heads
        ways = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
        ways /= np.abs(ways).max(axis=-1, keepdims=True)
        steps = ways[:, None, None] * np.arange(1, num_points + 1)[:, None]
        steps = np.broadcast_to(steps, (*self.shape, 2)).ravel()
        self.offsets = linear(
            2 * count, kernel_init=zeros, bias_init=lambda *_: jnp.asarray(steps, jnp.float32)
        )
        self.weights = linear(count, kernel_init=zeros)
        self.value = linear(channels, kernel_init=xavier)
        self.output = linear(channels, kernel_init=xavier)

    def __call__(
        self, x: jax.Array, boxes: Float[Array, "b q 4"], memory: Sequence[jax.Array]
    ) -> jax.Array:
        b, q, c = x.shape
        num_heads, _, num_points = self.shape
        offsets = self.offsets(x).astype(jnp.float32).reshape(b, q, *self.shape, 2)
        weights = self.weights(x).astype(jnp.float32).reshape(b, q, num_heads, -1)
        weights = jax.nn.softmax(weights, axis=-1).reshape(b, q, *self.shape)
        centers, sizes = (part[:, :, None, None, None] for part in (boxes[..., :2], boxes[..., 2:]))
        points = centers + offsets * sizes * (0.5 / num_points)
        levels = [self.value(level).reshape(*level.shape[:3], num_heads, -1) for level in memory]
        read = jax.vmap(deformable_attention)(levels, points, weights)
        return self.output(read.reshape(b, q, c).astype(x.dtype))


class DecoderLayer(nnx.Module):
    """Queries look at each other, then at the maps. See `CrossAttention`."""

    def __init__(
        self,
        channels: int,
        shape: tuple[int, int, int],
        hidden: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        made: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.attention = Attention(channels, shape[0], **made)
        self.attention_norm = layer_norm(channels, **made)
        self.cross = CrossAttention(channels, shape, **made)
        self.cross_norm = layer_norm(channels, **made)
        self.ffn = FeedForward(channels, hidden, jax.nn.relu, **made)
        self.ffn_norm = layer_norm(channels, **made)

    def __call__(
        self,
        x: jax.Array,
        places: jax.Array,
        boxes: Float[Array, "b q 4"],
        memory: Sequence[jax.Array],
        mask: jax.Array | None,
    ) -> jax.Array:
        x = self.attention_norm(x + self.attention(x, places, mask))
        x = self.cross_norm(x + self.cross(x + places.astype(x.dtype), boxes, memory))
        return self.ffn_norm(x + self.ffn(x))
