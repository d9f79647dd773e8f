"""The train step: what it updates, that parts make a whole, and how often it compiles."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax.config import Config, TrainConfig
from harmonic_jax.recipes import DETR_LOSS
from harmonic_jax.structures import Batch
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import (
    Detector,
    TrainState,
    build_detector,
    init_state,
)
from harmonic_jax.training.step import make_predict_step, make_train_step
from tests.detectors.tiny import RTDETR
from tests.training.tiny import (
    one_level_config,
    random_batch,
    random_variables,
    run_config,
    tiny_config,
)


def start(config: Config):
    mesh = data_mesh(jax.devices()[:1])
    detector = build_detector(config, 3)
    variables = random_variables(detector, seed=1)
    optimizer = make_optimizer(config.optim, config.train)
    has_ema = config.optim.ema_decay is not None
    state = init_state(variables, optimizer, ema=has_ema, sharding=replicated(mesh))
    return mesh, detector, state, make_train_step(detector, optimizer, mesh)


def run(
    config: Config, seeds: range, make_batch: Callable[[int], Batch] = random_batch
) -> tuple[Detector, TrainState, list]:
    mesh, detector, state, step = start(config)
    log = []
    for seed in seeds:
        state, metrics = step(state, put_batch(make_batch(seed), mesh))
        log.append({k: float(v) for k, v in metrics.items()})
    return detector, state, log


def flat(tree: object) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def test_the_loss_falls_and_the_average_follows_its_rule(tmp_path: Path) -> None:
    """With one compilation, whatever the number of boxes, images and steps."""
    mesh, detector, state, step = start(run_config(tmp_path))
    before = jax.device_get(state)
    average, losses = flat(state.variables.params), []
    for t in range(30):
        # Another batch now and then; the loss is that of the first.
        batch = random_batch(t if t % 10 == 5 else 0, shape=(64, 96))
        state, metrics = step(state, put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * flat(state.variables.params)
        # At once: a few steps later nothing is left of a wrong decay of the first.
        np.testing.assert_allclose(flat(state.ema.params), average, rtol=1e-4, atol=1e-5)
    assert state.for_evaluation is state.ema
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 30
    assert step._cache_size() == 1
    assert not np.array_equal(flat(before.variables.model_state), flat(state.variables.model_state))
    batch = put_batch(random_batch(0, shape=(64, 96)), mesh)
    detections, index = make_predict_step(detector, mesh)(state.for_evaluation, batch)
    assert detections.boxes.shape == (8, 100, 4)
    np.testing.assert_array_equal(index, np.arange(8))
    assert not np.any(detections.valid[2])  # the slot that only fills the batch


@pytest.mark.parametrize("name", ["retinanet", "rtdetr"])
def test_accumulated_parts_equal_the_whole_batch(name: str) -> None:
    """Of frozen norms, or of parts that are alike: a part has batch statistics of its own."""
    base, make_batch = one_level_config(norm="frozen"), random_batch
    if name == "rtdetr":
        base = dataclasses.replace(base, model=RTDETR, loss=DETR_LOSS)

        def make_batch(seed: int) -> Batch:
            return jax.tree.map(lambda rows: np.repeat(rows[3:5], 4, axis=0), random_batch(seed))

    optim = dataclasses.replace(base.optim, ema_decay=0.5)
    parts = dataclasses.replace(base, optim=dataclasses.replace(optim, accumulate=4))
    _, whole, whole_log = run(dataclasses.replace(base, optim=optim), range(2), make_batch)
    _, split, split_log = run(parts, range(2), make_batch)
    for ours, theirs in ((split.variables, whole.variables), (split.ema, whole.ema)):
        np.testing.assert_allclose(flat(ours.params), flat(theirs.params), rtol=1e-4, atol=1e-6)
    assert not np.array_equal(flat(split.ema.params), flat(split.variables.params))
    assert split_log[0].keys() == whole_log[0].keys()
    for name, value in whole_log[0].items():
        assert split_log[0][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow  # test_bfloat16.py reads the types off the programs of all detectors
def test_bfloat16_keeps_parameters_and_losses_in_float32() -> None:
    config = tiny_config(train=TrainConfig(steps=10, batch_size=8, precision="bfloat16"))
    _, state, log = run(config, range(2))
    _, _, exact = run(tiny_config(), range(2))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.variables))
    assert log[0]["loss"] != exact[0]["loss"]
    assert log[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)


@pytest.mark.slow  # test_retinanet.py: frozen stages hold nothing that is trained
def test_frozen_stages_do_not_move() -> None:
    config = tiny_config()
    backbone = dataclasses.replace(config.model.backbone, frozen_stages=2)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone))
    mesh, detector, state, step = start(config)
    before = jax.device_get(detector.merge(state.variables, train=False))
    state, _ = step(state, put_batch(random_batch(0), mesh))
    after = detector.merge(state.variables, train=False)

    def moved(part: str, *index: int) -> bool:
        arrays = []
        for model in (before, after):
            module = getattr(model.backbone, part)
            arrays.append(flat(nnx.state(module[index[0]] if index else module)))
        return not np.array_equal(*arrays)

    assert not any((moved("conv"), moved("norm"), moved("stages", 0)))
    assert all(moved("stages", i) for i in (1, 2, 3))
