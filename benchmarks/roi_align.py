"""RoIAlign forward and backward against torchvision: 512 RoIs an image on a feature pyramid.

    python -m benchmarks.roi_align

Levels 2 to 5 of an 800 x 1344 image, 256 channels, batch of 2, 7 x 7 bins with 2 x 2 samples.
Ours takes features with channels last, torchvision with channels first: each its own layout.
"""

import argparse

import jax
import numpy as np
import torch
import torchvision

from benchmarks.side_by_side import compare
from harmonic_jax.detectors.parts.anchors import level_shapes
from harmonic_jax.ops.roi_align import pyramid_roi_align
from tests.ops.scenes import IMAGE, random_boxes

LEVELS = (2, 5)
ATOL = 5e-4  # Float32 places samples 300 cells from the origin no better than 3e-5 cells.


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--boxes", type=int, default=512)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--output-size", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    features = [
        rng.normal(size=(args.batch, *shape, args.channels)).astype(np.float32)
        for shape in level_shapes(IMAGE, LEVELS)
    ]
    boxes = np.stack([random_boxes(rng, args.boxes) for _ in range(args.batch)])
    shape = (*boxes.shape[:2], args.output_size, args.output_size, args.channels)
    cotangent = rng.normal(size=shape).astype(np.float32)
    _compare(features, boxes, cotangent, args.output_size, args.repeats)


def _compare(
    features: list, boxes: np.ndarray, cotangent: np.ndarray, output_size: int, repeats: int
) -> None:
    arrays = jax.device_put((features, boxes, cotangent))

    @jax.vmap
    def pool(levels: list[jax.Array], boxes: jax.Array) -> jax.Array:
        return pyramid_roi_align(
            levels, boxes, output_size=output_size, first_level=LEVELS[0], aligned=False
        )

    @jax.jit
    def run(features: list, boxes: jax.Array, cotangent: jax.Array) -> tuple:
        pooled, pull = jax.vjp(lambda levels: pool(levels, boxes), features)
        return pooled, pull(cotangent)[0]

    names = [str(l) for l in range(len(features))]
    inputs = {
        name: torch.tensor(np.moveaxis(level, 3, 1).copy(), requires_grad=True)
        for name, level in zip(names, features, strict=True)
    }
    rois = [torch.tensor(image) for image in boxes]
    upstream = torch.tensor(np.moveaxis(cotangent.reshape(-1, *cotangent.shape[2:]), 3, 1).copy())
    peer_pool = torchvision.ops.MultiScaleRoIAlign(names, output_size, sampling_ratio=2)

    def peer_forward() -> torch.Tensor:
        with torch.no_grad():
            return peer_pool(inputs, rois, [IMAGE] * len(rois))

    def peer() -> tuple:
        pooled = peer_pool(inputs, rois, [IMAGE] * len(rois))
        return pooled, torch.autograd.grad(pooled, list(inputs.values()), upstream)

    (pooled, gradients), (expected, expected_gradients) = run(*arrays), peer()
    ours = np.asarray(pooled).reshape(-1, *pooled.shape[2:])
    np.testing.assert_allclose(np.moveaxis(ours, 3, 1), expected.detach(), atol=ATOL)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(np.moveaxis(np.asarray(ours), 3, 1), theirs, atol=ATOL)
    print(f"{boxes.shape[1]} RoIs, batch {boxes.shape[0]}, {jax.devices()[0].platform}")
    agree = f"features and gradients within {ATOL:g}"
    forward = jax.jit(pool)
    compare("forward", lambda: forward(*arrays[:2]), peer_forward, repeats=repeats, agree=agree)
    compare("forward and backward", lambda: run(*arrays), peer, repeats=repeats, agree=agree)


if __name__ == "__main__":
    main()
