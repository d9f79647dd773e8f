"""How much of the gradient at the features that both branches share comes from each branch.

    python -m benchmarks.branch_gradients RUN.. [--data.root DIR] [--batches 4] [--json FILE]

A run of RetinaNet is opened, and batches of its training data are taken as in training. For each
loss the norm of its gradient with respect to the maps of the feature pyramid is printed, through
the classification head and through the box head, and the box head's share of both: the mean over
batches of norm_box / (norm_cls + norm_box). All losses are taken with the same weights: what the
network has learnt is the same, the loss alone differs.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.ablation_tables import branch_table
from harmonic_jax.cli.command import prepare_processor
from harmonic_jax.data.loader import train_batches
from harmonic_jax.data.sources import open_source
from harmonic_jax.detectors import loss_sums
from harmonic_jax.detectors.parts.objective import LossConfig
from harmonic_jax.training.saved_run import SavedRun, open_detector
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated

HARDET = LossConfig()
LOSSES = {
    "baseline": LossConfig(hardet=False),
    "baseline, GIoU": LossConfig(hardet=False, box_loss="giou"),
    "HarDet without its IoU loss": dataclasses.replace(HARDET, alpha=0.0),
    "HarDet, through": HARDET,
    "HarDet, stop": dataclasses.replace(HARDET, factor_gradient="stop"),
    "HarDet, cls_weight 3": dataclasses.replace(HARDET, cls_weight=3.0),
}


class Shifted:
    """A head whose inputs are moved by zeros, one a level: the gradient at them is the head's."""

    def __init__(self, head: Callable[..., jax.Array], shifts: tuple[jax.Array, ...]) -> None:
        self.head, self.shifts = head, iter(shifts)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x + next(self.shifts))


def branch_norms(run: SavedRun, loss: LossConfig, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Norms of d loss / d maps through the classification head and through the box head."""

    def mean_loss(shifts: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]) -> jax.Array:
        model: Any = run.detector.merge(run.variables, train=True)
        cls_head, box_head = (
            Shifted(head, shift)
            for head, shift in zip((model.cls_head, model.box_head), shifts, strict=True)
        )
        heads = {"cls_head": cls_head, "box_head": box_head}
        for name, head in heads.items():
            object.__setattr__(model, name, head)
        sums = loss_sums(model, batch, loss, jax.random.key(0))
        return sums.total * sums.scale()

    model: Any = run.detector.merge(run.variables, train=True)
    maps = jax.eval_shape(lambda images: model.fpn(model.backbone(images)), batch.images)
    zeros = tuple(jnp.zeros(level.shape, level.dtype) for level in maps)
    by_cls, by_box = jax.grad(mean_loss)((zeros, zeros))
    return optax.global_norm(by_cls), optax.global_norm(by_box)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data.root", dest="root", help="the folder of the data, if it moved")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--json", type=Path, help="also append the numbers to this file")
    args = parser.parse_args()
    prepare_processor()
    mesh = data_mesh()
    for path in args.runs:
        run = open_detector(path, sharding=replicated(mesh), last=True)
        data = run.config.data
        if args.root is not None:
            data = dataclasses.replace(data, root=args.root)
        source = open_source(data, data.train_split)
        size = run.config.train.batch_size
        with train_batches(source, data, batch_size=size, seed=1, num_steps=args.batches) as loaded:
            batches = [put_batch(batch, mesh) for batch in loaded]
        for name, loss in LOSSES.items():
            norms = jax.jit(lambda batch, loss=loss, run=run: branch_norms(run, loss, batch))
            found = np.array([norms(batch) for batch in batches])
            share = (found[:, 1] / found.sum(1)).mean()
            by_cls, by_box = found.mean(0)
            row = {"run": path.name, "step": run.step, "loss": name}
            row |= {"cls": float(by_cls), "box": float(by_box), "share": float(share)}
            print(branch_table([row]).splitlines()[-1], flush=True)
            if args.json is not None:
                with args.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
