"""The one convolution of the detectors: NHWC, symmetric padding, optionally not trained."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from harmonic_jax.backbones.winograd import (
    convolve_winograd,
    images_at_once,
    is_worth_winograd,
    winograd_gradients,
)

# torchvision's choices. He et al. 2015, fan-out: the ResNet.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# Caffe2's "Xavier", bound sqrt(3 / fan_in): the feature pyramid.
xavier_uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
# Lin et al. 2017: the heads of RetinaNet.
head_normal = nnx.initializers.normal(0.01)

# On CPU outputs of at most so many cells are a product of gathered patches, and outputs of at most
# so many where the kernel has as many numbers (8 MB).
MAX_CELLS_AS_PATCHES = 64
MAX_CELLS_OF_LARGE_KERNELS = 2048
LARGE_KERNEL = 2**21
# Patches of at most so many numbers (4 MB) are multiplied at once: of the images of a small map, or
# of one image. A few times as many halve the speed.
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
    the time, forward and backward, and a product of more than two axes is transposed first. With
    one group, on CPU, large 3x3 convolutions take Winograd's products, half of the time. Of the
    others the kernel's gradient is a product of gathered patches, and so are small outputs, those
    of large kernels and their gradients: XLA's convolution takes up to four times the time.
    Forward-mode differentiation is not defined.

    Args:
        kernel: `[s, s, i / groups, o]`; s is odd where `padding` is None.
        padding: zeros on every side; None: dilation * (s - 1) / 2.
    """
    size = kernel.shape[0]
    groups = x.shape[-1] // kernel.shape[2]
    if padding is None:
        padding = dilation * (size - 1) // 2
    if size == 1 and padding == 0 and groups == 1:
        cells = x[:, ::stride, ::stride]
        out = cells.reshape(-1, cells.shape[-1]) @ kernel[0, 0]
        return out.reshape(*cells.shape[:3], -1)
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
    """The same of one group, by patches on CPU where they are faster."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_convolve_on_cpu, options=options),
        default=functools.partial(_convolve_xla, options=options),
    )


def _convolve_dense_fwd(
    x: jax.Array, kernel: jax.Array, options: _Options
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_dense(x, kernel, options), (x, kernel)


def _convolve_dense_bwd(
    options: _Options, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def on_cpu(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        if _is_winograd(x, kernel, options):
            return winograd_gradients(x, kernel, grad)
        (grad_x,) = jax.vjp(lambda x: _convolve_on_cpu(x, kernel, options), x)[1](grad)
        return grad_x, _kernel_gradient(x, grad, kernel, options)

    def by_xla(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(functools.partial(_convolve_xla, options=options), x, kernel)[1](grad)

    return jax.lax.platform_dependent(*residuals, grad, cpu=on_cpu, default=by_xla)


_convolve_dense.defvjp(_convolve_dense_fwd, _convolve_dense_bwd)


def _is_winograd(x: jax.Array, kernel: jax.Array, options: _Options) -> bool:
    return kernel.shape[0] == 3 and options == (1, 1, 1) and is_worth_winograd(x, kernel)


def _convolve_on_cpu(x: jax.Array, kernel: jax.Array, options: _Options) -> jax.Array:
    if _is_winograd(x, kernel, options):
        return convolve_winograd(x, kernel)
    num_cells = math.prod(_output_size(x, kernel, options))
    most = MAX_CELLS_OF_LARGE_KERNELS if kernel.size >= LARGE_KERNEL else MAX_CELLS_AS_PATCHES
    return (_convolve_patches if num_cells <= most else _convolve_xla)(x, kernel, options)


def _output_size(x: jax.Array, kernel: jax.Array, options: _Options) -> tuple[int, int]:
    reach = options.dilation * (kernel.shape[0] - 1) - 2 * options.padding
    height, width = (max((length - reach - 1) // options.stride + 1, 0) for length in x.shape[1:3])
    return height, width


def _convolve_patches(x: jax.Array, kernel: jax.Array, options: _Options) -> jax.Array:
    flat = kernel.reshape(-1, kernel.shape[-1])

    images, patches_of = _patches(x, kernel, options)
    out = jax.lax.map(lambda some: patches_of(some) @ flat, images)
    return out.reshape(x.shape[0], *_output_size(x, kernel, options), kernel.shape[-1])


def _kernel_gradient(
    x: jax.Array, grad: jax.Array, kernel: jax.Array, options: _Options
) -> jax.Array:
    """Sum over images of outputs^T patches."""
    num_out = kernel.shape[-1]
    images, patches_of = _patches(x, kernel, options)

    def add_images(total: jax.Array, some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        cells, outputs = some
        product = jnp.matmul(outputs.T, patches_of(cells), preferred_element_type=jnp.float32)
        return total + product, None

    zeros = jnp.zeros((num_out, kernel.size // num_out), jnp.float32)
    outputs = grad.reshape(len(images), images.shape[1] * grad.shape[1] * grad.shape[2], num_out)
    total, _ = jax.lax.scan(add_images, zeros, (images, outputs))
    return total.T.reshape(kernel.shape).astype(kernel.dtype)


def _patches(
    x: jax.Array, kernel: jax.Array, options: _Options
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Padded images `[m, n, ..]`, n at a time, and the patches `[n h w, s s i]` of n of them."""
    stride, padding, dilation = options
    size, _, num_in, _ = kernel.shape
    height, width = _output_size(x, kernel, options)
    num_images = x.shape[0]
    numbers = height * width * size**2 * num_in
    at_once = images_at_once(num_images, numbers, MAX_NUMBERS_OF_PATCHES)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    starts = [(dilation * row, dilation * column) for row in range(size) for column in range(size)]

    def patches_of(images: jax.Array) -> jax.Array:
        taps = [
            images[:, top : top + stride * height : stride, left : left + stride * width : stride]
            for top, left in starts
        ]
        return jnp.concatenate(taps, axis=-1).reshape(-1, size**2 * num_in)

    return padded.reshape(num_images // at_once, at_once, *padded.shape[1:]), patches_of
