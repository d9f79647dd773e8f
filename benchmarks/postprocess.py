"""Postprocessing against torchvision's RetinaNet: 800 x 1344, 80 classes, raw outputs to boxes.

    python -m benchmarks.postprocess

`trained`: logits as a trained network gives them, about 1800 pairs above the threshold of 0.05
around 12 objects; `noise`: the same number of candidates, anywhere; `early`: a network that has
hardly been trained, where tens of thousands of pairs pass the threshold.
"""

import argparse

import jax
import numpy as np
import torch
from torchvision.models.detection import RetinaNet

from benchmarks.side_by_side import compare
from harmonic_jax.detectors.parts.anchors import AnchorConfig, make_anchors
from harmonic_jax.detectors.parts.selection import PostprocessConfig
from harmonic_jax.detectors.retinanet import detect_in_image
from harmonic_jax.ops.box_coder import encode_boxes
from harmonic_jax.ops.boxes import pairwise_iou
from harmonic_jax.structures import Detections, Predictions
from tests.ops.scenes import random_boxes

IMAGE, CLASSES = (800, 1344), 80
ANCHORS = make_anchors(IMAGE, (3, 7), AnchorConfig())
Levels = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(f"{IMAGE}, {CLASSES} classes, batch {args.batch}, {jax.devices()[0].platform}")
    for name, mean, spread in (("trained", -9.0, 1.0), ("noise", -7.0, 1.1), ("early", -5.5, 1.1)):
        logits, deltas = _raw_outputs(args.batch, mean, spread)
        if name == "trained":
            _add_objects(logits, deltas)
        candidates = sum(int((level > np.log(0.05 / 0.95)).sum()) for level in logits)
        label = f"{name}, {candidates // args.batch} candidates"
        _compare(label, logits, deltas, args.repeats)


def _raw_outputs(batch: int, mean: float, spread: float) -> tuple[Levels, Levels]:
    rng = np.random.default_rng(0)
    logits, deltas = [], []
    for anchors in ANCHORS:
        shape = (batch, len(anchors))
        logits.append(rng.standard_normal((*shape, CLASSES), np.float32) * spread + mean)
        deltas.append(rng.standard_normal((*shape, 4), np.float32) * 0.2)
    return [level.astype(np.float32) for level in logits], deltas


def _add_objects(logits: Levels, deltas: Levels, objects: int = 12) -> None:
    """Anchors that overlap an object say so, the better the overlap the louder."""
    rng = np.random.default_rng(1)
    for image in range(len(logits[0])):
        boxes = random_boxes(rng, objects, IMAGE, smallest=24.0)
        labels = rng.integers(0, CLASSES, objects)
        for level, anchors in enumerate(ANCHORS):
            iou = np.asarray(pairwise_iou(anchors, boxes))
            for box, label, overlap in zip(boxes, labels, iou.T, strict=True):
                near = np.flatnonzero(overlap > 0.3)
                noise = rng.normal(0, 1, len(near))
                logits[level][image, near, label] = 8 * overlap[near] - 4.5 + noise
                target = np.broadcast_to(box, (len(near), 4))
                deltas[level][image, near] = np.asarray(encode_boxes(target, anchors[near]))
                deltas[level][image, near] += rng.normal(0, 0.1, (len(near), 4))


def _compare(name: str, logits: Levels, deltas: Levels, repeats: int) -> None:
    batch = len(logits[0])
    predictions = jax.device_put(Predictions(tuple(logits), tuple(deltas)))
    sizes = jax.device_put(np.tile(np.float32(IMAGE), (batch, 1)))

    @jax.jit
    def run(predictions: Predictions, sizes: jax.Array) -> Detections:
        config = PostprocessConfig()
        return jax.vmap(lambda outputs, size: detect_in_image(outputs, ANCHORS, size, config))(
            predictions, sizes
        )

    backbone = torch.nn.Identity()
    backbone.out_channels = 1  # type: ignore[assignment]
    model = RetinaNet(backbone, CLASSES, detections_per_img=100)
    outputs = {
        "cls_logits": [torch.tensor(level) for level in logits],
        "bbox_regression": [torch.tensor(level) for level in deltas],
    }
    anchors = [[torch.tensor(level) for level in ANCHORS]] * batch

    @torch.no_grad()
    def peer() -> list[dict[str, torch.Tensor]]:
        return model.postprocess_detections(outputs, anchors, [IMAGE] * batch)

    _check(run(predictions, sizes), peer())
    agree = "labels equal, scores and boxes close"
    compare(name, lambda: run(predictions, sizes), peer, repeats=repeats, agree=agree)


def _check(detections: Detections, expected: list[dict[str, torch.Tensor]]) -> None:
    for image, other in enumerate(expected):
        valid = np.asarray(detections.valid[image])
        for field, tolerance in (("labels", 0), ("scores", 1e-6), ("boxes", 2e-3)):
            ours = np.asarray(getattr(detections, field)[image])[valid]
            np.testing.assert_allclose(ours, other[field].numpy(), rtol=0, atol=tolerance)


if __name__ == "__main__":
    main()
