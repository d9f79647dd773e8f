"""Non-maximum suppression against torchvision: 5000 boxes to the best 100, batch of 8.

    python -m benchmarks.nms

Two scenes: `uniform`, unrelated boxes, and `clustered`, 25 jittered boxes around each of 200
objects as a detector emits them. Ours sorts and compares only until 100 boxes are kept; with
clusters it has to look at some 1300 boxes, and torchvision suppresses most early: the ratio is
smaller there. Two forms: class-agnostic and class-wise with 80 classes.
"""

import argparse

import jax
import numpy as np
import torch
import torchvision

from benchmarks.side_by_side import compare
from harmonic_jax.ops.nms import Kept, batched_nms, nms
from tests.ops.scenes import clustered_scene, uniform_scene

IOU = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--boxes", type=int, default=5000)
    parser.add_argument("--outputs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    print(f"{args.boxes} boxes -> {args.outputs}, batch {args.batch}, {jax.devices()[0].platform}")
    for make_scene in (uniform_scene, clustered_scene):
        rng = np.random.default_rng(0)
        scenes = [make_scene(rng, args.boxes, 80) for _ in range(args.batch)]
        for class_wise in (False, True):
            _compare(make_scene.__name__, scenes, class_wise, args.outputs, args.repeats)


def _compare(scene: str, scenes: list, class_wise: bool, outputs: int, repeats: int) -> None:
    arrays = [jax.device_put(np.stack(values)) for values in zip(*scenes, strict=True)]
    tensors = [[torch.tensor(value) for value in scene] for scene in scenes]

    @jax.jit
    @jax.vmap
    def run(boxes: jax.Array, scores: jax.Array, labels: jax.Array) -> Kept:
        if class_wise:
            return batched_nms(boxes, scores, labels, iou_threshold=IOU, max_outputs=outputs)
        return nms(boxes, scores, iou_threshold=IOU, max_outputs=outputs)

    def peer() -> list[torch.Tensor]:
        if class_wise:
            return [torchvision.ops.batched_nms(b, s, l, IOU)[:outputs] for b, s, l in tensors]
        return [torchvision.ops.nms(b, s, IOU)[:outputs] for b, s, _ in tensors]

    kept = run(*arrays)
    for image, expected in enumerate(peer()):
        found = np.asarray(kept.indices[image])[np.asarray(kept.valid[image])]
        np.testing.assert_array_equal(found, expected.numpy())
    form = "class-wise" if class_wise else "class-agnostic"
    name = f"{scene.removesuffix('_scene')}, {form}"
    compare(name, lambda: run(*arrays), peer, repeats=repeats, agree="indices and order equal")


if __name__ == "__main__":
    main()
