"""Batch norm against float64 NumPy written from the formula."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from harmonic_jax.backbones.conv import Frozen
from harmonic_jax.backbones.norm import BatchNorm, FrozenBatchNorm, build_norm

SCALE, BIAS = np.array([0.5, 2.0, -1.0]), np.array([0.1, 0.0, 3.0])
AXES = (0, 1, 2)


def example(mean: float = 0.0, shape: tuple[int, ...] = (4, 5, 6, 3)) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape) * np.array([1.0, 3.0, 0.2]) + mean


def reference(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    return (x - mean) / np.sqrt(var + 1e-5) * SCALE + BIAS


def batch_norm() -> BatchNorm:
    norm = BatchNorm(3)
    norm.scale[...] = jnp.asarray(SCALE, jnp.float32)
    norm.bias[...] = jnp.asarray(BIAS, jnp.float32)
    return norm


def test_training_uses_the_statistics_of_the_batch_and_running_ones_follow_pytorch() -> None:
    norm, mean, var = batch_norm(), np.zeros(3), np.ones(3)
    for shift in (0.0, 2.0):
        x = example(shift, (2, 3, 2, 3))
        y = norm(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(y, reference(x, x.mean(AXES), x.var(AXES)), rtol=1e-5, atol=1e-5)
        mean = 0.9 * mean + 0.1 * x.mean(AXES)
        var = 0.9 * var + 0.1 * x.var(AXES, ddof=1)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_leaves_them() -> None:
    norm, x = batch_norm(), example()
    norm.eval()
    mean, var = np.array([0.3, -1.0, 0.0]), np.array([2.0, 0.5, 1e-8])
    norm.mean[...], norm.var[...] = (jnp.asarray(a, jnp.float32) for a in (mean, var))
    y = norm(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, reference(x, mean, var), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], mean)


def test_the_variance_survives_a_mean_far_from_zero() -> None:
    x, norm = example(3000.0).astype(np.float32), batch_norm()
    norm(jnp.asarray(x))
    var = 0.9 + 0.1 * x.astype(np.float64).var(AXES, ddof=1)
    np.testing.assert_allclose(norm.var[...], var, rtol=1e-4)


def test_bfloat16_input_has_float32_statistics() -> None:
    x, norm = jnp.asarray(example(5.0), jnp.bfloat16), batch_norm()
    assert norm(x).dtype == jnp.bfloat16
    assert norm.mean.dtype == norm.var.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(AXES), rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * exact.var(AXES, ddof=1), rtol=1e-6)


def test_rows_that_do_not_exist_take_no_part() -> None:
    x = example()
    norm, where = batch_norm(), np.array([True, False, True, False])
    y = norm(jnp.asarray(np.where(where[:, None, None, None], x, 1e3), jnp.float32), where)
    own = x[where]
    expected = reference(own, own.mean(AXES), own.var(AXES))
    np.testing.assert_allclose(y[where], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * own.var(AXES, ddof=1), rtol=1e-4)


def test_one_row_and_none_leave_all_finite() -> None:
    norm = batch_norm()
    np.testing.assert_allclose(norm(jnp.ones((1, 1, 1, 3))).reshape(-1), BIAS, atol=1e-6)
    assert jnp.isfinite(norm.var[...]).all()
    norm, x = BatchNorm(3), jnp.asarray(example(), jnp.float32)
    norm(x, jnp.zeros(4, bool))
    np.testing.assert_array_equal(norm.mean[...], 0.0)
    np.testing.assert_array_equal(norm.var[...], 1.0)
    grad = jax.grad(lambda x: BatchNorm(3)(x, jnp.zeros(4, bool)).sum())(x)
    assert np.isfinite(grad).all()


def test_statistics_are_those_of_all_devices() -> None:
    """Along `batch_axis`; the halves differ, and statistics of one alone would show."""
    x = example()
    x[2:] += 10.0

    def on_device(x: jax.Array) -> tuple[jax.Array, ...]:
        norm = batch_norm()
        norm.batch_axis = "data"
        return norm(x), norm.mean[...], norm.var[...]

    halves = jnp.asarray(x, jnp.float32).reshape(2, 2, *x.shape[1:])
    y, mean, var = jax.jit(jax.vmap(on_device, axis_name="data"))(halves)
    expected = reference(x, x.mean(AXES), x.var(AXES))
    np.testing.assert_allclose(y.reshape(x.shape), expected, rtol=1e-4, atol=1e-4)
    for device in range(2):
        np.testing.assert_allclose(mean[device], 0.1 * x.mean(AXES), rtol=1e-5)
        np.testing.assert_allclose(var[device], 0.9 + 0.1 * x.var(AXES, ddof=1), rtol=1e-5)


def test_frozen_norm_is_a_constant_map() -> None:
    norm, x = FrozenBatchNorm(3), example()
    values = {"scale": SCALE, "bias": BIAS, "mean": BIAS - 1.0, "var": SCALE**2 + 0.1}
    for name, value in values.items():
        getattr(norm, name)[...] = jnp.asarray(value, jnp.float32)
    norm.train()
    y = norm(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, reference(x, values["mean"], values["var"]), rtol=1e-5, atol=1e-5)
    _, frozen, others = nnx.split(norm, Frozen, ...)
    assert len(jax.tree.leaves(frozen)) == 4
    assert not jax.tree.leaves(others)


def test_an_untrained_stage_keeps_its_statistics() -> None:
    cases = {("batch", True): BatchNorm, ("batch", False): FrozenBatchNorm}
    for (kind, trainable), made in (cases | {("frozen", True): FrozenBatchNorm}).items():
        assert type(build_norm(kind, 3, trainable=trainable)) is made
