"""Whether a change of structure changed a number: losses, gradients and detections, bit for bit.

    python -m benchmarks.same_numbers before.npz                      # in the tree as it was
    python -m benchmarks.same_numbers after.npz --against before.npz  # in the tree as it is

One random batch goes through a small detector of each family: the sums of its training losses, with
HarDet and with every rival, their gradients, and its detections with every suppression. Detectors
are initialised alike, so what is compared is all that lies between a seed and a number.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from harmonic_jax.config import RIVALS, LossConfig, ModelConfig, RetinaNetConfig
from harmonic_jax.detectors import build_model, detect, loss_sums
from harmonic_jax.structures import Batch, GroundTruth, ObjectMasks
from tests.detectors.tiny import MODELS

SUPPRESSIONS = ("class", "agnostic", "soft_linear", "soft_gaussian", "matrix", "weighted")
NUM_CLASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    numbers: dict[str, np.ndarray] = {}
    for name, config in MODELS.items():
        numbers |= {f"{name}/{key}": value for key, value in _numbers(config).items()}
        print(f"{name}: {len(numbers)} arrays so far")
    np.savez(args.out, **numbers)  # type: ignore[arg-type]
    if args.against is not None:
        _compare(dict(np.load(args.against)), numbers)


def _numbers(config: ModelConfig) -> dict[str, np.ndarray]:
    batch = _batch()
    losses = {"hardet": LossConfig(), "baseline": LossConfig(hardet=False)}
    if isinstance(config, RetinaNetConfig):
        losses |= RIVALS
    found: dict[str, Any] = {}
    for name, loss in losses.items():
        graphdef, params, others = nnx.split(_model(config), nnx.Param, ...)

        def total(params: nnx.State, loss: LossConfig = loss) -> Any:
            model = nnx.merge(graphdef, params, others, copy=True)  # noqa: B023
            model.train()
            sums = loss_sums(model, batch, loss, jax.random.key(1))
            return sums.total, sums.normalized()

        (_, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        found |= {f"{name}/{term}": value for term, value in terms.items()}
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
            found[f"{name}/gradient{jax.tree_util.keystr(path)}"] = leaf
    for nms in SUPPRESSIONS:
        settings = dataclasses.replace(
            config.postprocess, nms=nms, score_threshold=0.005, max_detections=20
        )
        model = _model(dataclasses.replace(config, postprocess=settings))
        model.eval()
        detections = nnx.jit(detect)(model, batch)
        for path, leaf in jax.tree_util.tree_leaves_with_path(detections):
            found[f"{nms}{jax.tree_util.keystr(path)}"] = leaf
    return {key: np.asarray(value) for key, value in found.items()}


def _model(config: ModelConfig) -> nnx.Module:
    return build_model(config, NUM_CLASSES, rngs=nnx.Rngs(0))


def _batch() -> Batch:
    """Three images of one bucket: with three objects, one, and none."""
    rng = np.random.default_rng(0)
    height, width, objects = 64, 96, 4
    corner = rng.uniform(0, 40, (3, objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 40, (3, objects, 2))], -1)
    boxes = boxes.astype(np.float32)
    valid = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    masks = ObjectMasks(
        jnp.asarray(rng.integers(0, 256, (3, objects, 16, 16)), jnp.uint8), jnp.asarray(boxes)
    )
    labels = jnp.asarray(rng.integers(0, NUM_CLASSES, (3, objects)), jnp.int32)
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (3, height, width, 3)), jnp.uint8),
        image_size=jnp.array([[64.0, 96.0], [60.0, 80.0], [64.0, 90.0]]),
        scale=jnp.ones((3, 2)),
        record_index=jnp.arange(3),
        is_real=jnp.ones(3, bool),
        ground_truth=GroundTruth(jnp.asarray(boxes), labels, jnp.asarray(valid), masks),
    )


def _compare(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    for name in sorted(before.keys() ^ after.keys()):
        print(f"only {'before' if name in before else 'after'}: {name}")
    common = sorted(before.keys() & after.keys())
    differing = {}
    for name in common:
        a, b = before[name], after[name]
        if a.shape != b.shape:
            differing[name] = np.inf
        elif not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            differing[name] = np.abs(a.astype(float) - b.astype(float)).max()
    print(f"{len(common) - len(differing)} of {len(common)} arrays are equal, bit for bit")
    for name, most in sorted(differing.items(), key=lambda item: -item[1])[:20]:
        print(f"  {most:.3g} at most: {name}")


if __name__ == "__main__":
    main()
