"""What a training run carries from step to step, and how it starts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Sharding

from harmonic_jax.config import Config
from harmonic_jax.detectors import build_model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Variables:
    """All arrays of a model: `params` are trained, `model_state` (statistics, constants) is not."""

    params: nnx.State
    model_state: nnx.State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes in a step. `ema` averages the variables; None without EMA."""

    step: jax.Array  # int32, the number of updates made
    variables: Variables
    opt_state: optax.OptState
    ema: Variables | None

    @property
    def for_evaluation(self) -> Variables:
        return self.variables if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class Detector:
    """A model without its arrays: what `jax.jit` closes over."""

    graphdef: Any  # nnx.GraphDef
    num_classes: int
    config: Config

    def merge(self, variables: Variables, *, train: bool) -> nnx.Module:
        """The module with these arrays; a copy, so that a transform may update its statistics."""
        model = nnx.merge(self.graphdef, variables.params, variables.model_state, copy=True)
        if train:
            model.train()
        else:
            model.eval()
        return model


def build_detector(config: Config, num_classes: int) -> Detector:
    """The structure of the configured model; allocates no array."""
    model = nnx.eval_shape(lambda: _build(config, num_classes, jax.random.key(0, impl="rbg")))
    return Detector(nnx.graphdef(model), num_classes, config)


def init_variables(detector: Detector, *, seed: int, sharding: Sharding) -> Variables:
    """Random initial arrays, made on the devices they will live on."""

    def init(key: jax.Array) -> Variables:
        model = _build(detector.config, detector.num_classes, key)
        params, model_state = nnx.state(model, nnx.Param, ...)
        return Variables(params, model_state)

    return jax.jit(init, out_shardings=sharding)(jax.random.key(seed, impl="rbg"))


def abstract_variables(detector: Detector, *, sharding: Sharding) -> Variables:
    """A detector's variables without their arrays: shapes, dtypes, sharding."""
    return _abstract(lambda: init_variables(detector, seed=0, sharding=sharding), sharding)


def init_state(
    variables: Variables, optimizer: optax.GradientTransformation, *, ema: bool, sharding: Sharding
) -> TrainState:
    """The state before the first step, from initial (or imported) variables."""

    def init(variables: Variables) -> TrainState:
        average = jax.tree.map(jnp.copy, variables) if ema else None
        return TrainState(
            jnp.zeros((), jnp.int32), variables, optimizer.init(variables.params), average
        )

    return jax.jit(init, out_shardings=sharding)(variables)


def abstract_state(
    detector: Detector, optimizer: optax.GradientTransformation, *, sharding: Sharding
) -> TrainState:
    """A state without its arrays (shapes, dtypes, sharding): what a checkpoint is read into."""
    has_ema = detector.config.optim.ema_decay is not None

    def init() -> TrainState:
        variables = init_variables(detector, seed=0, sharding=sharding)
        return init_state(variables, optimizer, ema=has_ema, sharding=sharding)

    return _abstract(init, sharding)


def _abstract(init: Callable[[], Any], sharding: Sharding) -> Any:
    shapes = jax.eval_shape(init)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)


def _build(config: Config, num_classes: int, key: jax.Array) -> nnx.Module:
    dtype = jnp.bfloat16 if config.train.precision == "bfloat16" else jnp.float32
    return build_model(config.model, num_classes, dtype=dtype, rngs=nnx.Rngs(key))
