"""PyTorch's side of `benchmarks.gpu`: torchvision as it is, or with torch.compile.

Whole detectors run under autocast to bfloat16 with channels last. Compiled is what has static
shapes, backbone and head; the rest of torchvision's detectors makes lists of varying length.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models.detection._utils import Matcher

from benchmarks.detector_cases import make_case, random_batch
from benchmarks.gpu_tasks import (
    DETECTORS,
    IOU,
    SCORE,
    Sizes,
    Task,
    class_logits,
    level_anchors,
    nms_scene,
    object_boxes,
    serve,
)
from benchmarks.torchvision_pairs import make_peer, peer_inputs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Compile = Callable[[Any], Any]


def prepare(args: argparse.Namespace, sizes: Sizes) -> Task:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    kind, _, name = args.task.partition("-")
    if kind == "weights":
        return write_weights(name, sizes, args.weights)
    # On a processor Inductor would build C++; a dry run only goes through the tracing.
    backend = "inductor" if DEVICE.type == "cuda" else "eager"
    compiled: Compile = lambda f: torch.compile(f, backend=backend) if args.compile else f  # noqa: E731
    if kind in ("train", "infer"):
        return detector(kind, name, sizes, args.weights, compiled)
    return OPERATIONS[args.task](sizes, compiled)


def matmul(sizes: Sizes, compiled: Compile) -> Task:
    a, b = (
        torch.randn(sizes.matmul, sizes.matmul, device=DEVICE, dtype=torch.bfloat16)
        for _ in range(2)
    )
    return _repeat(compiled(torch.matmul), (a, b), flops=2.0 * sizes.matmul**3)


def nms(sizes: Sizes, compiled: Compile) -> Task:
    arrays = _on_device(*nms_scene(sizes))

    def run(boxes: Any, scores: Any, labels: Any) -> list[torch.Tensor]:
        return [
            torchvision.ops.batched_nms(*image, IOU)[: sizes.outputs]
            for image in zip(boxes, scores, labels, strict=True)
        ]

    check = sum(int(kept.sum()) for kept in run(*arrays))
    return _repeat(run, arrays, check=float(check))


def matching(sizes: Sizes, compiled: Compile) -> Task:
    (anchors,) = _on_device(np.concatenate(level_anchors(sizes)))
    (boxes,) = _on_device(object_boxes(sizes))
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    match = compiled(lambda image: matcher(torchvision.ops.box_iou(image, anchors)))

    def run() -> list[torch.Tensor]:
        return [match(image) for image in boxes]

    return _repeat(run, (), check=float(sum(int((found >= 0).sum()) for found in run())))


def focal(sizes: Sizes, compiled: Compile) -> Task:
    logits, labels = _on_device(*class_logits(sizes))
    logits.requires_grad_()
    labels = labels.long()
    loss_of = compiled(torchvision.ops.sigmoid_focal_loss)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        target = torch.zeros_like(logits, requires_grad=False)
        foreground = labels < sizes.classes
        target[(*torch.where(foreground), labels[foreground])] = 1.0
        loss = loss_of(logits, target, reduction="sum")
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    return _repeat(run, (), check=float(run()[0]))


def topk(sizes: Sizes, compiled: Compile) -> Task:
    (logits,) = _on_device(class_logits(sizes)[0])

    def run() -> list[torch.Tensor]:
        """As torchvision's RetinaNet selects on one level."""
        best = []
        for image in logits:
            scores = torch.sigmoid(image).flatten()
            rows = torch.where(scores > SCORE)[0]
            kept, order = scores[rows].topk(min(sizes.topk, len(rows)))
            best.append((kept, rows[order]))
        return [kept for kept, _ in best]

    return _repeat(run, (), check=float(sum(float(scores.sum()) for scores in run())))


def write_weights(name: str, sizes: Sizes, file: str) -> Task:
    """No task: random weights for both sides of the next ones."""
    case = make_case(DETECTORS[name], batch_size=1, size=sizes.image)
    images, _ = peer_inputs(case, random_batch(1, case.size, case.num_classes))
    peer = make_peer(DETECTORS[name], case.size, images)
    np.savez(file, **{key: value.numpy() for key, value in peer.state_dict().items()})
    return Task(lambda times: None, {})


def detector(kind: str, name: str, sizes: Sizes, weights: str, compiled: Compile) -> Task:
    case = make_case(DETECTORS[name], batch_size=sizes.batches[name], size=sizes.image)
    batch = random_batch(sizes.batches[name], case.size, case.num_classes)
    images, targets = peer_inputs(case, batch)
    images = [image.to(DEVICE) for image in images]
    fields = ("boxes", "labels")  # masks would only be copied along
    targets = [{field: target[field].to(DEVICE) for field in fields} for target in targets]
    model: Any = make_peer(DETECTORS[name], case.size, [image.cpu() for image in images[:1]])
    with np.load(weights) as arrays:
        model.load_state_dict({key: torch.tensor(arrays[key]) for key in arrays})
    model = model.to(DEVICE, memory_format=torch.channels_last)
    model.backbone, model.head = compiled(model.backbone), compiled(model.head)
    step, check = (_train if kind == "train" else _infer)(model, images, targets)
    return _repeat(step, (), images=float(len(images)), check=check)


def _train(model: Any, images: list, targets: list) -> tuple[Callable, float]:
    model.train()
    is_cuda = DEVICE.type == "cuda"
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4, fused=is_cuda
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, float(step())


def _infer(model: Any, images: list, targets: list) -> tuple[Callable, float]:
    model.eval()

    def step() -> list[dict[str, torch.Tensor]]:
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
            return model(images)

    return step, float(sum(len(found["boxes"]) for found in step()))


def _on_device(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(array, device=DEVICE) for array in arrays)


def _repeat(step: Callable, arguments: tuple, **facts: float) -> Task:
    def run(times: int) -> None:
        for _ in range(times):
            step(*arguments)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return Task(run, facts, torch.cuda.max_memory_allocated if DEVICE.type == "cuda" else int)


OPERATIONS: dict[str, Callable[[Sizes, Compile], Task]] = {
    "matmul": matmul,
    "nms": nms,
    "matching": matching,
    "focal": focal,
    "topk": topk,
}

if __name__ == "__main__":
    serve(prepare)
