"""The losses to compare with, in cases worked by hand and at the ends of their ranges."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from harmonic_jax.losses import rivals, sigmoid_focal_loss
from tests.losses.every import CASES, CLASSES, IOU, LABELS, LOGITS, LOSS, OBJECTS, PROB


def test_both_modes_and_second_order():
    case = CASES["quality_focal_loss"]
    with jax.enable_x64(True):
        x, target = (jnp.asarray(a[:2]) for a in case.floats)
        check_grads(jax.jit(lambda x: case.call(x, target, rows=slice(2))), (x,), order=2)


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


def test_isr_ranks_a_hand_worked_batch():
    """Object a: 0.9, 0.7, 0.2; b: 0.6; another class: 0.3, 0.1. The best of each object first."""
    iou = jnp.array([0.9, 0.7, 0.2, 0.6, 0.3, 0.1, 0.99])
    labels = jnp.array([0, 0, 0, 0, 1, 1, 0])
    objects = jnp.array([5, 5, 5, 2, 3, 3, 2])

    def ranks(where, largest):
        """From weights that are proportional to largest - rank."""
        weights = rivals.isr_loss(jnp.ones(7), iou, labels, objects, exponent=1.0, where=where)
        return [round(float(largest * (1 - w / weights.max())), 3) for w in weights]

    assert ranks(jnp.arange(7) < 6, 4) == [0, 2, 3, 1, 0, 1, 4]  # 4: no weight
    assert ranks(None, 5) == [1, 2, 4, 3, 0, 1, 0]


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
