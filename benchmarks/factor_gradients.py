"""Which positives the gradient through HarDet's factors turns around, while a detector trains.

    python -m benchmarks.factor_gradients retinanet-scenes ssd-scenes [--json FILE]

With F = (1 + exp(-L)) C + (1 + exp(-C)) L of a positive with classification loss C and
localization loss L, the analysis says

    dF/dC = 1 + exp(-L) - L exp(-C) < 0   iff  C < ln(L / (1 + exp(-L)))   (less confident)
    dF/dL = 1 + exp(-C) - C exp(-L) < 0   iff  L < ln(C / (1 + exp(-C)))   (the box pushed away)

A case of `ablation_recipe` is trained with full HarDet, seed 0, and from each of some steps on the
positives of a few batches are taken from the detector's own objective: how many are on the wrong
side of each line, with the classification loss or the cross entropy (`ce`) as C, and whether the
derivatives that JAX takes of `harmonic_loss` are those of the analysis.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ablation_grid import Run
from benchmarks.ablation_recipe import CASES, hardet
from benchmarks.ablation_tables import turned_table
from harmonic_jax import losses
from harmonic_jax.cli.command import prepare_processor
from harmonic_jax.cli.configs import config_from_args
from harmonic_jax.config import Config
from harmonic_jax.data.loader import train_batches
from harmonic_jax.data.sources import open_source
from harmonic_jax.detectors import loss_sums
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import (
    Detector,
    Variables,
    build_detector,
    init_state,
    init_variables,
)
from harmonic_jax.training.step import make_train_step

STEPS, BATCHES = (0, 25, 50, 100, 200, 400, 800), 5
AGREEMENT = 1e-4  # of derivatives in float32, whose terms are of the size of C and L


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=list(CASES))
    parser.add_argument("--json", type=Path, help="also append the numbers to this file")
    args = parser.parse_args()
    prepare_processor()
    for case in args.cases:
        run = Run(case, "hardet", 0, (*CASES[case], *hardet()))
        config = config_from_args(run.args)
        for step, positives in trained_positives(config):
            is_one = np.allclose(positives["loss"], positives["ce"], atol=1e-4)  # of a softmax head
            for source in ("loss",) if is_one else ("loss", "ce"):
                row = {"case": case, "step": step, "source": source}
                row |= shares(positives[source], positives["loc"])
                print(turned_table([row]).splitlines()[-1], flush=True)
                if args.json is not None:
                    with args.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def shares(cls_loss: np.ndarray, loc_loss: np.ndarray) -> dict[str, float]:
    """How many positives each derivative turns around.

    Raises:
      AssertionError: JAX's derivatives are not those of the analysis.
    """
    c, u = cls_loss.astype(np.float64), loc_loss.astype(np.float64)
    by_cls, by_loc = jax.grad(
        lambda c, u: losses.harmonic_loss(c, u, factor_gradient="through").sum(), (0, 1)
    )(jnp.asarray(cls_loss), jnp.asarray(loc_loss))
    scale = 1 + c + u
    assert (np.abs(by_cls - (1 + np.exp(-u) - u * np.exp(-c))) < AGREEMENT * scale).all()
    assert (np.abs(by_loc - (1 + np.exp(-c) - c * np.exp(-u))) < AGREEMENT * scale).all()
    return {
        "positives": len(c),
        "less_confident": float((np.asarray(by_cls) < 0).mean()),
        "pushed_away": float((np.asarray(by_loc) < 0).mean()),
        "less_confident_by_analysis": float((c < np.log(u / (1 + np.exp(-u)))).mean()),
        "pushed_away_by_analysis": float((u < np.log(c / (1 + np.exp(-c)))).mean()),
        "median_cls": float(np.median(c)),
        "median_loc": float(np.median(u)),
    }


def trained_positives(config: Config) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Trains, and yields (step, positives of BATCHES batches from there on) for each of STEPS."""
    source, mesh = open_source(config.data, config.data.train_split), data_mesh()
    detector = build_detector(config, len(source.class_names))
    optimizer = make_optimizer(config.optim, config.train)
    everywhere = replicated(mesh)
    variables = init_variables(detector, seed=config.train.seed, sharding=everywhere)
    state = init_state(variables, optimizer, ema=False, sharding=everywhere)
    step = make_train_step(detector, optimizer, mesh)
    look = jax.jit(lambda variables, batch: positives_of(detector, variables, batch))
    batches = train_batches(
        source,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        num_steps=STEPS[-1] + BATCHES,
    )
    seen: list[dict[str, np.ndarray]] = []
    with batches:
        for number, host_batch in enumerate(batches):
            batch = put_batch(host_batch, mesh)
            start = max(first for first in STEPS if first <= number)
            if number < start + BATCHES:
                found = jax.device_get(look(state.variables, batch))
                seen.append({k: found[k][found["where"]] for k in ("loss", "ce", "loc")})
            if number == start + BATCHES - 1:
                yield start, {k: np.concatenate([part[k] for part in seen]) for k in seen[0]}
                seen = []
            state, _ = step(state, batch)


def positives_of(detector: Detector, variables: Variables, batch: Any) -> dict[str, jax.Array]:
    """What the detector's objective hands to `hardet_loss`, of all samples, and which are positive.

    Returns:
      [n] each: `loss` and `ce` of the classification, `loc` = SmoothL1 + alpha HIoU, `where`.
    """
    seen: list[dict[str, jax.Array]] = []
    original = losses.hardet_loss

    def spy(cls_loss: Any, box_loss: Any, prob: Any, iou: Any, entropy: Any, **options: Any) -> Any:
        hiou = losses.harmonic_iou_loss(iou, gamma=options["gamma"], where=options["where"])
        loc = box_loss + options["alpha"] * hiou
        row = {"loss": cls_loss, "ce": -jnp.log(prob), "loc": loc, "where": options["where"]}
        seen.append({name: jnp.ravel(value) for name, value in row.items()})
        return original(cls_loss, box_loss, prob, iou, entropy, **options)

    with mock.patch.object(losses, "hardet_loss", spy):
        model = detector.merge(variables, train=True)
        loss_sums(model, batch, detector.config.loss, jax.random.key(0))
    return {name: jnp.concatenate([part[name] for part in seen]) for name in seen[0]}


if __name__ == "__main__":
    main()
