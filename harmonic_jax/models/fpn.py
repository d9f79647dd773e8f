"""Feature pyramid network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection")."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from harmonic_jax.models.conv import Conv, xavier_uniform


def upsample_like(x: jax.Array, finer: jax.Array) -> jax.Array:
    """Nearest-neighbour 2x upsampling, cut to the height and width of the finer map.

    A map of n rows lies above one of 2n or 2n - 1, so every cell repeats twice but perhaps the
    last: the rule of interpolation to a given size as well.
    """
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)[:, : finer.shape[1], : finer.shape[2]]


class FeaturePyramid(nnx.Module):
    """Backbone features of stride 2**l up to 32 -> P_low .. P_high, all with `channels` channels.

    Levels up to 5 add a 1x1 lateral of the backbone's feature to the upsampled coarser level and
    pass a 3x3 convolution. Level 6 is a 3x3 convolution with stride 2 of C5 or of P5; each level
    above is one of the rectified level below (Lin et al. 2017, "Focal Loss").
    """

    def __init__(
        self,
        num_in: Sequence[int],
        channels: int,
        *,
        num_extra: int,
        extra_levels_from: Literal["c5", "p5"],
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        def conv(num_in: int, kernel_size: int, stride: int = 1) -> Conv:
            return Conv(
                num_in,
                channels,
                kernel_size=kernel_size,
                stride=stride,
                bias=0.0,
                kernel_init=xavier_uniform,
                dtype=dtype,
                rngs=rngs,
            )

        self.laterals = nnx.List([conv(num, 1) for num in num_in])
        self.outputs = nnx.List([conv(channels, 3) for _ in num_in])
        self.extra_levels_from = extra_levels_from
        first = num_in[-1] if extra_levels_from == "c5" else channels
        self.extra = nnx.List(
            [conv(first if i == 0 else channels, 3, stride=2) for i in range(num_extra)]
        )

    def __call__(self, features: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        merged = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            merged[i] = merged[i] + upsample_like(merged[i + 1], merged[i])
        levels = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        x = features[-1] if self.extra_levels_from == "c5" else levels[-1]
        for i, conv in enumerate(self.extra):
            x = conv(x if i == 0 else jax.nn.relu(x))
            levels.append(x)
        return tuple(levels)
