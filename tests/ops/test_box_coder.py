import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.ops.box_coder import decode_boxes, encode_boxes
from tests.ops.peers import torchvision_or_skip
from tests.ops.scenes import random_boxes

RNG = np.random.default_rng(1)
ANCHORS, BOXES = random_boxes(RNG, 50), random_boxes(RNG, 50)
DELTAS = RNG.normal(0, 2, (50, 4)).astype(np.float32)
WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)]


def decode_from_formula(deltas, anchors, weights):
    deltas, anchors = deltas.astype(np.float64) / weights, anchors.astype(np.float64)
    sides = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, 2:] + anchors[:, :2]) / 2 + deltas[:, :2] * sides
    half = np.exp(np.minimum(deltas[:, 2:], math.log(1000 / 16))) * sides / 2
    return np.concatenate([center - half, center + half], axis=1)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_follows_the_formula(weights):
    decoded = decode_boxes(DELTAS, ANCHORS, weights=weights)
    expected = decode_from_formula(DELTAS, ANCHORS, weights)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_encode_and_decode_equal_torchvision(weights):
    torch, torchvision = torchvision_or_skip()
    coder = torchvision.models.detection._utils.BoxCoder(weights)
    expected = coder.encode_single(torch.tensor(BOXES), torch.tensor(ANCHORS)).numpy()
    encoded = encode_boxes(BOXES, ANCHORS, weights=weights)
    np.testing.assert_allclose(encoded, expected, rtol=2e-6, atol=2e-6)
    expected = coder.decode_single(torch.tensor(DELTAS), torch.tensor(ANCHORS)).numpy()
    decoded = decode_boxes(DELTAS, ANCHORS, weights=weights)
    np.testing.assert_allclose(decoded, expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_undoes_encode(weights):
    deltas = encode_boxes(BOXES, ANCHORS, weights=weights)
    np.testing.assert_allclose(decode_boxes(deltas, ANCHORS, weights=weights), BOXES, atol=1e-2)


def test_sides_are_clamped():
    deltas, anchors = jnp.array([[0.0, 0.0, 50.0, 1.0]]), jnp.array([[0.0, 0.0, 16.0, 16.0]])
    x1, _, x2, _ = decode_boxes(deltas, anchors)[0]
    np.testing.assert_allclose(x2 - x1, 1000.0, rtol=1e-5)
    x1, _, x2, _ = decode_boxes(deltas, anchors, clamp=0.0)[0]
    assert x2 - x1 == 16.0


def test_decode_gradient_equals_finite_differences():
    weights = (10.0, 10.0, 5.0, 5.0)
    direction = RNG.normal(size=(50, 4))
    loss = jax.grad(lambda d: jnp.sum(decode_boxes(d, ANCHORS, weights=weights) * direction))
    gradient = loss(jnp.asarray(DELTAS))
    step = 1e-6
    for axis in range(4):
        shift = np.eye(4)[axis] * step
        up = decode_from_formula(DELTAS + shift, ANCHORS, weights)
        down = decode_from_formula(DELTAS - shift, ANCHORS, weights)
        slope = np.sum((up - down) / (2 * step) * direction, axis=1)
        np.testing.assert_allclose(gradient[:, axis], slope, rtol=1e-3, atol=1e-2)


def test_anything_finite_stays_finite():
    extremes = np.array([0, -1e-30, 1e-30, 1, -200, 200, 1e6, -1e6, 3e38, -3e38], np.float32)
    deltas = np.stack([np.roll(extremes, shift) for shift in (0, 1, 3, 7)], axis=1)
    boxes = np.array(
        [[5, 5, 5, 5], [9, 9, 2, 2], [0, 0, 1e6, 1e6], [-1e6, -1e6, 1e6, 1e6], [0, 0, 1e-30, 1]],
        np.float32,
    )
    for values, function in ((deltas, decode_boxes), (boxes, encode_boxes)):
        gradient = jax.jit(jax.grad(lambda x, a, f=function: jnp.sum(f(x, a))))
        for anchor in boxes:
            anchors = np.broadcast_to(anchor, values.shape)
            assert np.isfinite(jax.jit(function)(values, anchors)).all()
            assert np.isfinite(gradient(values, anchors)).all()


def test_bfloat16_deltas_are_decoded_in_float32():
    deltas = jnp.asarray(DELTAS, jnp.bfloat16)
    decoded = decode_boxes(deltas, jnp.asarray(ANCHORS))
    assert decoded.dtype == jnp.float32
    np.testing.assert_array_equal(decoded, decode_boxes(deltas.astype(jnp.float32), ANCHORS))
