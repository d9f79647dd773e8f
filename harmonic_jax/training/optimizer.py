"""The optimizer: an optax chain, the course of its learning rate, and factors for single parts."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from harmonic_jax.config import ConfigError, OptimConfig, TrainConfig

_Factors = Sequence[tuple[str, float]]


def peak_learning_rate(config: OptimConfig, *, batch_size: int) -> float:
    """The rate after the warm-up, scaled to the batch size.

        linear: rate * k     sqrt: rate * sqrt(k)     k = batch_size / reference_batch_size

    Sources: Goyal et al. 2017 (linear); You et al. 2020, LAMB (root).

    >>> config = OptimConfig(learning_rate=0.01, reference_batch_size=16)
    >>> peak_learning_rate(config, batch_size=4096)
    2.56
    """
    if config.reference_batch_size is None:
        return config.learning_rate
    ratio = batch_size / config.reference_batch_size
    return config.learning_rate * (ratio if config.rate_scaling == "linear" else math.sqrt(ratio))


def warmup_length(config: OptimConfig, *, batch_size: int) -> int:
    """Steps of the warm-up."""
    if config.warmup_images is None:
        return config.warmup_steps
    return math.ceil(config.warmup_images / batch_size)


def warmup_notes(config: OptimConfig, train: TrainConfig) -> list[str]:
    """What a person should know of a warm-up that the run is too short for."""
    length = warmup_length(config, batch_size=train.batch_size)
    if length <= train.steps:
        return []
    reached = config.warmup_factor + (1 - config.warmup_factor) * train.steps / length
    return [
        f"the warm-up of {length} steps is longer than the run of {train.steps}: the learning rate "
        f"reaches {reached:.1%} of its peak (--optim.warmup-steps)"
    ]


def learning_rate_schedule(config: OptimConfig, train: TrainConfig) -> optax.Schedule:
    """Learning rate by step, float32: a linear warm-up times a step, cosine or constant course.

    Step 0 is the first update.
    """
    peak = peak_learning_rate(config, batch_size=train.batch_size)
    match config.schedule:
        case "step":  # of a short run, several drops at once
            drops = Counter(round(m * train.steps) for m in config.milestones)
            factors = {step: 0.1**count for step, count in drops.items()}
            course = optax.piecewise_constant_schedule(peak, factors)
        case "cosine":
            course = optax.cosine_decay_schedule(peak, train.steps)
        case "constant":
            course = optax.constant_schedule(peak)
    length = warmup_length(config, batch_size=train.batch_size)
    if length == 0:
        return course
    warmup = optax.linear_schedule(config.warmup_factor, 1.0, length)
    return lambda step: course(step) * warmup(step)


def make_optimizer(config: OptimConfig, train: TrainConfig) -> optax.GradientTransformation:
    """SGD with momentum, AdamW, LARS or LAMB, with gradient clipping.

    Kernels are arrays of two or more dimensions. Weight decay is applied to them only, never to
    the scales and biases of norms and layers, and so are the trust ratios of LARS and LAMB: the
    others move as with SGD and AdamW. For a kernel w with gradient g, rate r and decay d:

        SGD    v <- m v + (g + d w)                                  w <- w - r v
        LARS   v <- m v + r c |w| / |g + d w| (g + d w)              w <- w - v
        AdamW  u = Adam(g)                                           w <- w - r (u + d w)
        LAMB   u = Adam(g)                      w <- w - r |w| / |u + d w| (u + d w)

    `config.rate_factors` scales the updates of single parts, weight decay included; the momentum
    of a part is that of its own gradients in any case. A path is that of a module or a parameter,
    parts joined by `/`, as checkpoints name them; the longest that fits counts, and 1 where none
    does. A path that the network does not have is a ConfigError, by `init`.

    Sources: LARS, You et al. 2017 (which divides by |g| + d |w|, never less than |g + d w|; this
    is optax's form); LAMB, You et al. 2020, Algorithm 2 with phi(x) = x.
    """
    parts: list[optax.GradientTransformation] = []
    if config.rate_factors:
        # Frozen parts first, so that no norm counts them.
        freeze = _by_path(config.rate_factors, lambda g, factor: g if factor else jnp.zeros_like(g))
        parts.append(freeze)
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    rate = learning_rate_schedule(config, train)
    decay = optax.add_decayed_weights(config.weight_decay, mask=_kernels)
    descent = optax.scale_by_learning_rate(rate)
    match config.optimizer:
        case "sgd":
            parts += [decay, optax.trace(config.momentum), descent]
        case "adamw":
            parts += [optax.scale_by_adam(b1=config.momentum), decay, descent]
        case "lars":
            lars = optax.lars(
                rate,
                weight_decay=config.weight_decay,
                weight_decay_mask=_kernels,
                trust_coefficient=config.trust_coefficient,
                trust_ratio_mask=_kernels,
                momentum=config.momentum,
            )
            parts.append(lars)
        case "lamb":  # the parts of optax.lamb, which cannot spare norms and biases the ratio
            adam = optax.scale_by_adam(b1=config.momentum, eps=1e-6)
            ratio = optax.masked(optax.scale_by_trust_ratio(), _kernels)
            parts += [adam, decay, ratio, descent]
    if config.rate_factors:
        # Last, so that with any optimizer a part moves as if its learning rate were factor * rate.
        parts.append(_by_path(config.rate_factors, lambda update, factor: update * factor))
    return optax.chain(*parts)


def _kernels(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def _by_path(
    factors: _Factors, change: Callable[[jax.Array, float], jax.Array]
) -> optax.GradientTransformation:
    """Changes each update by the factor of its part; `init` refuses paths of nothing."""

    def change_part(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = _name(path)
        fitting = [(len(part), factor) for part, factor in factors if _is_part(name, part)]
        return change(leaf, max(fitting)[1] if fitting else 1.0)

    def init(params: optax.Params) -> optax.EmptyState:
        names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for path, _ in factors:
            if not any(_is_part(name, path) for name in names):
                tops = ", ".join(sorted({name.split("/")[0] for name in names}))
                raise ConfigError(
                    f"optim.rate_factors names {path!r}, of which nothing is trained; it must be "
                    f"{tops} or a path below, such as {names[0]}"
                )
        return optax.EmptyState()

    def update(updates: optax.Updates, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(change_part, updates), state

    return optax.GradientTransformation(init, update)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def _is_part(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}/")
