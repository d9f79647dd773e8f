"""3 x 3 convolutions with fewer products, for processors: Winograd's F(2 x 2, 3 x 3).

Four outputs that form a square read 16 cells and take 16 products a pair of channels instead of 36
(Lavin and Gray 2015, https://arxiv.org/abs/1509.09308).
"""

import math
from collections.abc import Callable, Sequence
from itertools import starmap

import jax
import jax.numpy as jnp

# Convolutions of fewer products than this are not worth 16 products of matrices to compile, and
# with fewer channels the sums before and after take what the products save.
LEAST_PRODUCTS = 2**30
LEAST_CHANNELS = 128
# So many numbers of images (4 MB) at a time: four times as many are multiplied.
MAX_NUMBERS_OF_IMAGES = 2**20

Grid = Sequence[Sequence[jax.Array]]


def is_worth_winograd(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether a 3 x 3 convolution of stride 1 is faster so on a processor: a large one is."""
    is_large = math.prod(x.shape[:3]) * kernel.size >= LEAST_PRODUCTS
    return is_large and min(kernel.shape[2:]) >= LEAST_CHANNELS and x.dtype == jnp.float32


def convolve_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of stride 1 with a zero on every side; float32.

    An image or more, `[b, h, w, i]`, and a kernel `[3, 3, i, o]`.
    """
    return _convolve(x, _transform_kernel(kernel))


def winograd_gradients(
    x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `convolve_winograd` by x and by the kernel; `grad` is that by the output."""
    turned = [[part.T for part in row] for row in _transform_kernel(kernel[::-1, ::-1])]
    parts, to_kernel = jax.vjp(_transform_kernel, kernel)

    def add_images(total: Grid, some: tuple[jax.Array, jax.Array]) -> tuple[Grid, None]:
        images, outputs = some
        (added,) = jax.vjp(lambda parts: _convolve_images(images, parts), parts)[1](outputs)
        return jax.tree.map(jnp.add, total, added), None

    zeros = jax.tree.map(jnp.zeros_like, parts)
    images = _some_at_a_time(x, parts)
    outputs = grad.reshape(*images.shape[:4], -1)
    total, _ = jax.lax.scan(add_images, zeros, (images, outputs))
    return _convolve(grad, turned), to_kernel(total)[0]


def _convolve(x: jax.Array, parts: Grid) -> jax.Array:
    out = jax.lax.map(lambda images: _convolve_images(images, parts), _some_at_a_time(x, parts))
    return out.reshape(*x.shape[:3], -1)


def _some_at_a_time(x: jax.Array, parts: Grid) -> jax.Array:
    """`[b, ..]` to `[b / n, n, ..]`: what is worked on at once stays in a processor's caches."""
    numbers = math.prod(x.shape[1:3]) * max(parts[0][0].shape)
    return x.reshape(-1, images_at_once(len(x), numbers, MAX_NUMBERS_OF_IMAGES), *x.shape[1:])


def images_at_once(num_images: int, numbers: int, limit: int) -> int:
    """The largest divisor of the number of images, of so many numbers each, within a limit.

    >>> images_at_once(6, 10, 50)
    3
    """
    most = max(limit // max(numbers, 1), 1)
    return max(n for n in range(1, max(num_images, 1) + 1) if num_images % n == 0 and n <= most)


def _convolve_images(x: jax.Array, parts: Grid) -> jax.Array:
    num_images, height, width, num_in = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    padded = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    cells = [
        [padded[:, top : top + 2 * rows : 2, left : left + 2 * columns : 2] for left in range(4)]
        for top in range(4)
    ]
    products = [
        [images.reshape(-1, num_in) @ part for images, part in zip(*pair, strict=True)]
        for pair in zip(_on_both_axes(_of_cells, cells), parts, strict=True)
    ]
    out = [
        jnp.stack([part.reshape(num_images, rows, columns, -1) for part in row], axis=3)
        for row in _on_both_axes(_to_outputs, products)
    ]
    return jnp.stack(out, axis=2).reshape(num_images, 2 * rows, 2 * columns, -1)[:, :height, :width]


def _transform_kernel(kernel: jax.Array) -> Grid:
    """`[3, 3, i, o]` to 4 x 4 matrices `[i, o]`."""
    return _on_both_axes(_of_kernel, [list(row) for row in kernel])


def _on_both_axes(transform: Callable[..., Sequence[jax.Array]], grid: Grid) -> Grid:
    """The transform of each row, and then of each column, of a grid of arrays."""
    columns = starmap(transform, zip(*starmap(transform, grid), strict=True))
    return list(zip(*columns, strict=True))


# The paper's B^T, G and A^T, of one axis.


def _of_cells(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> Sequence[jax.Array]:
    return a - c, b + c, c - b, b - d


def _of_kernel(a: jax.Array, b: jax.Array, c: jax.Array) -> Sequence[jax.Array]:
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _to_outputs(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> Sequence[jax.Array]:
    return a + b + c, b - c - d
