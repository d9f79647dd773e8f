"""The train step and the predict step: pure functions under plain jax.jit.

Inside, `jax.shard_map` gives each device its rows of the batch; what must be summed over the
devices is summed by name.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from harmonic_jax.detectors import detect, loss_sums
from harmonic_jax.detectors.parts.objective import LossSums
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.optimizer import learning_rate_schedule
from harmonic_jax.training.sharding import DATA_AXIS, replicated, split_batch
from harmonic_jax.training.state import Detector, TrainState, Variables

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
PredictStep = Callable[[Variables, Batch], tuple[Detections, Int[Array, " b"]]]

_EVERYWHERE, _SPLIT = PartitionSpec(), PartitionSpec(DATA_AXIS)


def make_train_step(
    detector: Detector, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainStep:
    """The jitted update; the state passed in is donated and must not be used again.

    Compiles once a shape bucket. Returned metrics are float32 scalars: `loss` and its terms
    divided by their normaliser, `num_positive` an image, `grad_norm`, `learning_rate`.
    """
    config = detector.config
    schedule = learning_rate_schedule(config.optim, config.train)
    gradients = _on_each_device(
        functools.partial(_gradients, detector),
        mesh,
        in_specs=(_EVERYWHERE, _EVERYWHERE, _SPLIT),
        out_specs=_EVERYWHERE,
    )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, model_state, sums, num_images = gradients(state.variables, state.step, batch)
        grads = jax.tree.map(lambda g: g * sums.scale(), grads)
        params = state.variables.params
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        variables = Variables(optax.apply_updates(params, updates), model_state)
        metrics = sums.normalized() | {
            "num_positive": sums.num_positive / jnp.maximum(num_images, 1),
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


def make_predict_step(detector: Detector, mesh: Mesh, *, masks: bool = True) -> PredictStep:
    """The jitted inference function: (detections, record_index) for a batch.

    Both come back whole on every process, as `predict` gives them. `masks`: find those too, if the
    detector can.
    """

    def predict_step(variables: Variables, batch: Batch) -> tuple[Detections, Int[Array, " b"]]:
        return predict(detector, variables, batch, masks=masks), batch.record_index

    everywhere = replicated(mesh)
    return jax.jit(
        _on_each_device(predict_step, mesh, in_specs=(_EVERYWHERE, _SPLIT), out_specs=_SPLIT),
        in_shardings=(everywhere, split_batch(mesh)),
        out_shardings=everywhere,
    )


def predict(
    detector: Detector, variables: Variables, batch: Batch, *, masks: bool = True
) -> Detections:
    """Detections with boxes in pixels of the original image.

    Batch slots that are not real detect nothing; the scores of an image for which the network says
    NaN or infinity are NaN. `masks`: find those too, if the detector can.
    """
    found = detect(detector.merge(variables, train=False), batch, masks=masks)
    xyxy_scale = jnp.tile(batch.scale[:, ::-1], 2)[:, None, :]  # b 1 4
    valid = found.valid & batch.is_real[:, None]
    scores = jnp.where(batch.is_real[:, None], found.scores, 0.0)
    return dataclasses.replace(found, boxes=found.boxes / xyxy_scale, scores=scores, valid=valid)


def _on_each_device(
    function: Callable[..., Any],
    mesh: Mesh,
    *,
    in_specs: tuple[PartitionSpec, ...],
    out_specs: PartitionSpec,
) -> Callable[..., Any]:
    """`function` on each device's rows of the batch.

    Left to the compiler, sorting and selecting a sharded batch (top-k, NMS, sampling) gathers it
    on every device, and each parameter's gradient is summed by itself, accumulation part by part.
    """
    # check_vma would ask every loop's initial value to be declared as differing by device.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _gradients(
    detector: Detector, variables: Variables, step: Int[Array, ""], batch: Batch
) -> tuple[nnx.State, nnx.State, LossSums, Int[Array, ""]]:
    """Gradient of the summed loss of the whole batch, from one device's rows of it.

    Returns the gradient, the new statistics, the sums, and the number of images; all of them are
    those of the whole batch, on every device.
    """
    key = jax.random.fold_in(jax.random.key(detector.config.train.seed), step)
    own_grads, model_state, own_sums = _accumulated_gradients(detector, variables, batch, key)
    sent = jax.tree.map(lambda g: g.astype(detector.config.optim.gradient_dtype), own_grads)
    own = (sent, own_sums, batch.is_real.sum())
    total, sums, num_images = jax.lax.psum(own, DATA_AXIS)
    grads = jax.tree.map(lambda g, own: g.astype(own.dtype), total, own_grads)
    return grads, model_state, sums, num_images


def _loss_sums(
    params: nnx.State, model_state: nnx.State, batch: Batch, key: Array, *, detector: Detector
) -> tuple[Float[Array, ""], tuple[nnx.State, LossSums]]:
    model = detector.merge(Variables(params, model_state), train=True)
    model.set_attributes(batch_axis=DATA_AXIS, raise_if_not_found=False)
    sums = loss_sums(model, batch, detector.config.loss, key, batch_axis=DATA_AXIS)
    return sums.total, (nnx.state(model, nnx.Not(nnx.Param)), sums)


def _accumulated_gradients(
    detector: Detector, variables: Variables, batch: Batch, key: Array
) -> tuple[nnx.State, nnx.State, LossSums]:
    """Gradient of this device's summed loss, the new statistics, and the sums, part by part.

    Because sums are divided only afterwards, the parts give the whole batch's gradient exactly
    (up to rounding, and up to the statistics of a `batch` norm, which each part has of its own).
    """
    gradient = jax.grad(lambda p, r, b: _loss_sums(p, r, b, key, detector=detector), has_aux=True)
    num_parts = detector.config.optim.accumulate
    if num_parts == 1:
        grads, (model_state, sums) = gradient(variables.params, variables.model_state, batch)
        return grads, model_state, sums

    def take_part(rows: Array) -> Array:
        # Every num_parts-th row: the parts are the same on any number of devices.
        return rows.reshape(-1, num_parts, *rows.shape[1:]).swapaxes(0, 1)

    def body(
        carry: tuple[nnx.State, nnx.State, LossSums], part: Batch
    ) -> tuple[tuple[nnx.State, nnx.State, LossSums], None]:
        total, model_state, sums = carry
        grads, (model_state, part_sums) = gradient(variables.params, model_state, part)
        return (jax.tree.map(jnp.add, total, grads), model_state, sums.add(part_sums)), None

    parts = jax.tree.map(take_part, batch)
    first = jax.tree.map(lambda rows: rows[0], parts)
    shapes = jax.eval_shape(gradient, variables.params, variables.model_state, first)
    zero_grads, (_, zero_sums) = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, model_state, sums), _ = jax.lax.scan(
        body, (zero_grads, variables.model_state, zero_sums), parts
    )
    return grads, model_state, sums


def _moving_average(
    ema: Variables | None, variables: Variables, step: Array, decay: float | None
) -> Variables | None:
    """EMA whose decay rises with the step, min(decay, (1 + t) / (10 + t)), so that the random
    start is soon forgotten. Constants and statistics are averaged like parameters."""
    if ema is None or decay is None:
        return None
    now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (1.0 - now) * (new - old), ema, variables)
