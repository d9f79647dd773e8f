"""Batch normalisation (Ioffe and Szegedy 2015), trained over the global batch or frozen.

    y = (x - mean) / sqrt(var + eps) * scale + bias

Statistics and the affine map are float32 even when the network is bfloat16.
"""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Frozen
from harmonic_jax.checks import require

NormKind = Literal["frozen", "batch"]
NewNormKind = Literal["none", "batch", "group"]

EPS = 1e-5
# Channels of a group of GroupNorm (Wu and He 2018): 32 groups at the published 256 channels.
GROUP_SIZE = 8
MOMENTUM = 0.9  # of the running statistics; PyTorch writes it as 1 - 0.9 = 0.1


class FrozenBatchNorm(nnx.Module):
    """Batch norm whose statistics and affine map are constants of a pretrained network."""

    def __init__(self, num_channels: int, *, eps: float = EPS) -> None:
        self.eps = eps
        self.scale = Frozen(jnp.ones((num_channels,), jnp.float32))
        self.bias = Frozen(jnp.zeros((num_channels,), jnp.float32))
        self.mean = Frozen(jnp.zeros((num_channels,), jnp.float32))
        self.var = Frozen(jnp.ones((num_channels,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _apply_constants(self, x)


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last.

    The statistics are those of the whole batch, whatever the number of devices: under `jax.jit`
    with a sharded batch of itself, within `jax.shard_map` where `batch_axis` names the mesh axis
    (`model.set_attributes(batch_axis="data")`). In training (`model.train()`) the running
    statistics move by a tenth towards those of the batch, the variance by its unbiased estimate,
    as in PyTorch; `model.eval()` uses them.

    Args of the call:
        x: `[b, .., c]`.
        where: `[b]` bool, rows that exist: padding takes no part in the statistics. None: all do.
    """

    def __init__(self, num_channels: int, *, eps: float = EPS) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((num_channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((num_channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_channels,), jnp.float32))
        self.use_running_average = False  # the name that nnx.Module.train and .eval set
        self.batch_axis: str | None = None

    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
        if self.use_running_average:
            return _apply_constants(self, x)
        mean, var, count = _statistics(x, where, self.batch_axis)
        self._update(mean, var, count=count)
        # Centred before it is scaled: x * slope + shift would cancel where the mean is large.
        slope = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        mean, slope, bias = (_of_channels(a, x) for a in (mean, slope, self.bias[...]))
        return ((x.astype(jnp.float32) - mean) * slope + bias).astype(x.dtype)

    def _update(self, mean: jax.Array, var: jax.Array, *, count: jax.Array) -> None:
        mean, var = jax.lax.stop_gradient((mean, var))
        unbiased = var * (count / jnp.maximum(count - 1, 1))
        # Without a row there is nothing to learn from.
        rate = jnp.where(count > 0, 1 - MOMENTUM, 0.0)
        self.mean[...] = (1 - rate) * self.mean[...] + rate * mean
        self.var[...] = (1 - rate) * self.var[...] + rate * unbiased


def _statistics(
    x: jax.Array, where: jax.Array | None, batch_axis: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance of each channel, in two passes, and of how many values; float32.

    E[x^2] - E[x]^2 would save a pass and lose every digit where the mean is far from zero.
    Without any row mean and variance are 0.
    """

    def total(partial: jax.Array) -> jax.Array:
        return partial if batch_axis is None else jax.lax.psum(partial, batch_axis)

    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    mask = None if where is None else where.reshape(-1, *(1,) * (x.ndim - 1))
    rows = jnp.float32(x.shape[0]) if where is None else where.sum(dtype=jnp.float32)
    count = total(rows) * math.prod(x.shape[1:-1])
    divisor = jnp.maximum(count, 1)
    mean = total(x.sum(axes, where=mask)) / divisor
    var = total(jnp.square(x - _of_channels(mean, x)).sum(axes, where=mask)) / divisor
    return mean, var, count


def _apply_constants(norm: FrozenBatchNorm | BatchNorm, x: jax.Array) -> jax.Array:
    """Fixed statistics make the norm one affine map, y = x * slope + shift."""
    slope = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.eps)
    shift = norm.bias[...] - norm.mean[...] * slope
    slope, shift = _of_channels(slope, x), _of_channels(shift, x)
    return (x.astype(jnp.float32) * slope + shift).astype(x.dtype)


def _of_channels(values: jax.Array, x: jax.Array) -> jax.Array:
    """[c] -> [1, .., c], with as many axes as `x`."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def build_norm(
    kind: NormKind, num_channels: int, *, trainable: bool, eps: float = EPS
) -> BatchNorm | FrozenBatchNorm:
    """The norm of a backbone; a stage that is not trained keeps its statistics too."""
    if kind == "batch" and trainable:
        return BatchNorm(num_channels, eps=eps)
    return FrozenBatchNorm(num_channels, eps=eps)


def check_groups(field: str, channels: int, norm: str) -> None:
    """Refuses a number of channels that `group` cannot split."""
    is_whole = norm != "group" or channels % GROUP_SIZE == 0
    require(is_whole, field, channels, f"a multiple of {GROUP_SIZE} with `group`")


def new_norms(
    kind: NewNormKind, num_channels: int, count: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.List:
    """The norms of `count` layers that no classifier was trained with; empty for `none`."""
    match kind:
        case "none":
            return nnx.List([])
        case "batch":
            return nnx.List([BatchNorm(num_channels) for _ in range(count)])
        case "group":
            group = partial(nnx.GroupNorm, num_channels, num_groups=None, group_size=GROUP_SIZE)
            return nnx.List([group(epsilon=EPS, dtype=dtype, rngs=rngs) for _ in range(count)])
