"""The optimizer: an optax chain, the course of its learning rate, and factors for single parts."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from harmonic_jax.config import ConfigError, OptimConfig

_Factors = Sequence[tuple[str, float]]


def peak_learning_rate(config: OptimConfig, *, batch_size: int | None) -> float:
    """The rate after the warm-up, scaled to the batch size.

        linear: rate * k     sqrt: rate * sqrt(k)     k = batch_size / reference_batch_size

    Sources: Goyal et al. 2017 (linear); You et al. 2020, LAMB (root).

    >>> config = OptimConfig(learning_rate=0.01, reference_batch_size=16)
    >>> peak_learning_rate(config, batch_size=4096)
    2.56
    """
    if config.reference_batch_size is None:
        return config.learning_rate
    ratio = _known(batch_size, "reference_batch_size") / config.reference_batch_size
    return config.learning_rate * (ratio if config.rate_scaling == "linear" else math.sqrt(ratio))


def warmup_length(config: OptimConfig, *, batch_size: int | None) -> int:
    """Steps of the warm-up."""
    if config.warmup_images is None:
        return config.warmup_steps
    return math.ceil(config.warmup_images / _known(batch_size, "warmup_images"))


def warmup_notes(config: OptimConfig, *, steps: int, batch_size: int) -> list[str]:
    """What a person should know of a warm-up that the run is too short for."""
    length = warmup_length(config, batch_size=batch_size)
    if length <= steps:
        return []
    reached = config.warmup_factor + (1 - config.warmup_factor) * steps / length
    return [
        f"the warm-up of {length} steps is longer than the run of {steps}: the learning rate "
        f"reaches {reached:.1%} of its peak (--optim.warmup-steps)"
    ]


def _known(batch_size: int | None, field: str) -> int:
    if batch_size is None:
        raise ValueError(f"batch_size is None; optim.{field} needs it")
    return batch_size


def learning_rate_schedule(
    config: OptimConfig, *, steps: int, batch_size: int | None = None
) -> optax.Schedule:
    """Learning rate by step: a linear warm-up times a step, cosine or constant course.

    Args:
      config: the optimizer's configuration.
      steps: length of the whole run.
      batch_size: images of a step over all devices and accumulation parts; needed where the
        config's rate or warm-up depends on it.

    Returns:
      A function of the step (0 is the first update), float32.
    """
    peak = peak_learning_rate(config, batch_size=batch_size)
    match config.schedule:
        case "step":
            drops = Counter(round(m * steps) for m in config.milestones)  # of a short run, at once
            course = optax.piecewise_constant_schedule(
                peak, {step: 0.1**count for step, count in drops.items()}
            )
        case "cosine":
            course = optax.cosine_decay_schedule(peak, steps)
        case "constant":
            course = optax.constant_schedule(peak)
    length = warmup_length(config, batch_size=batch_size)
    warmup = optax.linear_schedule(config.warmup_factor, 1.0, length)

    def schedule(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        rate = course(step)
        return rate * warmup(step) if length > 0 else rate

    return schedule


def make_optimizer(
    config: OptimConfig, *, steps: int, batch_size: int | None = None
) -> optax.GradientTransformation:
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
    does.

    Args:
      config: the optimizer's configuration.
      steps: length of the whole run.
      batch_size: images of a step over all devices and accumulation parts; needed where the
        config's rate or warm-up depends on it.

    Raises:
      ValueError: batch_size is needed and missing.
      ConfigError: (by `init`) a path in `config.rate_factors` that the network does not have.

    Sources: LARS, You et al. 2017 (which divides by |g| + d |w|, never less than |g + d w|; this
    is optax's form); LAMB, You et al. 2020, Algorithm 2 with phi(x) = x.
    """
    parts: list[optax.GradientTransformation] = []
    if config.rate_factors:
        # Frozen parts first, so that no norm counts them.
        parts.append(
            _by_path(config.rate_factors, lambda g, factor: g if factor else jnp.zeros_like(g))
        )
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    rate = learning_rate_schedule(config, steps=steps, batch_size=batch_size)
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
    def init(params: optax.Params) -> optax.EmptyState:
        _check_paths(factors, params)
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        changed = jax.tree_util.tree_map_with_path(
            lambda path, leaf: change(leaf, _factor(_name(path), factors)), updates
        )
        return changed, state

    return optax.GradientTransformation(init, update)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def _is_part(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def _factor(name: str, factors: _Factors) -> float:
    fitting = [(len(path), factor) for path, factor in factors if _is_part(name, path)]
    return max(fitting)[1] if fitting else 1.0


def _check_paths(factors: _Factors, params: optax.Params) -> None:
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path, _ in factors:
        if not any(_is_part(name, path) for name in names):
            raise ConfigError(
                f"optim.rate_factors names {path!r}, of which nothing is trained; "
                f"it must be {', '.join(_alternatives(path, names))} or a path below"
            )


def _alternatives(path: str, names: Sequence[str]) -> list[str]:
    """The legal paths at the level where the path goes wrong."""
    parts = path.split("/")
    good = 0
    while good < len(parts) and any(_is_part(n, "/".join(parts[: good + 1])) for n in names):
        good += 1
    prefix = "/".join(parts[:good])
    below = [name for name in names if not prefix or name.startswith(f"{prefix}/")]
    return list(dict.fromkeys("/".join(name.split("/")[: good + 1]) for name in below))
