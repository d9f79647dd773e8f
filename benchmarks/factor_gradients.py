"""Which positives the gradient through HarDet's factors turns around, while a detector trains.

    python -m benchmarks.factor_gradients configs/retinanet_r18_scenes.py --at 0 100 400

With F = (1 + exp(-L)) C + (1 + exp(-C)) L of a positive with classification loss C and
localization loss L, the analysis says

    dF/dC = 1 + exp(-L) - L exp(-C) < 0   iff  C < ln(L / (1 + exp(-L)))   (less confident)
    dF/dL = 1 + exp(-C) - C exp(-L) < 0   iff  L < ln(C / (1 + exp(-C)))   (the box pushed away)

The detector of the config is trained (with its own losses) and at the given steps the positives
of a batch are taken from its own objective: how many are on the wrong side of each line, with the
classification loss or the cross entropy (`ce`) as C, and whether the derivatives that JAX takes
of `harmonic_loss` are those of the analysis.
"""

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax import losses
from harmonic_jax.cli.config_file import config_from_args
from harmonic_jax.cli.train import use_both_cores
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

AGREEMENT = 1e-4  # of derivatives in float32, whose terms are of the size of C and L


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--at", type=int, nargs="+", default=[0, 50, 100, 200, 400])
    parser.add_argument("--json", type=Path, help="also append the numbers to this file")
    args, options = parser.parse_known_args()
    config = config_from_args(
        [args.config, *options], default=Path(args.config), prog="factor_gradients", description=""
    )
    use_both_cores()
    print(f"{config.name}, batches of {config.train.batch_size}")
    for step, positives in trained_positives(config, sorted(args.at)):
        for source in ("loss", "ce"):
            found = shares(positives[source], positives["loc"])
            print(
                f"step {step:5}  C = {source:4}  {found['positives']:5} positives   "
                f"dF/dC < 0: {found['less_confident']:6.1%}   "
                f"dF/dL < 0: {found['pushed_away']:6.1%}   "
                f"median C {found['median_cls']:.3f}, L {found['median_loc']:.3f}",
                flush=True,
            )
            if args.json is not None:
                row = {"config": config.name, "step": step, "source": source} | found
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


def trained_positives(config: Config, steps: list[int]) -> Any:
    """Trains, and yields (step, positives) before each of the steps."""
    source, mesh = open_source(config.data, config.data.train_split), data_mesh()
    detector = build_detector(config, len(source.class_names))
    optimizer = make_optimizer(config.optim, steps=config.train.steps)
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
        num_steps=steps[-1] + 1,
    )
    with batches:
        for number, host_batch in enumerate(batches):
            batch = put_batch(host_batch, mesh)
            if number in steps:
                found = jax.device_get(look(state.variables, batch))
                yield number, {k: found[k][found["where"]] for k in ("loss", "ce", "loc")}
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
        loss_sums(model, batch, detector.config, jax.random.key(0))
    return {name: jnp.concatenate([part[name] for part in seen]) for name in seen[0]}


if __name__ == "__main__":
    main()
