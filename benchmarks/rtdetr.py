"""RT-DETRv2-R18 against Hugging Face's transformers: the same random weights, images and objects.

    python -m benchmarks.rtdetr [inference | train | matching ..]

Inference is from pixels to detections, a train step is forward, matching, loss, backward and SGD,
with noised objects that each side draws for itself. Matching is that of a layer's queries in 16
images with as many objects as COCO's have, costs included; transformers' is SciPy's, on the host.
Checked first: detections, losses, and every pair of the matching.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from transformers import RTDetrImageProcessor, RTDetrV2Config, RTDetrV2ForObjectDetection
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from benchmarks.detector_cases import random_batch
from benchmarks.inference import equal_detections
from benchmarks.side_by_side import compare
from benchmarks.torchvision_pairs import Pair
from benchmarks.train_step import MOST_APART, our_step
from harmonic_jax.cli.command import prepare_processor
from harmonic_jax.config import Config, OptimConfig
from harmonic_jax.detectors.parts.queries import Queries, match_queries
from harmonic_jax.structures import Detections, GroundTruth
from harmonic_jax.training.saved_run import open_detector
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import build_detector
from harmonic_jax.training.step import make_predict_step

NAMES = ("inference", "train", "matching")
NUM_CLASSES, NUM_QUERIES, MAX_OBJECTS = 80, 300, 100
LEAST_EQUAL = 0.95  # of the best hundred; rounding chooses between queries with close scores
R18 = RTDetrV2Config(
    backbone_config={
        "model_type": "rt_detr_resnet", "layer_type": "basic", "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512], "out_features": ["stage2", "stage3", "stage4"],
    },
    encoder_in_channels=[128, 256, 512], hidden_expansion=0.5, decoder_layers=3,
    num_labels=NUM_CLASSES,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=[])
    parser.add_argument("--size", type=int, help="of the images; 640 px, to train 256")
    parser.add_argument("--batch", type=int, nargs="+", help="images; 1 and 4, to train 4")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    prepare_processor()
    for name in args.names or NAMES:
        match name:
            case "inference":
                for batch in args.batch or (1, 4):
                    _compare_inference(args.size or 640, batch, args.repeats)
            case "train":
                for batch in args.batch or (4,):
                    _compare_train_step(args.size or 256, batch, args.repeats)
            case _:
                _compare_matching(args.repeats)


def _make_pair(size: int, batch_size: int) -> Pair:
    """transformers' detector with random weights and statistics, and ours."""
    peer = RTDetrV2ForObjectDetection(R18).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, array in (*peer.named_parameters(), *peer.named_buffers()):
            if not array.is_floating_point() or name.endswith(("n_points_scale", "running_var")):
                continue
            if array.ndim > 1:
                # Of scores smaller ones: the losses are then near those of a trained network.
                gain = 0.05 if "score" in name or "class_embed" in name else 1.5
                values = rng.normal(0, np.sqrt(gain / np.prod(array.shape[1:])), array.shape)
            else:
                values = rng.normal(float(name.endswith("weight")), 0.1, array.shape)
            array.copy_(torch.tensor(values))
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        run = open_detector(Path(folder), sharding=replicated(data_mesh()))
    optim = OptimConfig(learning_rate=1e-6, warmup_steps=0, schedule="constant")
    config = Config("benchmark", run.config.data, run.config.model, run.config.loss, optim)
    detector = build_detector(config, NUM_CLASSES)
    batch = random_batch(batch_size, (size, size), NUM_CLASSES)
    truth = dataclasses.replace(batch.ground_truth, masks=None)
    batch = dataclasses.replace(batch, ground_truth=truth)
    pixels = torch.tensor(np.asarray(batch.images)).permute(0, 3, 1, 2)
    return Pair(peer, detector, run.variables, batch, list(pixels), _targets(truth, size), 0)


def _targets(truth: GroundTruth, size: int) -> list[dict[str, torch.Tensor]]:
    boxes = np.asarray(truth.boxes) / size
    boxes = np.concatenate(
        [(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1
    )
    return [
        {"class_labels": torch.tensor(np.int64(labels[keep])), "boxes": torch.tensor(box[keep])}
        for labels, box, keep in zip(
            np.asarray(truth.labels), boxes, np.asarray(truth.valid), strict=True
        )
    ]


def _compare_inference(size: int, batch_size: int, repeats: int) -> None:
    pair = _make_pair(size, batch_size)
    mesh = data_mesh()
    step, batch = make_predict_step(pair.detector, mesh), put_batch(pair.batch, mesh)
    pixels, sizes = torch.stack(pair.peer_images), torch.full((batch_size, 2), size)
    processor: Any = RTDetrImageProcessor()

    def ours() -> Detections:
        return step(pair.variables, batch)[0]

    @torch.no_grad()
    def peer() -> list[dict[str, torch.Tensor]]:
        output = pair.peer(pixels.float() / 255)
        return processor.post_process_object_detection(output, threshold=0, target_sizes=sizes)

    best = [{name: rows[:100] for name, rows in image.items()} for image in peer()]
    for image in best:  # ours end at the border
        image["boxes"].clamp_(0, size)
    equal, number = equal_detections(ours(), best, 0)
    if equal < LEAST_EQUAL * number:
        raise SystemExit(f"no agreement: {equal} of {number} detections are equal")
    compare(
        f"inference, {size} px, batch {batch_size}", ours, peer, repeats=repeats,
        agree=f"{equal} of {number} detections equal", peer_name="transformers",
    )  # fmt: skip


def _compare_train_step(size: int, batch_size: int, repeats: int) -> None:
    pair = _make_pair(size, batch_size)
    ours, model = our_step(pair), pair.peer.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
    pixels = torch.stack(pair.peer_images)

    def peer() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(pixels.float() / 255, labels=pair.peer_targets).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    mine, other = float(ours()["loss"]), float(peer())
    if abs(mine / other - 1) > MOST_APART:
        raise SystemExit(f"no agreement: loss {mine:.4f} against {other:.4f}")
    compare(
        f"train step, {size} px, batch {batch_size}", ours, peer, repeats=repeats,
        agree=f"losses {mine:.3f} and {other:.3f}", peer_name="transformers",
    )  # fmt: skip


def _compare_matching(repeats: int, batch_size: int = 16) -> None:
    rng = np.random.default_rng(0)
    shape = (batch_size, MAX_OBJECTS)
    counts = rng.geometric(1 / 7.3, batch_size).clip(1, MAX_OBJECTS)  # 7.3 objects an image
    boxes = np.concatenate(
        [rng.uniform(0.2, 0.8, (*shape, 2)), rng.uniform(0.02, 0.4, (*shape, 2))], -1
    )
    boxes = boxes.astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES, shape, np.int32)
    valid = np.arange(MAX_OBJECTS) < counts[:, None]
    # Half of the queries are near an object, some of them near the same.
    logits = rng.normal(-4, 1.5, (batch_size, NUM_QUERIES, NUM_CLASSES)).astype(np.float32)
    near = rng.integers(0, counts[:, None], (batch_size, NUM_QUERIES))
    found = np.take_along_axis(boxes, near[..., None], axis=1)
    found = (found + rng.normal(0, 0.01, found.shape)).clip(0.01, 1).astype(np.float32)
    found[:, ::2] = rng.permutation(found[:, ::2].reshape(-1, 4)).reshape(found[:, ::2].shape)

    arrays = jax.device_put((Queries(logits, found), boxes, GroundTruth(boxes, labels, valid)))  # type: ignore[arg-type]
    run = jax.jit(jax.vmap(match_queries))
    matcher, outputs = RTDetrHungarianMatcher(R18), {
        "logits": torch.tensor(logits), "pred_boxes": torch.tensor(found),
    }  # fmt: skip
    targets = [
        {"class_labels": torch.tensor(np.int64(labels[i, :n])), "boxes": torch.tensor(boxes[i, :n])}
        for i, n in enumerate(counts)
    ]
    expected = np.full((batch_size, NUM_QUERIES), NUM_CLASSES)
    for image, (rows, objects) in enumerate(matcher(outputs, targets)):
        expected[image, rows] = labels[image, objects]
    np.testing.assert_array_equal(run(*arrays).labels, expected)
    compare(
        f"matching, batch {batch_size}, {counts.sum()} objects", lambda: run(*arrays),
        lambda: matcher(outputs, targets), repeats=5 * repeats, agree="every pair equal",
        peer_name="transformers",
    )  # fmt: skip


if __name__ == "__main__":
    main()
