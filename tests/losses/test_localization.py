"""SmoothL1 at its joints, and the IoU family on boxes that should not exist."""

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax.losses import (
    aligned_iou,
    ciou_loss,
    diou_loss,
    eiou_loss,
    giou_loss,
    iou_loss,
    smooth_l1_loss,
)
from tests.losses.every import valid_pairs

BOX_FUNCTIONS = {
    f.__name__: f for f in (aligned_iou, iou_loss, giou_loss, diou_loss, ciou_loss, eiou_loss)
}


@jax.jit
def run(pred, target):
    """Of each function: the value, and the gradients of its sum."""
    out = {}
    for name, function in BOX_FUNCTIONS.items():
        value, pull = jax.vjp(function, pred, target)
        out[name] = value, *pull(jnp.ones_like(value))
    return out


def test_identical_boxes_are_perfect_at_any_scale():
    for scale in (1e-3, 1.0, 1e4):
        boxes = jnp.asarray(valid_pairs(100)[0] * scale, jnp.float32)
        for name, (value, gradient, _) in run(boxes, boxes).items():
            np.testing.assert_allclose(value, float(name == "aligned_iou"), atol=1e-6)
            # The kink's symmetric slope.
            np.testing.assert_allclose(gradient * scale, 0.0, atol=1e-6, err_msg=name)


def test_far_boxes_have_the_loss_of_near_ones():
    """No area overflows on the way; the products of 1e20 would."""
    pred, target = (jnp.asarray(boxes, jnp.float32) for boxes in valid_pairs(100))
    near = run(pred, target)
    for scale in (1e10, 1e20, 1e33):
        for name, (value, *gradients) in run(pred * scale, target * scale).items():
            want, *want_gradients = near[name]
            np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-6, err_msg=name)
            for a, b in zip(gradients, want_gradients, strict=True):
                np.testing.assert_allclose(a * scale, b, rtol=1e-2, atol=1e-5, err_msg=name)


def test_known_boxes():
    square = [0.0, 0.0, 2.0, 2.0]
    pairs = {
        "half": (square, [0.0, 0.0, 2.0, 1.0], 0.5),
        "seventh": (square, [1.0, 1.0, 3.0, 3.0], 1 / 7),
        "touching": (square, [2.0, 0.0, 4.0, 2.0], 0.0),
        "inverted in x": ([2.0, 0.0, 0.0, 2.0], square, 0.0),
        "inverted in both": ([2.0, 2.0, 0.0, 0.0], square, 0.0),  # a product of two negatives
        "identical, inverted": ([2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0], 0.0),
        "point": ([1.0, 1.0, 1.0, 1.0], square, 0.0),
        "two points": ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], 0.0),
    }
    for name, (pred, target, expected) in pairs.items():
        got = aligned_iou(jnp.array(pred), jnp.array(target))
        np.testing.assert_allclose(got, expected, rtol=1e-6, err_msg=name)


def test_a_point_has_no_aspect_ratio():
    wide, point = jnp.array([[0.0, 0.0, 9.0, 1.0]]), jnp.array([[3.0, 3.0, 3.0, 3.0]])
    for pair in ((wide, point), (point, wide)):
        np.testing.assert_array_equal(ciou_loss(*pair), diou_loss(*pair))


def test_inverted_box_has_bounded_terms():
    """The centre of an inverted box lies inside the hull of its corners and its target's."""
    square, mirrored = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[2.0, 2.0, 0.0, 0.0]])
    # Two negative sides would multiply to the area of the target, and GIoU would be perfect.
    np.testing.assert_allclose(giou_loss(mirrored, square), [1.0])  # IoU 0, hull = union
    target, pred = jnp.array([[10.0, 10.0, 30.0, 30.0]]), jnp.array([[1e6, 1e6, -5.0, -5.0]])
    np.testing.assert_allclose(giou_loss(pred, target), [2.0], rtol=1e-6)
    np.testing.assert_allclose(diou_loss(pred, target), [1.25], rtol=1e-4)


def test_smooth_l1_at_its_joint_and_at_zero():
    gradient = jax.grad(lambda x: smooth_l1_loss(x, jnp.zeros((1, 4)), beta=0.5).sum())
    np.testing.assert_allclose(gradient(jnp.array([[0.0, 0.5, -0.5, 0.25]])), [[0, 1, -1, 0.5]])


def test_smooth_l1_with_beta_zero_is_l1():
    pred, target = jnp.array([[1.0, -2.0, 0.0, 0.5]]), jnp.zeros((1, 4))
    for beta in (0.0, 1e-45):
        value, gradient = jax.value_and_grad(
            lambda x, beta=beta: smooth_l1_loss(x, target, beta=beta).sum()
        )(pred)
        assert value == 3.5
        np.testing.assert_array_equal(gradient, jnp.sign(pred))
