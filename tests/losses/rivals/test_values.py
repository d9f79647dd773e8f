"""Values against float64 NumPy and hand-worked cases, gradients against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from harmonic_jax.losses import rivals, sigmoid_focal_loss
from tests.losses.rivals.cases import CASES, CLASSES, IOU, LABELS, LOGITS, LOSS, OBJECTS, PROB

OPTIONS = [
    *((name, {}) for name in CASES),
    ("quality_focal_loss", {"beta": 0.5}),
    ("quality_focal_loss", {"beta": 0.0}),
    ("task_aligned_loss", {"gamma": 1.0}),
    ("varifocal_loss", {"alpha": 0.5, "gamma": 1.5}),
    ("task_alignment", {"alpha": 0.5, "beta": 2.0}),
    ("iou_balanced_cls_loss", {"exponent": 0.7}),
    ("iou_balanced_loc_loss", {"exponent": 0.7}),
    ("isr_loss", {"exponent": 1.0, "bias": 0.3}),
    ("carl_loss", {"exponent": 2.0, "bias": 0.0}),
    ("correlation_loss", {"kind": "pearson"}),
]


@pytest.fixture(scope="module")
def computed():
    """Values and gradients of the sum of all of them: one program, in float64."""

    @jax.jit
    def every(arrays):
        out = []
        for (name, options), floats in zip(OPTIONS, arrays, strict=True):
            case = CASES[name]
            value, pull = jax.vjp(lambda *f, c=case, o=options: c.call(*f, **o), *floats)
            out.append((value, pull(jnp.ones_like(value))))
        return out

    with jax.enable_x64(True):
        arrays = [[jnp.asarray(a) for a in CASES[name].floats] for name, _ in OPTIONS]
        return jax.device_get(every(arrays))


@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=[f"{n}{o}" for n, o in OPTIONS])
def test_equals_numpy(computed, index):
    name, options = OPTIONS[index]
    value, _ = computed[index]
    np.testing.assert_allclose(
        value, CASES[name].expected(*CASES[name].floats, **options), rtol=1e-11, atol=1e-14
    )


# Their weights are constants of the gradient though they depend on what is differentiated.
HELD = ("iou_balanced_cls_loss", "isr_loss")


@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=[f"{n}{o}" for n, o in OPTIONS])
def test_gradient_equals_differences_of_numpy(computed, index):
    name, options = OPTIONS[index]
    case, (value, gradients) = CASES[name], computed[index]
    for argument, gradient in enumerate(gradients):
        if argument not in case.moves:
            assert not np.any(gradient)
        elif name in HELD:
            np.testing.assert_allclose(gradient, value / case.floats[argument], rtol=1e-12)
        else:
            expected = differences(case, options, argument)
            np.testing.assert_allclose(gradient, expected, rtol=2e-6, atol=2e-8)


def differences(case, options, argument, h=1e-6):
    """Of the sum, one coordinate at a time."""
    out = np.zeros(case.floats[argument].shape)
    for index in np.ndindex(out.shape):
        sums = []
        for sign in (1, -1):
            floats = [array.copy() for array in case.floats]
            floats[argument][index] += sign * h
            sums.append(case.expected(*floats, **options).sum())
        out[index] = (sums[0] - sums[1]) / (2 * h)
    return out


def test_both_modes_and_second_order():
    case = CASES["quality_focal_loss"]
    with jax.enable_x64(True):
        x, quality_ = (jnp.asarray(a[:2]) for a in case.floats)
        check_grads(jax.jit(lambda x: case.call(x, quality_, rows=slice(2))), (x,), order=2)


def test_with_quality_one_it_is_the_focal_loss():
    """The quality focal loss of hard targets is the focal loss without its class weights."""
    with jax.enable_x64(True):
        hard = rivals.quality_focal_loss(jnp.asarray(LOGITS), LABELS, jnp.ones(len(LABELS)))
        focal = sigmoid_focal_loss(jnp.asarray(LOGITS), LABELS, alpha=None)
    np.testing.assert_allclose(hard, focal, rtol=1e-12)


def test_a_positive_without_overlap_is_a_negative_to_varifocal():
    zero = rivals.varifocal_loss(jnp.asarray(LOGITS), LABELS, jnp.zeros(len(LABELS)))
    background = rivals.varifocal_loss(
        jnp.asarray(LOGITS), np.full(len(LABELS), -1), jnp.ones(len(LABELS))
    )
    np.testing.assert_array_equal(zero, background)


def test_balanced_sums_are_those_of_the_plain_losses():
    with jax.enable_x64(True):
        loss, iou = jnp.asarray(LOSS), jnp.asarray(IOU)
        balanced = rivals.iou_balanced_cls_loss(loss, iou).sum()
        reweighted = rivals.isr_loss(loss, iou, CLASSES, OBJECTS).sum()
        weights = rivals.carl_loss(jnp.asarray(PROB), jnp.ones(12)).sum()
    np.testing.assert_allclose([balanced, reweighted], LOSS.sum(), rtol=1e-12)
    np.testing.assert_allclose(weights, 12, rtol=1e-12)


def test_the_rank_of_a_hand_worked_batch():
    """Object a: 0.9, 0.7, 0.2; b: 0.6; another class: 0.3, 0.1. The best of each object first."""
    iou = jnp.array([0.9, 0.7, 0.2, 0.6, 0.3, 0.1, 0.99])
    labels = jnp.array([0, 0, 0, 0, 1, 1, 0])
    objects = jnp.array([5, 5, 5, 2, 3, 3, 2])
    where = jnp.arange(7) < 6
    rank = rivals.iou_hierarchical_rank(iou, labels, objects, where=where)
    assert rank.tolist() == [0, 2, 3, 1, 0, 1, -1]
    assert rivals.iou_hierarchical_rank(iou, labels, objects).tolist() == [1, 2, 4, 3, 0, 1, 0]
    assert rivals.iou_hierarchical_rank(iou[:0], labels[:0], objects[:0]).shape == (0,)


def test_carl_s_gradient_lowers_the_score_of_the_worse_box():
    gradient = jax.grad(lambda p: rivals.carl_loss(p, jnp.array([0.1, 2.0])).sum())(
        jnp.array([0.5, 0.5])
    )
    assert gradient[0] < 0 < gradient[1]  # descent raises the first score, lowers the second


def test_correlations_at_their_ends():
    u = jnp.array([0.2, 0.4, 0.9])
    for kind in ("pearson", "concordance"):
        loss = lambda p, kind=kind: rivals.correlation_loss(p, u, kind=kind)  # noqa: E731
        np.testing.assert_allclose(loss(u), 0.0, atol=1e-6)
        for undefined in (jnp.full(3, 0.5),) if kind == "pearson" else ():
            value, gradient = jax.value_and_grad(loss)(undefined)
            assert (value, *gradient) == (0, 0, 0, 0)
        alone = jnp.arange(3) == 1
        value, gradient = jax.value_and_grad(
            lambda p, kind=kind, alone=alone: rivals.correlation_loss(p, u, kind=kind, where=alone)
        )(u / 2)
        assert (value, *gradient) == (0, 0, 0, 0)
    np.testing.assert_allclose(rivals.correlation_loss(1 - u, u, kind="pearson"), 2.0, rtol=1e-6)
    np.testing.assert_allclose(rivals.correlation_loss(u / 2, u, kind="pearson"), 0.0, atol=1e-6)
    assert rivals.correlation_loss(u / 2, u) > 0.3


def test_task_alignment_leaves_out_what_has_no_object():
    prob, iou = jnp.array([0.5, jnp.nan, 0.9]), jnp.array([0.5, 0.5, jnp.nan])
    t = rivals.task_alignment(
        prob, iou, jnp.array([1, -1, 1]), num_objects=2, where=jnp.array([True, True, False])
    )
    assert t.tolist() == [0.5, 0.0, 0.0]
