"""The optimizer against the update rules written out in NumPy; a part moves by its factor exactly,
and wrong paths are refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from harmonic_jax.config import ConfigError, OptimConfig, TrainConfig
from harmonic_jax.training.optimizer import learning_rate_schedule, make_optimizer, warmup_notes
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import abstract_variables, build_detector
from tests.training.tiny import tiny_config

PARAMS = {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "scale": np.array([1.0, 2.0])}
GRADS = [
    {"kernel": np.array([[0.1, 0.2], [-0.3, 0.4]]), "scale": np.array([0.5, -0.5])},
    {"kernel": np.array([[-0.2, 0.1], [0.1, 0.0]]), "scale": np.array([0.1, 0.1])},
]


def updated(config: OptimConfig, grads: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    optimizer = make_optimizer(config, TrainConfig(steps=10))
    params = {k: jnp.asarray(v, jnp.float32) for k, v in PARAMS.items()}
    state = optimizer.init(params)
    for grad in grads:
        grad = {k: jnp.asarray(v, jnp.float32) for k, v in grad.items()}
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_sgd_decays_kernels_through_the_momentum() -> None:
    config = OptimConfig(
        learning_rate=0.1, momentum=0.9, weight_decay=0.01, schedule="constant", warmup_steps=0
    )
    got = updated(config, GRADS)
    for name, decay in (("kernel", 0.01), ("scale", 0.0)):
        p, velocity = PARAMS[name].copy(), 0.0
        for grad in GRADS:
            velocity = 0.9 * velocity + grad[name] + decay * p
            p = p - 0.1 * velocity
        np.testing.assert_allclose(got[name], p, rtol=1e-6)


def test_adamw_decays_kernels_beside_the_moments() -> None:
    config = OptimConfig(
        optimizer="adamw", learning_rate=0.1, weight_decay=0.2, schedule="constant", warmup_steps=0
    )
    got = updated(config, GRADS)
    for name, decay in (("kernel", 0.2), ("scale", 0.0)):
        p, m, v = PARAMS[name].copy(), 0.0, 0.0
        for t, grad in enumerate(GRADS, start=1):
            m = 0.9 * m + 0.1 * grad[name]
            v = 0.999 * v + 0.001 * grad[name] ** 2
            direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            p = p - 0.1 * (direction + decay * p)
        np.testing.assert_allclose(got[name], p, rtol=1e-5)


def norm(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).sum()))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lars(weight_decay: float) -> None:
    """You et al. 2017, Algorithm 1; kernels only, a scale moves as with SGD.

    The paper divides by |g| + d |w|, optax by |g + d w|: the same without decay, and never more.
    """
    rates = (0.05, 0.1)  # the warm-up's: the paper's velocity remembers the rate of its step
    config = OptimConfig(
        optimizer="lars",
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=weight_decay,
        trust_coefficient=0.02,
        schedule="constant",
        warmup_steps=1,
        warmup_factor=0.5,
    )
    got = updated(config, GRADS)
    w, velocity = PARAMS["kernel"].copy(), 0.0
    for rate, grad in zip(rates, GRADS, strict=True):
        direction = grad["kernel"] + weight_decay * w
        paper = 0.02 * norm(w) / (norm(grad["kernel"]) + weight_decay * norm(w))
        local = 0.02 * norm(w) / norm(direction) if weight_decay else paper
        assert local >= paper
        velocity = 0.9 * velocity + rate * local * direction
        w = w - velocity
    np.testing.assert_allclose(got["kernel"], w, rtol=1e-6)
    scale, velocity = PARAMS["scale"].copy(), 0.0
    for rate, grad in zip(rates, GRADS, strict=True):
        velocity = 0.9 * velocity + rate * grad["scale"]
        scale = scale - velocity
    np.testing.assert_allclose(got["scale"], scale, rtol=1e-6)


def test_lamb() -> None:
    """You et al. 2020, Algorithm 2; norms and biases without decay and trust ratio."""
    config = OptimConfig(
        optimizer="lamb", learning_rate=0.1, weight_decay=0.2, schedule="constant", warmup_steps=0
    )
    got = updated(config, GRADS)
    for name, decay in (("kernel", 0.2), ("scale", 0.0)):
        p, m, v = PARAMS[name].copy(), 0.0, 0.0
        for t, grad in enumerate(GRADS, start=1):
            m = 0.9 * m + 0.1 * grad[name]
            v = 0.999 * v + 0.001 * grad[name] ** 2
            r = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
            step = r + decay * p
            ratio = norm(p) / norm(step) if decay else 1.0
            p = p - 0.1 * ratio * step
        np.testing.assert_allclose(got[name], p, rtol=1e-5)


def test_the_rate_grows_with_the_batch() -> None:
    """Goyal et al. 2017: k times the images, k times the rate, after a gradual warm-up."""
    config = OptimConfig(
        learning_rate=0.01,
        reference_batch_size=16,
        schedule="constant",
        warmup_images=1000,
        warmup_factor=0.25,
    )
    linear = learning_rate_schedule(config, TrainConfig(steps=900, batch_size=64))
    length = 16  # ceil(1000 / 64)
    for step, rate in {0: 0.01, length // 2: 0.025, length: 0.04, 899: 0.04}.items():
        np.testing.assert_allclose(linear(step), rate, rtol=1e-6)
    root = OptimConfig(**{**vars(config), "rate_scaling": "sqrt"})
    by_root = learning_rate_schedule(root, TrainConfig(steps=900, batch_size=64))
    np.testing.assert_allclose(by_root(899), 0.02, rtol=1e-6)


def test_the_global_norm_is_clipped() -> None:
    config = OptimConfig(
        learning_rate=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", warmup_steps=0
    )
    length = float(np.sqrt(sum((v**2).sum() for v in GRADS[0].values())))
    clipped = dataclasses.replace(config, clip_norm=length / 4)
    free, bound = updated(config, GRADS[:1]), updated(clipped, GRADS[:1])
    for name, start in PARAMS.items():
        np.testing.assert_allclose(bound[name] - start, (free[name] - start) / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            OptimConfig(learning_rate=0.01, warmup_steps=10, warmup_factor=0.1),
            {0: 0.001, 5: 0.0055, 10: 0.01, 599: 0.01, 600: 0.001, 799: 0.001, 800: 0.0001},
        ),
        (
            OptimConfig(learning_rate=2.0, schedule="cosine", warmup_steps=0),
            {0: 2.0, 450: 1.0, 900: 0.0},
        ),
        (
            OptimConfig(learning_rate=0.3, schedule="constant", warmup_steps=4, warmup_factor=0.0),
            {0: 0.0, 1: 0.075, 4: 0.3, 899: 0.3},
        ),
    ],
    ids=["step", "cosine", "constant"],
)
def test_learning_rate(config: OptimConfig, expected: dict[int, float]) -> None:
    if config.schedule == "step":
        config = OptimConfig(**{**vars(config), "milestones": (600 / 900, 800 / 900)})
    schedule = learning_rate_schedule(config, TrainConfig(steps=900))
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-9)


def test_milestones_of_a_short_run_that_fall_on_one_step_all_count() -> None:
    config = OptimConfig(learning_rate=1.0, milestones=(0.5, 0.51), warmup_steps=0)
    schedule = learning_rate_schedule(config, TrainConfig(steps=10))
    rates = [float(schedule(step)) for step in (4, 5, 9)]
    np.testing.assert_allclose(rates, [1.0, 0.01, 0.01], rtol=1e-6)


def test_a_warmup_longer_than_the_run_is_said() -> None:
    config = OptimConfig(warmup_steps=500, warmup_factor=0.0)
    (note,) = warmup_notes(config, TrainConfig(steps=20, batch_size=2))
    assert "warm-up of 500 steps is longer than the run of 20" in note
    assert "reaches 4.0% of its peak" in note
    assert warmup_notes(config, TrainConfig(steps=500, batch_size=2)) == []


# Factors for single parts.

FACTORS = (("backbone", 0.25), ("backbone/stages/3", 2.0), ("cls_head", 0.0))
EXPECTED = {"backbone/norm": 0.25, "backbone/stages/3": 2.0, "cls_head": 0.0, "fpn": 1.0}


def parts(seed: int) -> dict[str, Any]:
    """Parameters, or gradients, by the paths of a network."""
    rng = np.random.default_rng(seed)

    def layer() -> dict[str, jax.Array]:
        shapes = {"kernel": (3, 4), "bias": (4,)}
        return {
            name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in shapes.items()
        }

    backbone = {"norm": layer(), "stages": {3: layer()}}
    return {"backbone": backbone, "cls_head": layer(), "fpn": layer()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars", "lamb"])
def test_every_part_moves_by_exactly_its_factor(optimizer: str) -> None:
    """Powers of two, so that the product is exact: decay and momentum included, bit for bit."""
    plain = OptimConfig(optimizer=optimizer, weight_decay=0.1, learning_rate=0.5, warmup_steps=3)
    last = []
    for config in (plain, dataclasses.replace(plain, rate_factors=FACTORS)):
        made = make_optimizer(config, TrainConfig(steps=10))
        state = made.init(parts(9))
        for step in range(3):
            updates, state = made.update(parts(step), state, parts(9))
        last.append({jax.tree_util.keystr(p, simple=True, separator="/"): u
                     for p, u in jax.tree_util.tree_leaves_with_path(updates)})  # fmt: skip
    for name, update in last[0].items():
        factor = EXPECTED[name.rpartition("/")[0]]
        assert update.all()
        np.testing.assert_array_equal(last[1][name], factor * update, err_msg=name)


def test_a_frozen_part_is_not_counted_by_the_clipping() -> None:
    config = OptimConfig(
        momentum=0.0, weight_decay=0.0, clip_norm=0.1, warmup_steps=0, learning_rate=1.0
    )
    frozen = dataclasses.replace(config, rate_factors=(("backbone", 0.0), ("fpn", 0.0)))
    optimizer = make_optimizer(frozen, TrainConfig(steps=10))
    updates, _ = optimizer.update(parts(0), optimizer.init(parts(9)), parts(9))
    np.testing.assert_allclose(optax.global_norm(updates), 0.1, rtol=1e-5)
    np.testing.assert_allclose(optax.global_norm(updates["cls_head"]), 0.1, rtol=1e-5)


@pytest.fixture(scope="module")
def params() -> Any:
    """Of a real network: paths as checkpoints name them."""
    detector = build_detector(tiny_config(), 3)
    return abstract_variables(detector, sharding=replicated(data_mesh())).params


@pytest.mark.parametrize(
    "path",
    # The last part exists, but only statistics are below.
    ["backbon", "fpn/lateral", "backbone/stages/7", "backbone/norm/mean"],
)
def test_unknown_paths_are_refused_with_the_legal_ones(params: Any, path: str) -> None:
    words = f"'{path}', of which nothing is trained; it must be backbone, box_head, cls_head, fpn o"
    optimizer = make_optimizer(OptimConfig(rate_factors=((path, 0.1),)), TrainConfig(steps=10))
    with pytest.raises(ConfigError, match=words):
        jax.eval_shape(optimizer.init, params)


@pytest.mark.parametrize(
    "factors", [(("backbone", -1.0),), (("", 1.0),), (("fpn", 1.0), ("fpn", 2.0))]
)
def test_impossible_factors_are_refused(factors: tuple) -> None:
    with pytest.raises(ConfigError, match=r"optim\.rate_factors"):
        OptimConfig(rate_factors=factors)
