"""What both sides of `benchmarks.gpu` share: tasks, sizes, inputs, and how they are told to run.

A side is a process. It prepares one task, prints `{"ready": facts}`, and then for each line with a
number on its input runs the task so many times and prints `{"seconds": .., "peak": bytes}`.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

from harmonic_jax.detectors.parts.anchors import AnchorConfig, make_anchors
from tests.ops.scenes import clustered_scene, random_boxes

DETECTORS = {"retinanet": "retinanet_resnet50_fpn", "ssd300": "ssd300_vgg16"}
SCALES, RATIOS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)
SCORE, IOU = 0.05, 0.5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is; the defaults are what is reported."""

    matmul: int = 8192
    image: tuple[int, int] = (800, 1344)
    batches: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"retinanet": 16, "ssd300": 32}
    )
    op_batch: int = 8
    boxes: int = 5000
    outputs: int = 100
    objects: int = 100
    classes: int = 80
    topk: int = 1000


TINY = Sizes(
    matmul=64,
    image=(64, 96),
    batches={"retinanet": 2, "ssd300": 1},
    op_batch=2,
    boxes=200,
    outputs=20,
    objects=10,
    classes=5,
    topk=50,
)


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to be timed.

    Attributes:
      run: runs it so many times and waits for the device.
      facts: numbers about it: `images` a run, `flops` a run, and `check`, in which both sides must
        agree.
      peak: the most device memory held so far, in bytes; 0 where nobody knows.
    """

    run: Callable[[int], None]
    facts: dict[str, float]
    peak: Callable[[], int] = lambda: 0


Prepare = Callable[[Sizes], Task]


def level_anchors(sizes: Sizes) -> list[np.ndarray]:
    """RetinaNet's anchors, level by level."""
    return list(make_anchors(sizes.image, (3, 7), AnchorConfig()))


def nms_scene(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores and labels of each image, as around objects."""
    rng = np.random.default_rng(0)
    scenes = [clustered_scene(rng, sizes.boxes, sizes.classes) for _ in range(sizes.op_batch)]
    boxes, scores, labels = (np.stack(values) for values in zip(*scenes, strict=True))
    return boxes, scores, labels


def object_boxes(sizes: Sizes) -> np.ndarray:
    """[b g 4]"""
    rng = np.random.default_rng(0)
    return np.stack([random_boxes(rng, sizes.objects, sizes.image) for _ in range(sizes.op_batch)])


def class_logits(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the finest level [b n k], and labels [b n] of which one in 500 is an object's."""
    rng = np.random.default_rng(0)
    shape = (sizes.op_batch, len(level_anchors(sizes)[0]))
    logits = rng.standard_normal((*shape, sizes.classes), np.float32) * 1.5 - 4.6
    labels = np.full(shape, sizes.classes, np.int32)
    positive = rng.random(shape) < 1 / 500
    labels[positive] = rng.integers(0, sizes.classes, positive.sum())
    return logits, labels


def serve(prepare: Callable[[argparse.Namespace, Sizes], Task]) -> None:
    """Runs a side until its input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print must not be taken for an answer.
    sizes = TINY if args.dry_run else Sizes()
    if args.batch:
        sizes = dataclasses.replace(sizes, batches=dict.fromkeys(sizes.batches, args.batch))
    task = prepare(args, sizes)
    task.run(2)  # Compiled and warm.
    print(json.dumps({"ready": task.facts}), file=answers, flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        task.run(int(line))
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "peak": task.peak()}), file=answers, flush=True)
