"""Learning rates of single parts of the network: a factor by the path of a parameter."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from harmonic_jax.config import ConfigError

Factors = Sequence[tuple[str, float]]


def drop_frozen_gradients(factors: Factors) -> optax.GradientTransformation:
    """Makes the gradients of parts with factor 0 zero, so that no norm counts them."""
    return _by_path(factors, lambda update, factor: update if factor else jnp.zeros_like(update))


def scale_by_rate_factors(factors: Factors) -> optax.GradientTransformation:
    """Multiplies each update, weight decay included, by the factor of its part.

    Placed last, so that with SGD and AdamW alike a part moves as if its learning rate were
    factor * rate. The momentum of a part is that of its own gradients in any case.

    Args:
      factors: (path, factor). A path is that of a module or a parameter, parts joined by `/`, as
        checkpoints name them; the longest that fits counts, and 1 where none does.

    Raises:
      ConfigError: (by `init`) a path that no parameter begins with.
    """
    return _by_path(factors, lambda update, factor: update * factor)


def _by_path(factors: Factors, change: Any) -> optax.GradientTransformation:
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


def _factor(name: str, factors: Factors) -> float:
    fitting = [(len(path), factor) for path, factor in factors if _is_part(name, path)]
    return max(fitting)[1] if fitting else 1.0


def _check_paths(factors: Factors, params: optax.Params) -> None:
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
