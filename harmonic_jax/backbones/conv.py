"""The one convolution of the detectors: NHWC, symmetric padding, optionally not trained."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

# torchvision's choices. He et al. 2015, fan-out: the ResNet.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# Caffe2's "Xavier", bound sqrt(3 / fan_in): the feature pyramid.
xavier_uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
# Lin et al. 2017: the heads of RetinaNet.
head_normal = nnx.initializers.normal(0.01)

# Outputs of at most so many cells are computed as a product of gathered patches.
MAX_CELLS_AS_PATCHES = 8
# Patches of at most so many numbers (4 MB) are multiplied at once in the kernel's gradient on CPU:
# of the images of a small map, or of one image. A few times as many halve the speed.
MAX_NUMBERS_OF_PATCHES = 2**20


class Frozen(nnx.Variable):
    """A constant of the network: no gradient, no update, no weight decay.

    What is trained is `nnx.Param` and nothing else, so `nnx.split(model, nnx.Param, ...)` is the
    whole rule of what an optimizer sees.
    """


class Conv(nnx.Module):
    """A 2-D convolution with square kernels, padded alike on every side.

    Without `padding`, odd kernels are padded by dilation * (kernel_size - 1) / 2, which keeps
    the size. The padding is that of PyTorch: a stride of two starts at the first pixel, whereas
    XLA's "SAME" starts one later on even sizes. With groups, each output channel reads the input
    channels of its group alone. Parameters are float32 and cast to `dtype` at use.

    Args of the call:
        x: `[b, h, w, c]`.

    Returns of the call:
        `[b, ceil(h / stride), ceil(w / stride), out]` in `dtype`, or what `padding` makes of it.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: float | None = None,
        kernel_init: Initializer = he_normal,
        trainable: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        variable = nnx.Param if trainable else Frozen
        shape = (kernel_size, kernel_size, num_in // groups, num_out)
        self.kernel = variable(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = None if bias is None else variable(jnp.full((num_out,), bias, jnp.float32))
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = convolve(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        if self.bias is None:
            return x
        return add_bias(x, self.bias[...])


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x `[.. c]` + float32 bias `[c]`, in the type of x.

    Added in float32 whatever that type: so the bias's gradient, a sum over all cells, is one of
    float32 numbers. In bfloat16 a sum of equal numbers stops growing at 256 of them.
    """
    bias = bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return (x.astype(jnp.float32) + bias).astype(x.dtype)


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int | None = None, dilation: int = 1
) -> jax.Array:
    """Convolution of `[b, h, w, i]` with a square kernel, symmetric padding.

    A 1x1 kernel is a matrix product and written as one: on CPU, XLA's convolution takes twice
    the time, forward and backward, and a product of more than two axes is transposed first. For
    outputs of up to eight cells, the top of a pyramid, it takes 5 to 15 times that of gathering
    patches and multiplying them. With one group the kernel's gradient on CPU is a product of
    patches too: XLA's takes up to four times the time. Forward-mode differentiation is not defined.

    Args:
        x: `[b, h, w, i]`.
        kernel: `[s, s, i / groups, o]`; s is odd where `padding` is None.
        stride: between outputs.
        padding: zeros on every side; None: dilation * (s - 1) / 2.
        dilation: between the cells that a kernel reads.
    """
    size = kernel.shape[0]
    groups = x.shape[-1] // kernel.shape[2]
    if padding is None:
        padding = dilation * (size - 1) // 2
    if size == 1 and padding == 0 and groups == 1:
        cells = x[:, ::stride, ::stride]
        out = cells.reshape(-1, cells.shape[-1]) @ kernel[0, 0]
        return out.reshape(*cells.shape[:3], -1)
    steps = [
        np.arange(0, length + 2 * padding - dilation * (size - 1), stride) - padding
        for length in x.shape[1:3]
    ]
    if groups == 1 and len(steps[0]) * len(steps[1]) <= MAX_CELLS_AS_PATCHES:
        return _convolve_patches(x, kernel, *steps, dilation=dilation)
    options = _Options(stride, padding, dilation)
    return (_convolve_dense if groups == 1 else _convolve_xla)(x, kernel, options)


class _Options(NamedTuple):
    stride: int
    padding: int
    dilation: int


def _convolve_xla(x: jax.Array, kernel: jax.Array, options: _Options) -> jax.Array:
    stride, padding, dilation = options
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_dense(x: jax.Array, kernel: jax.Array, options: _Options) -> jax.Array:
    """The same of one group, with another gradient on CPU."""
    return _convolve_xla(x, kernel, options)


def _convolve_dense_fwd(
    x: jax.Array, kernel: jax.Array, options: _Options
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_dense(x, kernel, options), (x, kernel)


def _convolve_dense_bwd(
    options: _Options, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    (grad_x,) = jax.vjp(lambda x: _convolve_xla(x, kernel, options), x)[1](grad)

    def by_xla(x: jax.Array, grad: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: _convolve_xla(x, kernel, options), kernel)[1](grad)[0]

    def by_patches(x: jax.Array, grad: jax.Array) -> jax.Array:
        return _kernel_gradient(x, grad, kernel, options)

    return grad_x, jax.lax.platform_dependent(x, grad, cpu=by_patches, default=by_xla)


_convolve_dense.defvjp(_convolve_dense_fwd, _convolve_dense_bwd)


def _kernel_gradient(
    x: jax.Array, grad: jax.Array, kernel: jax.Array, options: _Options
) -> jax.Array:
    """Sum over images of outputs^T patches, some images at a time."""
    stride, padding, dilation = options
    size, _, num_in, num_out = kernel.shape
    b, height, width, _ = grad.shape
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    most = MAX_NUMBERS_OF_PATCHES // (height * width * size**2 * num_in)
    num_images = max(n for n in range(1, max(b, 1) + 1) if b % n == 0 and n <= max(most, 1))
    starts = [(dilation * row, dilation * column) for row in range(size) for column in range(size)]

    def add_images(total: jax.Array, some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        cells, outputs = some
        taps = [
            cells[:, top : top + stride * height : stride, left : left + stride * width : stride]
            for top, left in starts
        ]
        patches = jnp.concatenate(taps, axis=-1).reshape(num_images * height * width, -1)
        product = jnp.matmul(
            outputs.reshape(-1, num_out).T, patches, preferred_element_type=jnp.float32
        )
        return total + product, None

    zeros = jnp.zeros((num_out, size * size * num_in), jnp.float32)
    chunks = jax.tree.map(
        lambda array: array.reshape(-1, num_images, *array.shape[1:]), (padded, grad)
    )
    total, _ = jax.lax.scan(add_images, zeros, chunks)
    return total.T.reshape(kernel.shape).astype(kernel.dtype)


def _convolve_patches(
    x: jax.Array, kernel: jax.Array, top: np.ndarray, left: np.ndarray, *, dilation: int
) -> jax.Array:
    """Outputs whose first tap reads rows `top` and columns `left` of the input."""
    b, h, w, num_in = x.shape
    size, _, _, num_out = kernel.shape
    rows = _taps(h, top, size=size, dilation=dilation)  # [h', s, h]
    columns = _taps(w, left, size=size, dilation=dilation)  # [w', s, w]
    # A constant of zeros and ones: its product, unlike slices or a gather, is differentiated
    # into another product, and compiles fast.
    taps = np.einsum("ryh,cxw->rcyxhw", rows, columns).reshape(-1, size**2, h * w)
    cells = x.reshape(b, h * w, num_in)
    patches = jnp.einsum("pnq,bqi->bpni", jnp.asarray(taps, x.dtype), cells)
    y = jnp.einsum("bpni,nio->bpo", patches, kernel.reshape(size**2, num_in, num_out))
    return y.reshape(b, len(rows), len(columns), num_out)


def _taps(length: int, first: np.ndarray, *, size: int, dilation: int) -> np.ndarray:
    """`[outputs, size, length]`: 1 where an output reads an input by that tap."""
    read = first[:, None] + dilation * np.arange(size)
    return (read[:, :, None] == np.arange(length)).astype(np.float32)
