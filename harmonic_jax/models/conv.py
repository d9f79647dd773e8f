"""The one convolution of the detectors: NHWC, symmetric padding, optionally not trained."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

# torchvision's choices. He et al. 2015, fan-out: the ResNet.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# Caffe2's "Xavier", bound sqrt(3 / fan_in): the feature pyramid.
xavier_uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
# Lin et al. 2017: the heads of RetinaNet.
head_normal = nnx.initializers.normal(0.01)


class Frozen(nnx.Variable):
    """A constant of the network: no gradient, no update, no weight decay.

    What is trained is `nnx.Param` and nothing else, so `nnx.split(model, nnx.Param, ...)` is the
    whole rule of what an optimizer sees.
    """


class Conv(nnx.Module):
    """A 2-D convolution with odd square kernels, padded by (kernel_size - 1) / 2 on every side.

    The padding is that of PyTorch: a stride of two starts at the first pixel, whereas XLA's
    "SAME" starts one later on even sizes. Parameters are float32 and cast to `dtype` at use.

    Args of the call:
        x: `[b, h, w, c]`.

    Returns of the call:
        `[b, ceil(h / stride), ceil(w / stride), out]` in `dtype`.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kernel_size: int,
        stride: int = 1,
        bias: float | None = None,
        kernel_init: Initializer = he_normal,
        trainable: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        variable = nnx.Param if trainable else Frozen
        shape = (kernel_size, kernel_size, num_in, num_out)
        self.kernel = variable(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = None if bias is None else variable(jnp.full((num_out,), bias, jnp.float32))
        self.padding = (kernel_size - 1) // 2
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=((self.padding, self.padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.bias is None:
            return x
        return x + self.bias[...].astype(self.dtype)[None, None, None, :]
