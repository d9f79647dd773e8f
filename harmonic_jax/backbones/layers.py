"""What every backbone is built of besides convolutions and norms: its input, pooling, a layer."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Conv, xavier_uniform
from harmonic_jax.backbones.norm import build_norm

# ImageNet's, RGB, of 0..255: what torchvision's weights were trained with.
IMAGENET_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)


def normalize_images(
    images: jax.Array,
    image_size: jax.Array | None = None,
    *,
    mean: np.ndarray = IMAGENET_MEAN,
    std: np.ndarray = IMAGENET_STD,
) -> jax.Array:
    """Standardise uint8 images: `(images - mean) / std` in float32, 0 in the padding.

    Args:
        images: `[b, h, w, 3]`, RGB.
        image_size: `[b, 2]` height and width of the image in the top-left corner; what lies
            outside becomes 0, the mean colour, as if padded after normalisation. None: no
            padding.
        mean, std: `[3]`, of 0..255; ImageNet's unless the weights were trained with others.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise TypeError(
            f"images is {images.dtype}{list(images.shape)}; it must be uint8 [b, h, w, 3], RGB"
        )
    mean, std = (a.reshape(1, 1, 1, 3) for a in (mean, std))
    normalized = (images.astype(jnp.float32) - mean) / std
    if image_size is None:
        return normalized
    rows, columns = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    is_row = rows[None, :] < image_size[:, :1]  # [b, h]
    is_column = columns[None, :] < image_size[:, 1:]  # [b, w]
    is_image = is_row[:, :, None, None] & is_column[:, None, :, None]  # [b, h, w, 1]
    return jnp.where(is_image, normalized, 0.0)


def max_pool(
    x: jax.Array, *, size: int, stride: int, padding: int = 0, ceil_mode: bool = True
) -> jax.Array:
    """Maximum over square windows, with PyTorch's gradient.

    First along rows, then along columns, from shifted slices: on CPU far faster, forward and
    backward, than `lax.reduce_window`.

    Args:
        x: `[b, h, w, c]`.
        padding: cells outside, on the top and the left, that the first windows cover.
        ceil_mode: whether a last window that reaches beyond the border is kept.

    Returns:
        `[b, h', w', c]` with `h' = ceil((h + 2 padding - size) / stride) + 1`, rounded down
        without `ceil_mode`; a last window that begins behind the last cell is left out. Where
        several cells of a window are the maximum, the gradient goes to the first in reading order,
        as in PyTorch. NaN is the greatest value.

    Example:
        >>> max_pool(jnp.zeros((1, 75, 75, 3)), size=2, stride=2).shape
        (1, 38, 38, 3)
    """
    rounding = math.ceil if ceil_mode else math.floor
    for axis in (2, 1):
        length = x.shape[axis]
        num_out = rounding((length + 2 * padding - size) / stride) + 1
        num_out -= (num_out - 1) * stride >= length + padding  # a window of no cell
        last = (num_out - 1) * stride  # where the last window begins
        widths = [(0, 0, 0)] * x.ndim
        widths[axis] = (padding, max(last + size - length - padding, 0), 0)
        x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), widths)
        best, *cells = (
            jax.lax.slice_in_dim(x, shift, shift + last + 1, stride=stride, axis=axis)
            for shift in range(size)
        )
        for cell in cells:
            # Not jnp.maximum, which splits the gradient between equal arguments.
            best = jnp.where((best >= cell) | jnp.isnan(best), best, cell)
        x = best
    return x


def mean_pool(x: jax.Array, size: int) -> jax.Array:
    """Mean over squares of `size` cells that touch; those at the border over the cells they have.

    Of `[b, h, w, c]` it makes `[b, ceil(h / size), ceil(w / size), c]`, as PyTorch's
    `AvgPool2d(size, size, ceil_mode=True)`.

    Example:
        >>> mean_pool(jnp.arange(3.0).reshape(1, 1, 3, 1), 2).ravel().tolist()
        [0.5, 2.0]
    """
    b, h, w, c = x.shape
    shape = (-(-h // size), size, -(-w // size), size)
    counts = np.bincount(np.arange(h) // size)[:, None] * np.bincount(np.arange(w) // size)
    widths = ((0, 0), (0, shape[0] * size - h), (0, shape[2] * size - w), (0, 0))
    cells = jnp.pad(x, widths).astype(jnp.float32).reshape(b, *shape, c)
    return (cells.sum((2, 4)) / counts[None, :, :, None].astype(np.float32)).astype(x.dtype)


class ConvLayer(nnx.Module):
    """Convolution, batch norm where the network has norms, and an activation."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kernel_size: int,
        has_norm: bool,
        activation: Callable[[jax.Array], jax.Array] | None = jax.nn.relu,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        kernel_init: Initializer = xavier_uniform,
        trainable: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(
            num_in,
            num_out,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=None if has_norm else 0.0,
            kernel_init=kernel_init,
            trainable=trainable,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = build_norm("batch", num_out, trainable=trainable) if has_norm else None
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)
