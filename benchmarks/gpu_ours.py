"""Our side of `benchmarks.gpu`. Imports only what inference and a train step need: JAX, Flax,
Optax and jaxtyping."""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.detector_cases import make_case, random_batch
from benchmarks.gpu_tasks import (
    DETECTORS,
    IOU,
    SCORE,
    Prepare,
    Sizes,
    Task,
    class_logits,
    level_anchors,
    nms_scene,
    object_boxes,
    serve,
)
from harmonic_jax.detectors.parts.matching import MatchConfig, match_anchors
from harmonic_jax.detectors.retinanet import best_pairs
from harmonic_jax.losses import sigmoid_focal_loss
from harmonic_jax.ops.nms import batched_nms
from harmonic_jax.pretrained import load_detector
from harmonic_jax.structures import Batch
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import (
    Detector,
    Variables,
    build_detector,
    init_state,
    init_variables,
)
from harmonic_jax.training.step import make_predict_step, make_train_step


def prepare(args: argparse.Namespace, sizes: Sizes) -> Task:
    kind, _, name = args.task.partition("-")
    if kind == "train":
        return train(name, sizes, args.weights)
    if kind == "infer":
        return infer(name, sizes, args.weights)
    return OPERATIONS[args.task](sizes)


def matmul(sizes: Sizes) -> Task:
    a, b = (
        jax.random.normal(jax.random.key(i), (sizes.matmul, sizes.matmul), jnp.bfloat16)
        for i in range(2)
    )
    return _repeat(jax.jit(jnp.matmul), (a, b), flops=2.0 * sizes.matmul**3)


def nms(sizes: Sizes) -> Task:
    @jax.vmap
    def run(boxes: jax.Array, scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        kept = batched_nms(boxes, scores, labels, iou_threshold=IOU, max_outputs=sizes.outputs)
        return kept.indices, kept.valid

    step, arrays = jax.jit(run), jax.device_put(nms_scene(sizes))
    indices, valid = step(*arrays)
    return _repeat(step, arrays, check=float(np.where(valid, indices, 0).sum()))


def matching(sizes: Sizes) -> Task:
    anchors = np.concatenate(level_anchors(sizes))

    @jax.vmap
    def run(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        valid = jnp.ones(len(boxes), bool)
        found = match_anchors(anchors, boxes, valid, MatchConfig())
        return found.state, found.index

    step, arrays = jax.jit(run), (jax.device_put(object_boxes(sizes)),)
    return _repeat(step, arrays, check=float((step(*arrays)[0] == 1).sum()))


def focal(sizes: Sizes) -> Task:
    step = jax.jit(jax.value_and_grad(lambda x, y: sigmoid_focal_loss(x, y).sum()))
    arrays = jax.device_put(class_logits(sizes))
    return _repeat(step, arrays, check=float(step(*arrays)[0]))


def topk(sizes: Sizes) -> Task:
    step = jax.jit(jax.vmap(lambda x: best_pairs(x, SCORE, sizes.topk)))
    arrays = (jax.device_put(class_logits(sizes)[0]),)
    scores = np.asarray(step(*arrays)[0])
    return _repeat(step, arrays, check=float(scores[scores > SCORE].sum()))


def train(name: str, sizes: Sizes, weights: str | None) -> Task:
    detector, variables, batch = _detector(name, sizes, weights)
    config, mesh = detector.config, data_mesh()
    optimizer = make_optimizer(config.optim, config.train)
    step: Any = make_train_step(detector, optimizer, mesh)
    current = [init_state(variables, optimizer, ema=False, sharding=replicated(mesh))]
    flops = _flops(step, current[0], batch)
    metrics: list[dict[str, jax.Array]] = []

    def run(times: int) -> None:
        for _ in range(times):
            current[0], last = step(current[0], batch)
        metrics[:] = [last]
        jax.block_until_ready((current[0], last))

    run(1)
    images = len(batch.images)
    facts = {"images": images, "flops": flops, "check": float(metrics[0]["loss"])}
    return Task(run, facts, _peak)


def infer(name: str, sizes: Sizes, weights: str | None) -> Task:
    detector, variables, batch = _detector(name, sizes, weights)
    step: Any = make_predict_step(detector, data_mesh())
    flops = _flops(step, variables, batch)
    found = step(variables, batch)[0]
    return _repeat(
        step,
        (variables, batch),
        images=len(batch.images),
        flops=flops,
        check=float(found.valid.sum()),
    )


def _detector(name: str, sizes: Sizes, weights: str | None) -> tuple[Detector, Variables, Batch]:
    """The detector in bfloat16, its arrays (of torchvision's side if given) and a batch."""
    case = make_case(
        DETECTORS[name], batch_size=sizes.batches[name], size=sizes.image, precision="bfloat16"
    )
    detector = build_detector(case.config, case.num_classes)
    mesh = data_mesh()
    variables = init_variables(detector, seed=0, sharding=replicated(mesh))
    if weights is not None:
        with np.load(weights) as arrays:
            loaded = load_detector(
                variables.params,
                variables.model_state,
                dict(arrays),
                case.config.model,
                case.num_classes,
            )
        variables = jax.device_put(Variables(*loaded), replicated(mesh))
    batch = random_batch(sizes.batches[name], case.size, case.num_classes)
    return detector, variables, put_batch(batch, mesh)


def _flops(step: Any, *arguments: Any) -> float:
    """Of one call, two for a multiplication with its addition, before the compiler changes any."""
    return float(step.lower(*arguments).cost_analysis().get("flops", 0.0))


def _repeat(step: Callable, arguments: tuple, **facts: float) -> Task:
    def run(times: int) -> None:
        for _ in range(times):
            last = step(*arguments)
        jax.block_until_ready(last)

    return Task(run, facts, _peak)


def _peak() -> int:
    return int((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


OPERATIONS: dict[str, Prepare] = {
    "matmul": matmul,
    "nms": nms,
    "matching": matching,
    "focal": focal,
    "topk": topk,
}

if __name__ == "__main__":
    serve(prepare)
