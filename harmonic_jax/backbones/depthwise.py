"""A convolution of every channel by itself (Howard et al. 2017), fast on CPUs too.

On CPU, XLA's grouped convolution takes 10 to 100 times a sum of shifted products, forward and
backward; so it is one there, of large batches image by image; other devices run XLA's convolution.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from harmonic_jax.backbones.conv import Frozen

# He et al. 2015: a channel's output is a sum over its own window alone.
_KERNEL_INIT = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
_NUMBERS_AT_ONCE = 2**22  # of the input: larger temporaries than some 16 MB are slow to get
_ROWS_AT_ONCE = 4  # of outputs, in the kernel's gradient: a loop's step costs as much as a row


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, as TensorFlow's SAME has them: ceil(length / stride) outputs.

    Unlike PyTorch's, the padding of a stride of two depends on the length: the odd cell of it
    stands at the end.

    Args:
        length: cells of the input along an axis.
        size: cells of the kernel.
        stride: cells between outputs.

    Example:
        >>> same_padding(224, 3, 2), same_padding(225, 3, 2)
        ((0, 1), (1, 1))
    """
    num_out = -(-length // stride)
    total = max((num_out - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


class DepthwiseConv(nnx.Module):
    """A convolution of every channel by itself, padded as TensorFlow's SAME.

    Args of the call:
        x: `[b, h, w, c]`.

    Returns of the call:
        `[b, ceil(h / stride), ceil(w / stride), c]` in `dtype`.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        kernel_init: Initializer = _KERNEL_INIT,
        trainable: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        variable = nnx.Param if trainable else Frozen
        shape = (kernel_size, kernel_size, 1, num_channels)
        self.kernel = variable(kernel_init(rngs.params(), shape, jnp.float32))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        return depthwise_convolve(x.astype(self.dtype), kernel, self.stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """out[b, y, x, c] = sum_ij kernel[i, j, 0, c] padded[b, y stride + i, x stride + j, c].

    Sums are of float32 numbers whatever the type. Its gradient is defined in reverse mode only.

    Args:
        x: `[b, h, w, c]`.
        kernel: `[s, s, 1, c]`, of the type of x.
        stride: between outputs.

    Returns:
        `[b, ceil(h / stride), ceil(w / stride), c]`, of the type of x.

    Source: Howard et al., MobileNets, 2017, section 3.1.
    """
    by_taps = functools.partial(_convolve_taps, stride=stride)
    by_xla = functools.partial(_convolve_xla, stride=stride)
    out: jax.Array = jax.lax.platform_dependent(x, kernel, cpu=by_taps, default=by_xla)
    return out


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_convolve(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def by_taps(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _input_gradient(x, kernel, grad, stride), _kernel_gradient(x, kernel, grad, stride)

    def by_xla(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        grads: tuple[jax.Array, jax.Array] = jax.vjp(
            functools.partial(_convolve_xla, stride=stride), x, kernel
        )[1](grad)
        return grads

    grads: tuple[jax.Array, jax.Array] = jax.lax.platform_dependent(
        x, kernel, grad, cpu=by_taps, default=by_xla
    )
    return grads


depthwise_convolve.defvjp(_forward, _backward)


def _convolve_xla(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=_padding(x, kernel, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _padding(x: jax.Array, kernel: jax.Array, stride: int) -> list[tuple[int, int]]:
    return [same_padding(length, kernel.shape[0], stride) for length in x.shape[1:3]]


def _padded(image: jax.Array, padding: list[tuple[int, int]]) -> jax.Array:
    return jnp.pad(image.astype(jnp.float32), (*padding, (0, 0)))


def _convolve_taps(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    padding = _padding(x, kernel, stride)
    num_rows, num_columns = (-(-length // stride) for length in x.shape[1:3])

    def convolve(image: jax.Array) -> jax.Array:
        cells = _padded(image, padding)
        total = jnp.zeros((num_rows, num_columns, x.shape[-1]), jnp.float32)
        for row, column in _taps(kernel):
            tap = jax.lax.slice(
                cells,
                (row, column, 0),
                (
                    row + (num_rows - 1) * stride + 1,
                    column + (num_columns - 1) * stride + 1,
                    x.shape[-1],
                ),
                (stride, stride, 1),
            )
            total += tap * kernel[row, column][None]
        return total.astype(x.dtype)

    return _map_images(convolve, x, num_numbers=x.size)


def _map_images(
    function: Callable[[jax.Array], jax.Array], images: jax.Array, *, num_numbers: int
) -> jax.Array:
    """A function of each image: of all at once, or of one after the other."""
    at_once = num_numbers <= _NUMBERS_AT_ONCE
    return jax.vmap(function)(images) if at_once else jax.lax.map(function, images)


def _taps(kernel: jax.Array) -> Iterator[tuple[int, int]]:
    size = kernel.shape[0]
    return ((row, column) for row in range(size) for column in range(size))


def _input_gradient(x: jax.Array, kernel: jax.Array, grad: jax.Array, stride: int) -> jax.Array:
    """Padded cell q stride + a, for every phase a: the sum over i of grad[q - i] kernel[i s + a].

    The phases are the cells between: no product with the zeros that a stride would put there.
    """
    (top, _), (left, _) = _padding(x, kernel, stride)
    height, width, num_channels = x.shape[1:]
    before = (kernel.shape[0] - 1) // stride
    num_rows, num_columns = -(-(height + top) // stride), -(-(width + left) // stride)
    after = [
        max(num - length, 0)
        for num, length in zip((num_rows, num_columns), grad.shape[1:3], strict=True)
    ]

    def of_image(grad: jax.Array) -> jax.Array:
        cells = _padded(grad, [(before, num) for num in after])
        zeros = jnp.zeros((num_rows, num_columns, num_channels), jnp.float32)
        phases = [[zeros] * stride for _ in range(stride)]
        for row, column in _taps(kernel):
            down, across = before - row // stride, before - column // stride
            tap = cells[down : down + num_rows, across : across + num_columns]
            phases[row % stride][column % stride] += tap * kernel[row, column][None]
        full = jnp.stack([jnp.stack(columns, 2) for columns in phases], 1)
        full = full.reshape(num_rows * stride, num_columns * stride, num_channels)
        return full[top : top + height, left : left + width].astype(x.dtype)

    return _map_images(of_image, grad, num_numbers=x.size)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, grad: jax.Array, stride: int) -> jax.Array:
    """Sum over outputs of output times the cell it read, row by row: whole rows are added first."""
    padding, size = _padding(x, kernel, stride), kernel.shape[0]
    num_rows, num_columns, num_channels = grad.shape[1:]

    def add_image(
        totals: list[jax.Array], image: tuple[jax.Array, jax.Array]
    ) -> tuple[list[jax.Array], None]:
        cells, outputs = _padded(image[0], padding), image[1].astype(jnp.float32)

        def add_row(row: int, totals: list[jax.Array]) -> list[jax.Array]:
            shape = (size, cells.shape[1], num_channels)
            read = jax.lax.dynamic_slice(cells, (row * stride, 0, 0), shape)
            output = jax.lax.dynamic_slice_in_dim(outputs, row, 1)
            return [
                total + read[:, column : column + (num_columns - 1) * stride + 1 : stride] * output
                for column, total in enumerate(totals)
            ]

        return jax.lax.fori_loop(0, num_rows, add_row, totals, unroll=_ROWS_AT_ONCE), None

    zeros = [jnp.zeros((size, num_columns, num_channels), jnp.float32)] * size
    totals, _ = jax.lax.scan(add_image, zeros, (x, grad))
    return jnp.stack([total.sum(1) for total in totals], 1)[:, :, None].astype(kernel.dtype)
