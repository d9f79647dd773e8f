"""Feature pyramid network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection")."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.backbones import BackboneConfig
from harmonic_jax.backbones.conv import Conv, xavier_uniform
from harmonic_jax.backbones.norm import NewNormKind, new_norms
from harmonic_jax.checks import require

LAST_BACKBONE_LEVEL = 5  # stride 32


def check_pyramid(backbone: BackboneConfig, levels: tuple[int, int]) -> None:
    """Refuses pyramid levels that there are not, and a backbone that lacks maps for them."""
    first, last = levels
    legal = f"(first, last) with first <= {LAST_BACKBONE_LEVEL} <= last"
    require(first <= LAST_BACKBONE_LEVEL <= last, "model.levels", levels, legal)
    require(
        backbone.strides[-1] == 2**LAST_BACKBONE_LEVEL,
        "model.backbone.atrous",
        True,
        "False: the pyramid needs a map of stride 32",
    )


def upsample_like(x: jax.Array, finer: jax.Array) -> jax.Array:
    """Nearest-neighbour 2x upsampling, cut to the height and width of the finer map.

    A map of n rows lies above one of 2n or 2n - 1, so every cell repeats twice but perhaps the
    last: the rule of interpolation to a given size as well.
    """
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)[:, : finer.shape[1], : finer.shape[2]]


def _each(convs: nnx.List, norms: nnx.List, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    """Each convolution, and its norm where it has one, of its own input."""
    outputs = [conv(x) for conv, x in zip(convs, inputs, strict=True)]
    return [norm(x) for norm, x in zip(norms, outputs, strict=True)] if norms else outputs


class FeaturePyramid(nnx.Module):
    """Backbone features of stride 2**l up to 32 -> P_first .. P_last, all with `channels` channels.

    Levels up to 5 add a 1x1 lateral of the backbone's feature to the upsampled coarser level and
    pass a 3x3 convolution. With `c5` and `p5`, level 6 is a 3x3 convolution with stride 2 of C5 or
    of P5, and each level above is one of the rectified level below (Lin et al. 2017, "Focal
    Loss"). With `pool`, each is every second cell of the level below, which serves an RPN.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        levels: tuple[int, int],
        channels: int,
        *,
        extra_levels_from: Literal["c5", "p5", "pool"],
        norm: NewNormKind = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        conv = partial(Conv, num_out=channels, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)
        first, last = levels
        self.num_unused = backbone.strides.index(2**first)  # maps finer than the first level
        num_in = backbone.channels[self.num_unused :]
        bias = 0.0 if norm == "none" else None
        self.laterals = nnx.List([conv(num, kernel_size=1, bias=bias) for num in num_in])
        self.outputs = nnx.List([conv(channels, kernel_size=3, bias=bias) for _ in num_in])
        self.lateral_norms = new_norms(norm, channels, len(num_in), dtype=dtype, rngs=rngs)
        self.output_norms = new_norms(norm, channels, len(num_in), dtype=dtype, rngs=rngs)
        self.extra_levels_from = extra_levels_from
        self.num_extra = last - LAST_BACKBONE_LEVEL
        source = num_in[-1] if extra_levels_from == "c5" else channels
        num_convs = 0 if extra_levels_from == "pool" else self.num_extra
        inputs = [source, *[channels] * num_convs][:num_convs]
        self.extra = nnx.List([conv(num, kernel_size=3, stride=2, bias=0.0) for num in inputs])

    def __call__(self, features: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        features = features[self.num_unused :]
        merged = _each(self.laterals, self.lateral_norms, features)
        for i in reversed(range(len(merged) - 1)):
            merged[i] = merged[i] + upsample_like(merged[i + 1], merged[i])
        levels = _each(self.outputs, self.output_norms, merged)
        if self.extra_levels_from == "pool":
            for _ in range(self.num_extra):
                levels.append(levels[-1][:, ::2, ::2])
            return tuple(levels)
        x = features[-1] if self.extra_levels_from == "c5" else levels[-1]
        for i, conv in enumerate(self.extra):
            x = conv(x if i == 0 else jax.nn.relu(x))
            levels.append(x)
        return tuple(levels)
