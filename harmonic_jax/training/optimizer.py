"""The optimizer: an optax chain and the course of its learning rate."""

import jax
import jax.numpy as jnp
import optax

from harmonic_jax.config import OptimConfig
from harmonic_jax.training.rate_factors import drop_frozen_gradients, scale_by_rate_factors


def learning_rate_schedule(config: OptimConfig, *, steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up times a step, cosine or constant course.

    Args:
      config: the optimizer's configuration.
      steps: length of the whole run.

    Returns:
      A function of the step (0 is the first update), float32.
    """
    match config.schedule:
        case "step":
            course = optax.piecewise_constant_schedule(
                config.learning_rate, {round(m * steps): 0.1 for m in config.milestones}
            )
        case "cosine":
            course = optax.cosine_decay_schedule(config.learning_rate, steps)
        case "constant":
            course = optax.constant_schedule(config.learning_rate)
    warmup = optax.linear_schedule(config.warmup_factor, 1.0, config.warmup_steps)

    def schedule(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        rate = course(step)
        return rate * warmup(step) if config.warmup_steps > 0 else rate

    return schedule


def make_optimizer(config: OptimConfig, *, steps: int) -> optax.GradientTransformation:
    """SGD with momentum or AdamW, with gradient clipping.

    Weight decay is applied to arrays of two or more dimensions only: kernels, never the scales
    and biases of norms and layers. SGD adds it to the gradient (so momentum sees it, as in the
    published detection recipes); AdamW decouples it. `config.rate_factors` scales the updates of
    single parts.

    Args:
      config: the optimizer's configuration.
      steps: length of the whole run.

    Raises:
      ConfigError: (by `init`) a path in `config.rate_factors` that the network does not have.
    """

    def is_decayed(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)

    parts: list[optax.GradientTransformation] = []
    if config.rate_factors:
        parts.append(drop_frozen_gradients(config.rate_factors))
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    decay = optax.add_decayed_weights(config.weight_decay, mask=is_decayed)
    match config.optimizer:
        case "sgd":
            parts += [decay, optax.trace(config.momentum)]
        case "adamw":
            parts += [optax.scale_by_adam(b1=config.momentum), decay]
    parts.append(optax.scale_by_learning_rate(learning_rate_schedule(config, steps=steps)))
    if config.rate_factors:
        parts.append(scale_by_rate_factors(config.rate_factors))
    return optax.chain(*parts)
