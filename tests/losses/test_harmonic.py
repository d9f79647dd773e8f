"""HarDet: published numbers, the signs of its gradients, and the claims of its documentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.losses import (
    hardet_loss,
    harmonic_iou_loss,
    harmonic_loss,
    softmax_cross_entropy,
    softmax_entropy,
    task_contrastive_loss,
)
from tests.losses.reference import FLOWS

MODES = ("through", "stop", "cls_only")

# logits, label, SmoothL1, IoU -> p, CE, H, HIoU, L_loc, TC, total; computed from the printed
# formulas in float64 and rounded to 6 digits.
TABLE = [
    ((2, 0, -1), 0, 0.3, 0.7, 0.843795, 0.169846, 0.524267, 0.458649, 0.987973, 0, 2.054705),
    ((0, 0, 0), 1, 0.1, 0.9, 0.333333, 1.098612, 1.098612, 0.16711, 0.350665, 0.091667, 2.431497),
    ((3, 0, 0), 0, 0.8, 0.4, 0.909443, 0.094923, 0.366594, 0.785333, 1.977999, 0.126675, 4.011606),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_published_numbers(mode, dtype):
    with jax.enable_x64(dtype == "float64"):
        logits = jnp.array([row[0] for row in TABLE], dtype)
        labels = jnp.array([row[1] for row in TABLE])
        smooth_l1, iou = (jnp.array([row[i] for row in TABLE], dtype) for i in (2, 3))
        ce, entropy = softmax_cross_entropy(logits, labels), softmax_entropy(logits)
        prob, hiou = jnp.exp(-ce), harmonic_iou_loss(iou)
        tc = task_contrastive_loss(prob, iou, entropy, factor_gradient=mode)
        total = hardet_loss(ce, smooth_l1, prob, iou, entropy, factor_gradient=mode)
        got = np.array([prob, ce, entropy, hiou, smooth_l1 + 1.5 * hiou, tc, total])
    assert got.dtype == dtype
    np.testing.assert_allclose(got.T, [row[4:] for row in TABLE], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_harmonic_gradient_closed_form(mode):
    """dF/dC = 1 + e^-L - L e^-C where beta_c flows; dF/dL = 1 + e^-C - C e^-L where beta_r does."""
    c, l = (v.ravel() for v in np.meshgrid(np.linspace(0, 8, 41), np.linspace(0, 8, 41)))
    with jax.enable_x64(True):
        dc, dl = jax.grad(
            lambda c, l: harmonic_loss(c, l, factor_gradient=mode).sum(), argnums=(0, 1)
        )(jnp.asarray(c), jnp.asarray(l))
    flows = FLOWS[mode]
    np.testing.assert_allclose(
        dc, 1 + np.exp(-l) - l * np.exp(-c) * ("beta_c" in flows), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        dl, 1 + np.exp(-c) - c * np.exp(-l) * ("beta_r" in flows), rtol=1e-12, atol=1e-14
    )
    # Where the printed formula pushes a loss up: a confident bad box, an unconfident good one.
    unsure = (l > 1.2785) & (c < np.log(np.maximum(l, 1e-300) / (1 + np.exp(-l))))
    away = (c > 1.2785) & (l < np.log(np.maximum(c, 1e-300) / (1 + np.exp(-c))))
    assert unsure.any()
    assert away.any()
    np.testing.assert_array_equal(np.asarray(dc) < 0, unsure & ("beta_c" in flows))
    np.testing.assert_array_equal(np.asarray(dl) < 0, away & ("beta_r" in flows))


def test_harmonic_iou_is_monotone_up_to_gamma_one_and_not_above():
    iou = jnp.linspace(0.0, 1.0, 101)
    for gamma in (0.0, 0.5, 0.8, 1.0, 2.0):
        slope = jax.grad(lambda u, gamma=gamma: harmonic_iou_loss(u, gamma=gamma).sum())(iou)
        assert (slope <= 0).all() == (gamma <= 1)


def test_contrastive_loss_begins_at_the_margin_without_a_jump_and_with_gradient_zero():
    prob = np.array([0.19, 0.2, 0.21, 0.7])  # IoU 0, entropy 0: half of what exceeds the margin
    loss = task_contrastive_loss(prob, np.zeros(4), np.zeros(4))
    np.testing.assert_allclose(loss, [0, 0, 0.005, 0.25], atol=1e-7)
    at_margin = jax.grad(lambda p: task_contrastive_loss(p, p * 0, p * 0, margin=0.25).sum())
    assert at_margin(jnp.array([0.25])) == 0
    half = jnp.array([0.5])
    equal = jax.grad(lambda p, u: task_contrastive_loss(p, u, p * 0, margin=0.0).sum())
    assert equal(half, half) == 0
