"""Learning rates of parts: a part moves by its factor exactly, and wrong paths are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from harmonic_jax.cli.configs import replace_fields
from harmonic_jax.config import Config, ConfigError, OptimConfig
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import build_detector, init_variables
from tests.training.tiny import tiny_config

FACTORS = (("backbone", 0.25), ("backbone/stages/3", 2.0), ("cls_head", 0.0))


@pytest.fixture(scope="module")
def params() -> nnx.State:
    detector = build_detector(tiny_config(), 3)
    return init_variables(detector, seed=0, sharding=replicated(data_mesh())).params


def gradients(params: nnx.State, seed: int) -> nnx.State:
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    values = [jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, values)


def moves(config: OptimConfig, params: nnx.State, *, num_steps: int) -> dict[tuple, np.ndarray]:
    """The updates of the last step, added to nothing: a difference of parameters would round."""
    optimizer = make_optimizer(config, steps=10)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(num_steps):
        updates, state = update(gradients(params, step), state, params)
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(updates)}


def expected_factor(path: tuple) -> float:
    if path[0] == "cls_head":
        return 0.0
    if path[0] == "backbone":
        return 2.0 if path[1:3] == ("stages", 3) else 0.25
    return 1.0


@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lars", "lamb"))],
)
def test_every_part_moves_by_exactly_its_factor(params: nnx.State, optimizer: str) -> None:
    """Powers of two, so that the product is exact: decay and momentum included, bit for bit."""
    plain = OptimConfig(optimizer=optimizer, weight_decay=0.1, learning_rate=0.5, warmup_steps=3)
    scaled = dataclasses.replace(plain, rate_factors=FACTORS)
    before, after = (moves(config, params, num_steps=3) for config in (plain, scaled))
    seen = set()
    for path, update in before.items():
        factor = expected_factor(path)
        assert update.all() or update.ndim == 1
        np.testing.assert_array_equal(after[path], factor * update, err_msg=str(path))
        seen.add(factor)
    assert seen == {0.0, 0.25, 1.0, 2.0}


def test_a_frozen_part_is_not_counted_by_the_clipping(params: nnx.State) -> None:
    config = OptimConfig(
        momentum=0.0, weight_decay=0.0, clip_norm=0.1, warmup_steps=0, learning_rate=1.0
    )
    frozen = (("backbone", 0.0), ("fpn", 0.0), ("box_head", 0.0))
    optimizer = make_optimizer(dataclasses.replace(config, rate_factors=frozen), steps=10)
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(gradients(params, 0), state, params)
    np.testing.assert_allclose(optax.global_norm(updates), 0.1, rtol=1e-5)
    np.testing.assert_allclose(optax.global_norm(updates["cls_head"]), 0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("backbon", r"'backbon', of .* must be backbone, box_head, cls_head, fpn or a path below"),
        ("fpn/lateral", r"'fpn/lateral', .* must be fpn/laterals, fpn/outputs or a path below"),
        ("backbone/stages/7", r"must be backbone/stages/0, .*backbone/stages/3 or"),
        # The part exists, but only statistics are below.
        ("backbone/norm/mean", r"must be backbone/norm/bias, backbone/norm/scale or"),
    ],
)
def test_unknown_paths_are_refused_with_the_legal_ones(
    params: nnx.State, path: str, words: str
) -> None:
    optimizer = make_optimizer(OptimConfig(rate_factors=((path, 0.1),)), steps=10)
    with pytest.raises(ConfigError, match=words):
        optimizer.init(params)


def test_they_can_be_given_on_the_command_line() -> None:
    args = ["--optim.rate-factors", "backbone", "0.1", "cls_head", "10"]
    config = replace_fields(Config("x"), args)
    assert config.optim.rate_factors == (("backbone", 0.1), ("cls_head", 10.0))


@pytest.mark.parametrize(
    "factors", [(("backbone", -1.0),), (("", 1.0),), (("fpn", 1.0), ("fpn", 2.0))]
)
def test_impossible_factors_are_refused(factors: tuple) -> None:
    with pytest.raises(ConfigError, match=r"optim\.rate_factors"):
        OptimConfig(rate_factors=factors)
