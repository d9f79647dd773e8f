"""Focal loss, forward and backward, against torchvision: `python benchmarks/focal_loss.py`.

The size is RetinaNet's: 2 images, 120,000 anchors, 80 classes. Both sides start from logits and
integer labels and end with the sum and its gradient; torchvision's function wants one-hot targets,
which are made as its own RetinaNet makes them (--targets-ready leaves that out of the time). The
two run in turn in one process; what is printed is the median time of each, their ratio, and how
far value and gradient differ.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchvision

from harmonic_jax.losses import sigmoid_focal_loss


def inputs(images: int, anchors: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits around the prior of 0.01, and labels of which one in 500 is not background."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-4.6, 1.5, (images, anchors, classes)).astype(np.float32)
    labels = np.full((images, anchors), classes, np.int32)
    positive = rng.random(labels.shape) < 1 / 500
    labels[positive] = rng.integers(0, classes, positive.sum())
    return logits, labels


def ours(logits: np.ndarray, labels: np.ndarray) -> Callable[[], tuple]:
    step = jax.jit(jax.value_and_grad(lambda x, y: sigmoid_focal_loss(x, y).sum()))
    arrays = jnp.asarray(logits), jnp.asarray(labels)
    return lambda: jax.block_until_ready(step(*arrays))


def theirs(logits: np.ndarray, labels: np.ndarray, targets_ready: bool) -> Callable[[], tuple]:
    x = torch.from_numpy(logits).requires_grad_()
    y = torch.from_numpy(labels).long()

    def one_hot() -> torch.Tensor:
        target = torch.zeros_like(x, requires_grad=False)
        foreground = y < logits.shape[-1]
        target[(*torch.where(foreground), y[foreground])] = 1.0
        return target

    ready = one_hot()

    def step() -> tuple:
        target = ready if targets_ready else one_hot()
        loss = torchvision.ops.sigmoid_focal_loss(x, target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        return loss.detach(), gradient

    return step


def seconds(step: Callable[[], tuple]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--anchors", type=int, default=120_000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--targets-ready", action="store_true", help="do not time the one-hot array"
    )
    args = parser.parse_args()

    logits, labels = inputs(args.images, args.anchors, args.classes)
    steps = {
        "harmonic_jax": ours(logits, labels),
        "torchvision": theirs(logits, labels, args.targets_ready),
    }
    (value, gradient), (peer_value, peer_gradient) = (step() for step in steps.values())
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.repeats):
        for name, step in steps.items():
            times[name].append(seconds(step))

    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"logits {logits.shape} float32, {os.cpu_count()} cores, {args.repeats} alternating runs")
    for name, median in medians.items():
        print(f"{name:>14}: {median * 1e3:8.1f} ms")
    print(f"{'ratio':>14}: {medians['torchvision'] / medians['harmonic_jax']:8.1f} x")
    value_error = abs(float(value) / float(peer_value) - 1)
    gradient_error = np.abs(np.asarray(gradient) - peer_gradient.numpy()).max()
    print(
        f"{'agreement':>14}: sum {value_error:.1e} relative, gradient {gradient_error:.1e} absolute"
    )
    if value_error > 1e-4 or gradient_error > 1e-5:
        raise SystemExit("the two sides disagree")


if __name__ == "__main__":
    main()
