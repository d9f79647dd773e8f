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


def norm(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).sum()))


def by_hand(config: OptimConfig, name: str, rates: tuple[float, ...]) -> np.ndarray:
    """The update rules, step by step; norms and biases without decay and trust ratio.

    You et al. 2017, Algorithm 1 (LARS; the paper divides by |g| + d |w|, optax by |g + d w|), and
    You et al. 2020, Algorithm 2 (LAMB).
    """
    is_kernel, kind = name == "kernel", config.optimizer
    decay = config.weight_decay if is_kernel else 0.0
    p, velocity, m, v = PARAMS[name].copy(), 0.0, 0.0, 0.0
    for t, (rate, grads) in enumerate(zip(rates, GRADS, strict=True), start=1):
        if kind in ("sgd", "lars"):
            step = grads[name] + decay * p
            if kind == "lars":  # the velocity remembers the rate of its step
                step *= rate * (config.trust_coefficient * norm(p) / norm(step) if is_kernel else 1)
            velocity = 0.9 * velocity + step
            p = p - (velocity if kind == "lars" else rate * velocity)
        else:
            m = 0.9 * m + 0.1 * grads[name]
            v = 0.999 * v + 0.001 * grads[name] ** 2
            epsilon = 1e-8 if kind == "adamw" else 1e-6
            step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + epsilon) + decay * p
            p = p - rate * step * (norm(p) / norm(step) if kind == "lamb" and is_kernel else 1)
    return p


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
def test_two_steps_equal_those_by_hand(name: str, weight_decay: float) -> None:
    config = OptimConfig(
        optimizer=name,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=weight_decay,
        trust_coefficient=0.02,
        schedule="constant",
        warmup_steps=1,
        warmup_factor=0.5,
    )
    got = updated(config, GRADS)
    for part in PARAMS:
        np.testing.assert_allclose(got[part], by_hand(config, part, (0.05, 0.1)), rtol=1e-5)


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
    ("settings", "steps", "expected"),
    [
        (
            {"milestones": (600 / 900, 800 / 900), "warmup_steps": 10, "warmup_factor": 0.1},
            900,
            {0: 0.1, 5: 0.55, 10: 1.0, 599: 1.0, 600: 0.1, 799: 0.1, 800: 0.01},
        ),
        ({"schedule": "cosine", "warmup_steps": 0}, 900, {0: 1.0, 450: 0.5, 900: 0.0}),
        (
            {"schedule": "constant", "warmup_steps": 4, "warmup_factor": 0.0},
            900,
            {0: 0.0, 1: 0.25, 4: 1.0, 899: 1.0},
        ),
        # Milestones of a short run that fall on one step all count.
        ({"milestones": (0.5, 0.51), "warmup_steps": 0}, 10, {4: 1.0, 5: 0.01, 9: 0.01}),
    ],
)
def test_learning_rate(settings: dict, steps: int, expected: dict[int, float]) -> None:
    schedule = learning_rate_schedule(
        OptimConfig(learning_rate=1.0, **settings), TrainConfig(steps=steps)
    )
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-9)


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
