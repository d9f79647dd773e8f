"""Entropy, cross entropy and focal loss: second derivatives, extreme logits, odd labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.losses import (
    sigmoid_cross_entropy,
    sigmoid_entropy,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    softmax_entropy,
)

LOGITS = np.random.default_rng(0).normal(0, 3, (6, 5))
LABELS = np.array([0, 4, 5, -1, 2, 999])  # 5, -1 and 999 are background
EXTREME = np.array([[200.0, -200.0, 0.0], [-200.0, -200.0, -200.0], [200.0, 200.0, -200.0]])
FOCAL_OPTIONS = [
    {"alpha": 0.25, "gamma": 2.0},
    {"alpha": 0.25, "gamma": 0.5},
    {"alpha": None, "gamma": 1.0},
    {"alpha": 0.9, "gamma": 0.0},
    {"alpha": 0.0, "gamma": 3.5},
]


def check_derivatives(f: Callable[[jax.Array], jax.Array]) -> None:
    """First and second derivatives along a line equal differences of value and gradient."""
    x = jnp.asarray(LOGITS).at[:, 1].set(0.0)  # where a formula by cases would have its joint
    direction = jnp.asarray(np.random.default_rng(1).normal(size=LOGITS.shape))

    def first(x):
        return jax.grad(lambda x: f(x).sum())(x)

    @jax.jit
    def at(x):
        forward = jax.jvp(lambda x: f(x).sum(), (x,), (direction,))[1]
        return f(x).sum(), forward, first(x), jax.jvp(first, (x,), (direction,))[1]

    (low, *_, low_gradient, _), (high, *_, high_gradient, _) = (
        at(x + h * direction) for h in (-1e-5, 1e-5)
    )
    _, forward, gradient, second = at(x)
    np.testing.assert_allclose(forward, (high - low) / 2e-5, rtol=1e-7)
    np.testing.assert_allclose((gradient * direction).sum(), forward, rtol=1e-12)
    np.testing.assert_allclose(second, (high_gradient - low_gradient) / 2e-5, rtol=1e-6, atol=1e-9)


def test_sigmoid_entropy_takes_a_mask_of_the_leading_axes():
    where = LABELS < 5
    masked = sigmoid_entropy(np.where(where[:, None], LOGITS, np.nan), where=where)
    np.testing.assert_allclose(masked, np.where(where[:, None], sigmoid_entropy(LOGITS), 0))


def test_entropies_at_their_ends():
    """p log p at p = 0 is 0, and its gradient is finite; at most log k, and log 2 for a coin."""
    only, excluded = jnp.array([[200.0, -200.0, -200.0]]), jnp.array([[0.0, 0.0, -jnp.inf]])
    for entropy in (softmax_entropy, sigmoid_entropy):
        value, pull = jax.vjp(entropy, only)
        assert not np.any(value)
        assert not np.any(pull(jnp.ones_like(value))[0])
    value, pull = jax.vjp(softmax_entropy, excluded)
    np.testing.assert_allclose(value, [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(1))[0], np.zeros((1, 3)), atol=1e-6)
    np.testing.assert_allclose(softmax_entropy(jnp.zeros((1, 81))), [np.log(81)], rtol=1e-6)
    assert sigmoid_entropy(jnp.zeros(3)).max() <= np.float32(np.log(2))


def test_softmax_cross_entropy_shows_an_impossible_label():
    labels = jnp.array([-1, 0, 2, 3])
    loss, pull = jax.vjp(lambda x: softmax_cross_entropy(x, labels), jnp.zeros((4, 3)))
    np.testing.assert_array_equal(loss == jnp.inf, [True, False, False, True])
    gradient = pull(jnp.ones_like(loss))[0]
    np.testing.assert_array_equal((gradient == 0).all(-1), [True, False, False, True])


@pytest.mark.parametrize("options", [*FOCAL_OPTIONS, None])
def test_focal_loss_and_entropy_in_both_modes_and_to_second_order(options):
    with jax.enable_x64(True):
        check_derivatives(
            lambda x: sigmoid_focal_loss(x, LABELS, **options) if options else softmax_entropy(x)
        )


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_focal_labels_of_any_integer_type(dtype):
    """A class index beyond the range of a narrow label type must not wrap into it."""
    loss = sigmoid_focal_loss(jnp.zeros((1, 300)), jnp.array([7], dtype))
    np.testing.assert_array_equal(np.flatnonzero(loss[0] != loss[0, 0]), [7])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_focal_loss_at_extreme_logits(dtype):
    """Nothing overflows, in the value, the gradient or its own derivative, for any gamma."""
    x, labels = jnp.asarray(EXTREME, dtype), jnp.array([1, -1, 0])

    def at(x, options):
        def first(x):
            return jax.grad(lambda x: sigmoid_focal_loss(x, labels, **options).sum())(x)

        return sigmoid_focal_loss(x, labels, **options), *jax.jvp(first, (x,), (x,))

    results = jax.jit(lambda x: [at(x, options) for options in FOCAL_OPTIONS])(x)
    for options, (value, gradient, second) in zip(FOCAL_OPTIONS, results, strict=True):
        assert value.dtype == jnp.float32
        assert gradient.dtype == dtype
        for array in (value, gradient, second):
            assert jnp.isfinite(array).all(), options
        # A certain and wrong answer costs |logit| times its weight, at slope +-1 times its weight.
        alpha = options["alpha"]
        true, other = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        np.testing.assert_allclose(value[0, :2], [200 * other, 200 * true], rtol=1e-6)
        slope = gradient[0, :2].astype(jnp.float32)
        np.testing.assert_allclose(slope, [other, -true], rtol=4e-3)


def test_cross_entropies_at_extreme_logits():
    x, labels = jnp.asarray(EXTREME, jnp.float32), jnp.array([1, 1, 0])
    np.testing.assert_allclose(
        softmax_cross_entropy(x, labels), [400, np.log(3), np.log(2)], rtol=1e-6
    )
    np.testing.assert_allclose(
        sigmoid_cross_entropy(x, labels)[0], [200, 200, np.log(2)], rtol=1e-6
    )
    for loss in (softmax_cross_entropy, sigmoid_cross_entropy):
        gradient = jax.grad(lambda x, loss=loss: loss(x, labels).sum())(x)
        assert jnp.isfinite(gradient).all()
