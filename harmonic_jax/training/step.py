"""The train step and the predict step: pure functions under plain jax.jit."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from harmonic_jax.detectors import detect, loss_sums
from harmonic_jax.objectives.sums import LossSums
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.optimizer import learning_rate_schedule
from harmonic_jax.training.sharding import replicated, split_batch
from harmonic_jax.training.state import Detector, TrainState, Variables

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
PredictStep = Callable[[Variables, Batch], tuple[Detections, Int[Array, " b"]]]


def make_train_step(
    detector: Detector, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainStep:
    """The jitted update; the state passed in is donated and must not be used again.

    Compiles once a shape bucket. Returned metrics are float32 scalars: `loss` and its terms
    divided by their normaliser, `num_positive` an image, `grad_norm`, `learning_rate`.
    """
    config = detector.config
    schedule = learning_rate_schedule(config.optim, steps=config.train.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        grads, rest, sums = _accumulated_gradients(detector, state.variables, batch, key)
        grads = jax.tree.map(lambda g: g * sums.scale(), grads)
        params = state.variables.params
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        variables = Variables(optax.apply_updates(params, updates), rest)
        metrics = sums.normalized() | {
            "num_positive": sums.num_positive / jnp.maximum(batch.is_real.sum(), 1),
            "grad_norm": optax.global_norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        ema = _moving_average(state.ema, variables, state.step, config.optim.ema_decay)
        return TrainState(state.step + 1, variables, opt_state, ema), metrics

    everywhere = replicated(mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(everywhere, split_batch(mesh)),
        out_shardings=(everywhere, everywhere),
    )


def make_predict_step(detector: Detector, mesh: Mesh) -> PredictStep:
    """The jitted inference function: (detections, record_index) for a batch.

    Both come back whole on every process. Boxes are in pixels of the original image; batch slots
    that are not real detect nothing.
    """

    def predict_step(variables: Variables, batch: Batch) -> tuple[Detections, Int[Array, " b"]]:
        found = detect(detector.merge(variables, train=False), batch, detector.config)
        xyxy_scale = jnp.tile(batch.scale[:, ::-1], 2)[:, None, :]  # b 1 4
        valid = found.valid & batch.is_real[:, None]
        original = dataclasses.replace(found, boxes=found.boxes / xyxy_scale, valid=valid)
        return original, batch.record_index

    everywhere = replicated(mesh)
    return jax.jit(
        predict_step,
        in_shardings=(everywhere, split_batch(mesh)),
        out_shardings=everywhere,
    )


def _loss_sums(
    params: nnx.State, rest: nnx.State, batch: Batch, key: Array, *, detector: Detector
) -> tuple[Float[Array, ""], tuple[nnx.State, LossSums]]:
    model = detector.merge(Variables(params, rest), train=True)
    sums = loss_sums(model, batch, detector.config, key)
    return sums.total, (nnx.state(model, nnx.Not(nnx.Param)), sums)


def _accumulated_gradients(
    detector: Detector, variables: Variables, batch: Batch, key: Array
) -> tuple[nnx.State, nnx.State, LossSums]:
    """Gradient of the summed loss, the new statistics, and the sums, part by part.

    Because sums are divided only afterwards, the parts give the whole batch's gradient exactly
    (up to rounding, and up to the statistics of a `batch` norm, which each part has of its own).
    """
    gradient = jax.grad(lambda p, r, b: _loss_sums(p, r, b, key, detector=detector), has_aux=True)
    num_parts = detector.config.optim.accumulate
    if num_parts == 1:
        grads, (rest, sums) = gradient(variables.params, variables.rest, batch)
        return grads, rest, sums

    def take_part(rows: Array) -> Array:
        # Part i takes every num_parts-th row, so that each device works on rows it already has.
        return rows.reshape(-1, num_parts, *rows.shape[1:]).swapaxes(0, 1)

    def body(
        carry: tuple[nnx.State, nnx.State, LossSums], part: Batch
    ) -> tuple[tuple[nnx.State, nnx.State, LossSums], None]:
        total, rest, sums = carry
        grads, (rest, part_sums) = gradient(variables.params, rest, part)
        return (jax.tree.map(jnp.add, total, grads), rest, sums.add(part_sums)), None

    parts = jax.tree.map(take_part, batch)
    first = jax.tree.map(lambda rows: rows[0], parts)
    shapes = jax.eval_shape(gradient, variables.params, variables.rest, first)
    zero_grads, (_, zero_sums) = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, rest, sums), _ = jax.lax.scan(body, (zero_grads, variables.rest, zero_sums), parts)
    return grads, rest, sums


def _moving_average(
    ema: Variables | None, variables: Variables, step: Array, decay: float | None
) -> Variables | None:
    """EMA whose decay rises with the step, min(decay, (1 + t) / (10 + t)), so that the random
    start is soon forgotten. Constants and statistics are averaged like parameters."""
    if ema is None or decay is None:
        return None
    now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (1.0 - now) * (new - old), ema, variables)
