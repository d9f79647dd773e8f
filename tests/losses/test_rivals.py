"""The losses to compare with: at the ends of their ranges, and of rows on several devices."""

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax import losses
from harmonic_jax.losses import rivals
from tests.losses.every import CASES, IOU, LABELS, LOGITS, LOSS, OBJECTS, PAIRS, N


def test_a_positive_without_overlap_is_a_negative_to_varifocal():
    zero = rivals.varifocal_loss(jnp.asarray(LOGITS), LABELS, jnp.zeros(len(LABELS)))
    background = rivals.varifocal_loss(
        jnp.asarray(LOGITS), np.full(len(LABELS), -1), jnp.ones(len(LABELS))
    )
    np.testing.assert_array_equal(zero, background)


def test_a_positive_without_overlap_is_none_of_the_negatives_to_the_matchability_aware_loss():
    logits, labels = jnp.asarray(LOGITS), np.zeros(N, int)
    loss = rivals.matchability_aware_loss(logits, labels, jnp.zeros(N))[:, 0]
    np.testing.assert_allclose(loss, -np.log(1 - 1 / (1 + np.exp(-LOGITS[:, 0]))), rtol=1e-5)


def test_position_supervision_of_the_best_box_asks_for_its_iou():
    t = jnp.asarray(IOU**2 / IOU.max())
    assert np.isclose(t.max(), IOU.max())
    logit = jnp.log(t / (1 - t))[:, None]
    at_target = rivals.position_supervised_loss(logit, np.zeros(N, int), t)
    np.testing.assert_allclose(at_target, 0.0, atol=1e-6)


def test_inner_boxes_of_ratio_one_are_the_boxes_and_larger_ones_reach_further():
    pred, target = jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([[5.0, 0.0, 9.0, 4.0]])
    for pair in ((pred, target), tuple(jnp.asarray(boxes, jnp.float32) for boxes in PAIRS)):
        inner = rivals.inner_iou_loss(*pair, ratio=1.0)
        np.testing.assert_array_equal(inner, losses.iou_loss(*pair))
    slope = jax.grad(lambda boxes, ratio: rivals.inner_iou_loss(boxes, target, ratio=ratio).sum())
    assert not np.any(slope(pred, 1.2))
    assert np.any(slope(pred, 1.4))


def test_gaussians_attract_each_other_at_any_shift_and_of_any_size_alike():
    shift = jnp.array([[3.0, 4.0, 3.0, 4.0]])
    small, large = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 500.0, 200.0]])
    for box in (small, large, large[:, ::-1]):  # the last one is inverted
        loss, slope = jax.value_and_grad(
            lambda boxes, box=box: rivals.nwd_loss(boxes, box, constant=5.0).sum()
        )(box + shift)
        np.testing.assert_allclose(loss, 1 - np.exp(-1), rtol=1e-5)
        np.testing.assert_allclose(slope, np.exp(-1) / 5 * np.array([[3, 4, 3, 4]]) / 10, rtol=1e-5)
    assert not np.any(jax.grad(lambda b: rivals.nwd_loss(b, small, constant=5.0).sum())(small))


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


def test_halves_of_a_batch_share_its_statistics():
    """With `axis_name`, the rows of two devices have the values and gradients of one batch."""
    names = [name for name, case in CASES.items() if case.has_axis]
    assert len(names) == 3

    def total(floats, rows, axis_name):
        out = [CASES[n].call(*floats[n], rows=rows, axis_name=axis_name) for n in names]
        # A loss that every device has whole counts once.
        return sum(v.sum() / (2 if v.ndim == 0 and axis_name else 1) for v in out)

    def split(floats, weigh):
        rows = jnp.arange(N).reshape(2, -1)
        halves = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), floats)
        each = jax.vmap(lambda f, r: total(f, r, "data"), axis_name="data")(halves, rows)
        return (each * weigh).sum()

    floats = {n: [jnp.asarray(a, jnp.float32) for a in CASES[n].floats] for n in names}
    whole = jax.jit(jax.value_and_grad(lambda f: total(f, slice(None), None)))(floats)
    parts = jax.jit(jax.value_and_grad(split))(floats, jnp.ones(2))
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_isr_ranks_on_its_device_and_scales_with_all():
    labels = np.repeat([0, 1], 6)  # as many of either, so both halves have the whole batch's n_max
    objects = OBJECTS + 10 * labels

    def run(rows, axis_name=None):
        args = (LOSS, IOU, labels, objects)
        return rivals.isr_loss(*(jnp.asarray(a)[rows] for a in args), axis_name=axis_name)

    halves = jnp.arange(N).reshape(2, 6)
    parts = jax.jit(jax.vmap(lambda rows: run(rows, "data"), axis_name="data"))(halves)
    np.testing.assert_allclose(parts.reshape(-1), run(slice(None)), rtol=1e-5)
