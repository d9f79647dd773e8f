"""Inference of whole detectors against torchvision: same weights and images, raw pixels to boxes.

    python -m benchmarks.inference [--size 320] [--batch 4]

Both sides get images at network size. Checked first: every detection of ours is one of
torchvision's, but for those whose score or overlap lies at a threshold.
"""

import argparse

import jax
import numpy as np
import torch

from benchmarks.side_by_side import compare
from benchmarks.torchvision_pairs import NAMES, Pair, make_pair
from harmonic_jax.cli.command import prepare_processor
from harmonic_jax.structures import Detections
from harmonic_jax.training.sharding import data_mesh, put_batch
from harmonic_jax.training.step import make_predict_step

LEAST_EQUAL = 0.98  # Rounding decides the rest: of random networks many scores are close.


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=[])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    prepare_processor()
    print(
        f"{args.batch} images of {args.size} x {args.size} (SSD: 300), {jax.devices()[0].platform}"
    )
    for name in args.names or NAMES:
        pair = make_pair(name, batch_size=args.batch, size=args.size)
        _compare(name, pair, args.repeats)


def _compare(name: str, pair: Pair, repeats: int) -> None:
    mesh = data_mesh()
    step = make_predict_step(pair.detector, mesh)
    batch = put_batch(pair.batch, mesh)

    def ours() -> Detections:
        return step(pair.variables, batch)[0]

    @torch.no_grad()
    def peer() -> list[dict[str, torch.Tensor]]:
        return pair.peer(pair.peer_images)

    equal, number = equal_detections(ours(), peer(), pair.first_label)
    if equal < LEAST_EQUAL * number or number == 0:
        raise SystemExit(f"{name}: no agreement: {equal} of {number} detections are equal")
    compare(name, ours, peer, repeats=repeats, agree=f"{equal} of {number} detections equal")


def equal_detections(
    ours: Detections, theirs: list[dict[str, torch.Tensor]], first_label: int
) -> tuple[int, int]:
    """How many of torchvision's detections are ours too, and how many it has."""
    equal = number = 0
    for image, other in enumerate(theirs):
        valid = np.asarray(ours.valid[image])
        boxes, labels = np.asarray(ours.boxes[image])[valid], np.asarray(ours.labels[image])[valid]
        scores = np.asarray(ours.scores[image])[valid]
        for box, label, score in zip(
            other["boxes"].numpy(), other["labels"].numpy(), other["scores"].numpy(), strict=True
        ):
            is_same = (labels + first_label == label) & (np.abs(scores - score) < 1e-4)
            equal += bool((is_same & (np.abs(boxes - box).max(axis=-1, initial=0) < 0.05)).any())
        number += len(other["boxes"])
    return equal, number


if __name__ == "__main__":
    main()
