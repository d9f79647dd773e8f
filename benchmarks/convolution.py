"""Convolutions with gradients, against PyTorch: the depthwise ones of a network, and a ResNet's.

    python -m benchmarks.convolution [depthwise | dense]

Depthwise: EfficientNet-Lite0's at 320 px, batch 8. Dense: ResNet-18's at 256 px, batch 4. The sums
weigh a shape by how often the network has it. Ours takes channels last, PyTorch its faster layout:
both are timed, and the better one counts.
"""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks.side_by_side import compare
from harmonic_jax.backbones import EfficientNetLite, EfficientNetLiteConfig
from harmonic_jax.backbones.conv import convolve
from harmonic_jax.backbones.depthwise import depthwise_convolve, same_padding
from harmonic_jax.cli.command import prepare_processor

ATOL = 1e-3  # sums of up to 200,000 products
RESNET18 = {  # (size of the input, channels in and out, size of the kernel, stride): how often
    (256, 3, 64, 7, 2): 1, (64, 64, 64, 3, 1): 4,
    (64, 64, 128, 3, 2): 1, (64, 64, 128, 1, 2): 1, (32, 128, 128, 3, 1): 3,
    (32, 128, 256, 3, 2): 1, (32, 128, 256, 1, 2): 1, (16, 256, 256, 3, 1): 3,
    (16, 256, 512, 3, 2): 1, (16, 256, 512, 1, 2): 1, (8, 512, 512, 3, 1): 3,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One of `count` convolutions: shapes `[b, h, w, i]` and `[s, s, i / groups, o]`.

    `padding` is that of each axis, before and after, both axes alike.
    """

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    padding: tuple[int, int]
    ours: Callable[[jax.Array, jax.Array], jax.Array]
    count: int

    def __str__(self) -> str:
        size, _, _, num_out = self.kernel
        shape = " x ".join(map(str, self.x))
        return f"{shape} to {num_out}, {size} x {size} / {self.stride}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[[], "depthwise", "dense"], default=[])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    prepare_processor()
    for kind in args.kinds or ("depthwise", "dense"):
        sums = np.zeros((2, 2))
        for case in depthwise_cases(320) if kind == "depthwise" else dense_cases():
            sums += case.count * compare_case(case, args.repeats)
        for what, (ours, theirs) in zip(("forward", "forward and backward"), sums, strict=True):
            ratio = f"{theirs / ours:.2f}x"
            print(f"all {kind} {what}: ours {ours:.0f} ms, PyTorch {theirs:.0f} ms, {ratio}")


def depthwise_cases(size: int) -> Iterator[Case]:
    """Those of EfficientNet-Lite0."""
    config = EfficientNetLiteConfig()
    backbone = nnx.eval_shape(lambda: EfficientNetLite(config, rngs=nnx.Rngs(0)))
    layers: Counter[tuple[int, int, int, int]] = Counter()
    size = -(-size // 2)
    for block in backbone.blocks:
        conv = block.depthwise
        kernel_size, _, _, channels = conv.kernel.shape
        layers[size, channels, kernel_size, conv.stride] += 1
        size = -(-size // conv.stride)
    for (size, channels, kernel_size, stride), count in layers.items():
        shapes = (8, size, size, channels), (kernel_size, kernel_size, 1, channels)
        ours = lambda x, kernel, stride=stride: depthwise_convolve(x, kernel, stride)  # noqa: E731
        yield Case(*shapes, stride, same_padding(size, kernel_size, stride), ours, count)


def dense_cases() -> Iterator[Case]:
    """Those of ResNet-18."""
    for (size, num_in, num_out, kernel_size, stride), count in RESNET18.items():
        shapes = (4, size, size, num_in), (kernel_size, kernel_size, num_in, num_out)
        padding = (kernel_size // 2,) * 2
        yield Case(*shapes, stride, padding, partial(convolve, stride=stride), count)


def compare_case(case: Case, repeats: int) -> np.ndarray:
    """Milliseconds `[forward, both; ours, theirs]`, after a check that the two sides agree."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape, np.float32) for shape in (case.x, case.kernel))
    out = -(-case.x[1] // case.stride)
    cotangent = rng.standard_normal((case.x[0], out, out, case.kernel[-1]), np.float32)
    arrays = jax.device_put((x, kernel, cotangent))
    forward = jax.jit(case.ours)

    @jax.jit
    def both(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(case.ours, x, kernel)
        return y, *pull(cotangent)

    weight = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)
    groups = case.x[-1] // case.kernel[2]

    def peer_of(layout: torch.memory_format) -> tuple[Callable[[], tuple], ...]:
        inputs, upstream = (
            torch.tensor(np.moveaxis(array, 3, 1).copy()).contiguous(memory_format=layout)
            for array in (x, cotangent)
        )
        inputs.requires_grad_()

        def run_both() -> tuple[torch.Tensor, ...]:
            padded = torch.nn.functional.pad(inputs, 2 * case.padding)
            y = torch.nn.functional.conv2d(padded, weight, stride=case.stride, groups=groups)
            return y, *(
                torch.autograd.grad(y, (inputs, weight), upstream) if y.requires_grad else ()
            )

        return torch.no_grad()(run_both), run_both

    expected = [array.detach().numpy() for array in peer_of(torch.contiguous_format)[1]()]
    axes = (0, 2, 3, 1), (0, 2, 3, 1), (2, 3, 1, 0)  # of y and x, and of kernels
    for mine, theirs, order in zip(both(*arrays), expected, axes, strict=True):
        np.testing.assert_allclose(mine, theirs.transpose(order), atol=ATOL * np.abs(theirs).max())
    times = np.full((2, 2), np.inf)
    for layout in (torch.contiguous_format, torch.channels_last):
        calls = (lambda: forward(*arrays[:2]), lambda: both(*arrays))
        for row, (ours, peer) in enumerate(zip(calls, peer_of(layout), strict=True)):
            name, agree = f"{case}{', with gradients' * row}", str(layout)
            pair = compare(name, ours, peer, repeats=repeats, agree=agree, peer_name="PyTorch")
            times[row] = np.minimum(times[row], pair)
    return times


if __name__ == "__main__":
    main()
