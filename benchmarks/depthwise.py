"""The depthwise convolutions of EfficientNet-Lite0 at 320 px, with gradients, against PyTorch.

    python -m benchmarks.depthwise

Each shape that the network has once; the sums weigh it by how often it is there. Ours takes
channels last, PyTorch its faster layout: both are timed forward, and the better one counts.
"""

import argparse
from collections import Counter

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks.side_by_side import compare
from harmonic_jax.backbones import EfficientNetLite, EfficientNetLiteConfig
from harmonic_jax.backbones.depthwise import depthwise_convolve, same_padding

ATOL = 1e-3  # sums of up to 200,000 products


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    ratios = {"forward": [0.0, 0.0], "forward and backward": [0.0, 0.0]}
    for (size, channels, kernel, stride), count in _layers(args.size).items():
        name = f"{size} px, {channels} channels, {kernel}x{kernel} / {stride}"
        for what, (ours, theirs) in _compare(
            name, (args.batch, size, size, channels), kernel, stride, args.repeats
        ).items():
            ratios[what][0] += count * ours
            ratios[what][1] += count * theirs
    for what, (ours, theirs) in ratios.items():
        print(f"all {what}: ours {ours:.0f} ms, PyTorch {theirs:.0f} ms, {theirs / ours:.2f}x")


def _layers(size: int) -> Counter[tuple[int, int, int, int]]:
    """(size of the input, channels, kernel size, stride) -> how often."""
    config = EfficientNetLiteConfig()
    backbone = nnx.eval_shape(lambda: EfficientNetLite(config, rngs=nnx.Rngs(0)))
    layers: Counter[tuple[int, int, int, int]] = Counter()
    size = -(-size // 2)
    for block in backbone.blocks:
        conv = block.depthwise
        kernel_size, _, _, channels = conv.kernel.shape
        layers[size, channels, kernel_size, conv.stride] += 1
        size = -(-size // conv.stride)
    return layers


def _compare(
    name: str, shape: tuple[int, ...], size: int, stride: int, repeats: int
) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    kernel = rng.standard_normal((size, size, 1, shape[-1]), np.float32)
    out = -(-shape[1] // stride)
    cotangent = rng.standard_normal((shape[0], out, out, shape[-1]), np.float32)
    arrays = jax.device_put((x, kernel, cotangent))
    forward = jax.jit(lambda x, kernel: depthwise_convolve(x, kernel, stride))

    @jax.jit
    def both(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple:
        y, pull = jax.vjp(lambda x, kernel: depthwise_convolve(x, kernel, stride), x, kernel)
        return y, *pull(cotangent)

    weight = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
    weight.requires_grad_()
    padding = 2 * same_padding(shape[1], size, stride)

    def peer_of(layout: torch.memory_format) -> tuple:
        inputs = torch.tensor(np.moveaxis(x, 3, 1).copy()).contiguous(memory_format=layout)
        inputs.requires_grad_()
        upstream = torch.tensor(np.moveaxis(cotangent, 3, 1).copy())
        upstream = upstream.contiguous(memory_format=layout)

        def run() -> torch.Tensor:
            padded = torch.nn.functional.pad(inputs, padding)
            return torch.nn.functional.conv2d(padded, weight, stride=stride, groups=shape[-1])

        def run_forward() -> torch.Tensor:
            with torch.no_grad():
                return run()

        def run_both() -> tuple:
            y = run()
            return y, *torch.autograd.grad(y, (inputs, weight), upstream)

        return run_forward, run_both

    expected = peer_of(torch.contiguous_format)[1]()
    got = both(*arrays)
    for ours, theirs in zip(got[:2], expected[:2], strict=True):
        np.testing.assert_allclose(ours, np.moveaxis(theirs.detach().numpy(), 1, 3), atol=ATOL)
    theirs = expected[2].numpy()[:, 0].transpose(1, 2, 0)
    np.testing.assert_allclose(got[2][:, :, 0], theirs, atol=ATOL * np.abs(theirs).max())
    times = {"forward": (np.inf, np.inf), "forward and backward": (np.inf, np.inf)}
    for layout in (torch.contiguous_format, torch.channels_last):
        peers = peer_of(layout)
        calls = (lambda: forward(*arrays[:2]), lambda: both(*arrays))
        for what, ours, peer in zip(times, calls, peers, strict=True):
            result = compare(f"{name}, {what}", ours, peer, repeats=repeats, agree=str(layout))
            times[what] = min(times[what][0], result[0]), min(times[what][1], result[1])
    return times


if __name__ == "__main__":
    main()
