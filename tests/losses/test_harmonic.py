"""HarDet: the numbers of the formulas, the traps of re-implementations, and the gradients."""

import functools

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
from tests.losses import reference

MODES = ("through", "stop", "cls_only")
NAMES = ("cls_loss", "smooth_l1", "prob", "iou", "entropy")


def samples(n: int = 200) -> dict[str, np.ndarray]:
    """Random samples of positives in float64, none within 1e-3 of a kink."""
    rng = np.random.default_rng(0)
    values = {
        "cls_loss": rng.uniform(0.01, 6, n),
        "smooth_l1": rng.uniform(0, 4, n),
        "prob": rng.uniform(0, 1, n),
        "iou": rng.uniform(0, 1, n),
        "entropy": rng.uniform(0, 1.1, n),
        "cross_entropy": rng.uniform(0.01, 6, n),
    }
    distance = np.abs(values["prob"] - values["iou"])
    smooth = (np.abs(distance - 0.2) > 1e-3) & (distance > 1e-3)
    return {name: value[smooth] for name, value in values.items()}


# logits, label, SmoothL1, IoU -> p, CE, H, HIoU, L_loc, TC, total; computed from the printed
# formulas in float64 and rounded to 6 digits.
TABLE = [
    ((2, 0, -1), 0, 0.3, 0.7, 0.843795, 0.169846, 0.524267, 0.458649, 0.987973, 0, 2.054705),
    ((0, 0, 0), 1, 0.1, 0.9, 0.333333, 1.098612, 1.098612, 0.16711, 0.350665, 0.091667, 2.431497),
    ((3, 0, 0), 0, 0.8, 0.4, 0.909443, 0.094923, 0.366594, 0.785333, 1.977999, 0.126675, 4.011606),
]


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.parametrize("mode", MODES)
def test_published_numbers(row, mode):
    logits, label, smooth_l1, iou, *expected = row
    with jax.enable_x64(True):
        logits = jnp.array([logits], jnp.float64)
        smooth_l1, iou = jnp.array([smooth_l1]), jnp.array([iou])
        ce = softmax_cross_entropy(logits, jnp.array([label]))
        prob = jax.nn.softmax(logits)[:, label]
        entropy = softmax_entropy(logits)
        hiou = harmonic_iou_loss(iou)
        tc = task_contrastive_loss(prob, iou, entropy, factor_gradient=mode)
        total = hardet_loss(ce, smooth_l1, prob, iou, entropy, factor_gradient=mode)
        got = np.array([prob, ce, entropy, hiou, smooth_l1 + 1.5 * hiou, tc, total])[:, 0]
        assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_published_totals_in_float32():
    logits = jnp.array([row[0] for row in TABLE], jnp.float32)
    labels = jnp.array([row[1] for row in TABLE])
    smooth_l1, iou = (jnp.array([row[i] for row in TABLE], jnp.float32) for i in (2, 3))
    ce = softmax_cross_entropy(logits, labels)
    total = hardet_loss(ce, smooth_l1, jnp.exp(-ce), iou, softmax_entropy(logits))
    np.testing.assert_allclose(total, [row[-1] for row in TABLE], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_harmonic_gradient_closed_form(mode):
    """dF/dC = 1 + e^-L - L e^-C where beta_c flows; dF/dL = 1 + e^-C - C e^-L where beta_r does."""
    c, l = (v.ravel() for v in np.meshgrid(np.linspace(0, 8, 41), np.linspace(0, 8, 41)))
    with jax.enable_x64(True):
        dc, dl = jax.grad(
            lambda c, l: harmonic_loss(c, l, factor_gradient=mode).sum(), argnums=(0, 1)
        )(jnp.asarray(c), jnp.asarray(l))
    flows = reference.FLOWS[mode]
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
    slope = jax.vmap(jax.grad(lambda u, gamma: harmonic_iou_loss(u, gamma=gamma)), (0, None))
    iou = jnp.linspace(0.0, 1.0, 101)
    for gamma in (0.0, 0.5, 0.8, 1.0, 2.0):
        assert (slope(iou, gamma) <= 0).all() == (gamma <= 1)


@pytest.mark.parametrize("mode", MODES)
def test_stopped_factors_keep_the_value(mode):
    x = samples()
    arrays = [jnp.asarray(x[name], jnp.float32) for name in NAMES]
    np.testing.assert_array_equal(hardet_loss(*arrays, factor_gradient=mode), hardet_loss(*arrays))


def test_factor_from_cross_entropy_is_the_score():
    """With "ce" the box is weighted by 1 + p, however small the focal loss of the sample is."""
    p, focal, loc = np.array([0.1, 0.3, 0.5]), np.array([0.46, 0.15, 0.04]), np.full(3, 1.3)
    with jax.enable_x64(True):
        got = hardet_loss(
            focal, loc, p, p, np.zeros(3), alpha=0.0, factor_source="ce", cross_entropy=-np.log(p)
        )
    np.testing.assert_allclose(got, (1 + np.exp(-loc)) * focal + (1 + p) * loc, rtol=1e-12)


# One test for each trap; the wrong formula stands beside the right one, so that the numbers tell
# them apart.
C, L = np.array([0.2, 3.0]), np.array([2.0, 0.5])
HARMONIC = (1 + np.exp(-L)) * C + (1 + np.exp(-C)) * L


def test_trap_1_factors_are_per_sample():
    got = harmonic_loss(C, L)
    np.testing.assert_allclose(got, HARMONIC, rtol=1e-6)
    averaged = (1 + np.exp(-L.mean())) * C + (1 + np.exp(-C.mean())) * L
    assert np.abs(averaged - HARMONIC).min() > 0.1
    jacobian = jax.jacobian(lambda c: harmonic_loss(c, jnp.asarray(L, jnp.float32)))(
        jnp.asarray(C, jnp.float32)
    )
    assert jacobian[0, 1] == jacobian[1, 0] == 0


def test_trap_2_factors_come_from_unweighted_losses():
    weighted = (1 + np.exp(-C)) * L
    one_after_the_other = (1 + np.exp(-weighted)) * C + weighted
    assert np.abs(one_after_the_other - HARMONIC).min() > 0.01
    np.testing.assert_allclose(harmonic_loss(C, L), HARMONIC, rtol=1e-6)
    # In hardet_loss the factor sees alpha * HIoU too, and not the task-contrastive term.
    x = {name: np.array([v]) for name, v in zip(NAMES, (0.2, 0.5, 0.9, 0.3, 0.4), strict=True)}
    np.testing.assert_allclose(hardet_loss(*x.values()), reference.hardet(x), rtol=1e-6)


def test_trap_3_each_loss_is_weighted_by_the_other():
    own = (1 + np.exp(-C)) * C + (1 + np.exp(-L)) * L
    assert np.abs(own - HARMONIC).min() > 0.1
    np.testing.assert_allclose(harmonic_loss(C, L), HARMONIC, rtol=1e-6)


def test_trap_4_score_and_iou_are_compared_elementwise():
    prob, iou, entropy = jnp.full((3,), 0.9), jnp.full((3,), 0.1), jnp.zeros(3)
    assert task_contrastive_loss(prob, iou, entropy).shape == (3,)
    with pytest.raises(ValueError, match=r"^iou has shape \(3, 1\)"):
        task_contrastive_loss(prob, iou[:, None], entropy)
    with pytest.raises(ValueError, match=r"^loc_loss has shape \(3, 1\)"):
        jax.jit(harmonic_loss)(prob, iou[:, None])


@pytest.mark.parametrize("mode", MODES)
def test_trap_2_a_weighted_box_loss_leaves_the_factor_alone(mode):
    """Twice the weight adds (1 + beta_c) SmoothL1 once more, and its gradient: nothing else."""
    x = samples()
    cls_loss, smooth_l1, *others = (jnp.asarray(x[name], jnp.float32) for name in NAMES)

    def loss(cls_loss, smooth_l1, **options):
        return hardet_loss(cls_loss, smooth_l1, *others, factor_gradient=mode, **options)

    def extra(cls_loss, smooth_l1):
        factor = jax.lax.stop_gradient(cls_loss) if mode == "stop" else cls_loss
        return (1 + jnp.exp(-factor)) * smooth_l1

    def of(f):
        value, pull = jax.vjp(f, cls_loss, smooth_l1)
        return value, *pull(jnp.ones_like(value))

    one, two, added = of(loss), of(functools.partial(loss, box_weight=2.0)), of(extra)
    for a, b, c in zip(one, two, added, strict=True):
        np.testing.assert_allclose(b, a + c, rtol=1e-5, atol=1e-6)
    same = of(functools.partial(loss, box_weight=1.0))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)


def test_trap_5_no_jump_at_the_margin():
    prob = np.array([0.19, 0.2, 0.21, 0.7])  # IoU 0, entropy 0: half of what exceeds the margin
    loss = task_contrastive_loss(prob, np.zeros(4), np.zeros(4))
    np.testing.assert_allclose(loss, [0, 0, 0.005, 0.25], atol=1e-7)


def test_trap_6_low_precision_inputs_are_computed_in_float32():
    x = samples()
    arrays = [jnp.asarray(x[name], jnp.bfloat16) for name in NAMES]
    got = hardet_loss(*arrays)
    assert got.dtype == jnp.float32
    rounded = {n: np.asarray(a, np.float64) for n, a in zip(NAMES, arrays, strict=True)}
    np.testing.assert_allclose(got, reference.hardet(rounded), rtol=2e-6)


def test_trap_7_a_huge_entropy_does_not_overflow():
    """exp(100) is infinite in float32; the weight is 0 and so is its gradient."""
    value, gradient = jax.value_and_grad(
        lambda h: task_contrastive_loss(jnp.ones(2), jnp.zeros(2), h).sum()
    )(jnp.array([100.0, 1e4]))
    assert value < 1e-6
    assert jnp.isfinite(gradient).all()


def test_contrastive_kinks_have_gradient_zero():
    def loss(prob, iou):
        return task_contrastive_loss(prob, iou, jnp.zeros(1), margin=0.0).sum()

    assert jax.grad(loss)(jnp.array([0.5]), jnp.array([0.5])) == 0
    at_margin = jax.grad(lambda p: task_contrastive_loss(p, p * 0, p * 0, margin=0.25).sum())
    assert at_margin(jnp.array([0.25])) == 0
