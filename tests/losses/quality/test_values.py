"""Values against float64 NumPy and hand-worked cases, gradients against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from harmonic_jax.losses import giou_loss, quality, sigmoid_focal_loss
from tests.losses.quality import reference
from tests.losses.quality.cases import CASES, CLASSES, IOU, LABELS, LOGITS, LOSS, OBJECTS, PROB
from tests.losses.test_localization import valid_pairs

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
    ("ghm_cls_loss", {"bins": 7}),
    ("ghm_loc_loss", {"mu": 0.3, "bins": 3}),
    ("correlation_loss", {"kind": "pearson"}),
    ("balanced_l1_loss", {"alpha": 0.4, "gamma": 1.0, "beta": 0.11}),
    ("alpha_iou_loss", {"alpha": 1.5, "penalty": "giou"}),
    ("alpha_iou_loss", {"alpha": 2.0, "penalty": "diou"}),
    ("alpha_iou_loss", {"penalty": "ciou"}),
    ("siou_loss", {"theta": 2.0}),
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
    if options.get("penalty") == "ciou":
        return  # its a is a constant: the test below
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


def test_alpha_ciou_holds_its_weight():
    pred, target = (boxes[:12] for boxes in valid_pairs())
    weights = [reference.boxes.ciou_weight(a, b) for a, b in zip(pred, target, strict=True)]

    def held(moved):
        rows = zip(moved, target, weights, strict=True)
        return np.array([reference.alpha_iou(a, b, 3.0, "ciou", w) for a, b, w in rows])

    with jax.enable_x64(True):
        gradient = jax.grad(
            lambda x: quality.alpha_iou_loss(x, jnp.asarray(target), penalty="ciou").sum()
        )(jnp.asarray(pred))
    expected = reference.boxes.central_difference(held, pred)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


def test_both_modes_and_second_order():
    case = CASES["quality_focal_loss"]
    with jax.enable_x64(True):
        x, quality_ = (jnp.asarray(a[:2]) for a in case.floats)
        check_grads(jax.jit(lambda x: case.call(x, quality_, rows=slice(2))), (x,), order=2)


def test_with_quality_one_it_is_the_focal_loss():
    """The quality focal loss of hard targets is the focal loss without its class weights."""
    with jax.enable_x64(True):
        hard = quality.quality_focal_loss(jnp.asarray(LOGITS), LABELS, jnp.ones(len(LABELS)))
        focal = sigmoid_focal_loss(jnp.asarray(LOGITS), LABELS, alpha=None)
    np.testing.assert_allclose(hard, focal, rtol=1e-12)


def test_a_positive_without_overlap_is_a_negative_to_varifocal():
    zero = quality.varifocal_loss(jnp.asarray(LOGITS), LABELS, jnp.zeros(len(LABELS)))
    background = quality.varifocal_loss(
        jnp.asarray(LOGITS), np.full(len(LABELS), -1), jnp.ones(len(LABELS))
    )
    np.testing.assert_array_equal(zero, background)


def test_distribution_at_the_ends_and_beyond():
    logits = jnp.log(jnp.array([[0.1, 0.3, 0.6]] * 4))
    loss = quality.distribution_focal_loss(logits, jnp.array([0.0, 2.0, 2.1, -0.1]))
    np.testing.assert_allclose(loss[:2], [-np.log(0.1), -np.log(0.6)], rtol=1e-6)
    assert (loss[2:] == jnp.inf).all()


def test_balanced_sums_are_those_of_the_plain_losses():
    with jax.enable_x64(True):
        loss, iou = jnp.asarray(LOSS), jnp.asarray(IOU)
        balanced = quality.iou_balanced_cls_loss(loss, iou).sum()
        reweighted = quality.isr_loss(loss, iou, CLASSES, OBJECTS).sum()
        weights = quality.carl_loss(jnp.asarray(PROB), jnp.ones(12)).sum()
    np.testing.assert_allclose([balanced, reweighted], LOSS.sum(), rtol=1e-12)
    np.testing.assert_allclose(weights, 12, rtol=1e-12)


def test_the_rank_of_a_hand_worked_batch():
    """Object a: 0.9, 0.7, 0.2; b: 0.6; another class: 0.3, 0.1. The best of each object first."""
    iou = jnp.array([0.9, 0.7, 0.2, 0.6, 0.3, 0.1, 0.99])
    labels = jnp.array([0, 0, 0, 0, 1, 1, 0])
    objects = jnp.array([5, 5, 5, 2, 3, 3, 2])
    where = jnp.arange(7) < 6
    rank = quality.iou_hierarchical_rank(iou, labels, objects, where=where)
    assert rank.tolist() == [0, 2, 3, 1, 0, 1, -1]
    assert quality.iou_hierarchical_rank(iou, labels, objects).tolist() == [1, 2, 4, 3, 0, 1, 0]
    assert quality.iou_hierarchical_rank(iou[:0], labels[:0], objects[:0]).shape == (0,)


def test_carl_s_gradient_lowers_the_score_of_the_worse_box():
    gradient = jax.grad(lambda p: quality.carl_loss(p, jnp.array([0.1, 2.0])).sum())(
        jnp.array([0.5, 0.5])
    )
    assert gradient[0] < 0 < gradient[1]  # descent raises the first score, lowers the second


def test_every_bin_in_use_has_the_same_share_in_ghm():
    """Whatever the number of its elements: with one loss an element, a bin adds n / m."""
    g = np.array([0.05] * 90 + [0.55] * 9 + [0.95])
    logits = jnp.asarray(np.log(g / (1 - g)), jnp.float32)[:, None]  # all are negatives: g = p
    weights = quality.ghm_cls_loss(logits, np.full(100, -1), bins=10) / jax.nn.softplus(logits)
    shares = [float(weights[a:b].sum()) for a, b in ((0, 90), (90, 99), (99, 100))]
    np.testing.assert_allclose(shares, 100 / 3, rtol=1e-4)


def test_correlations_at_their_ends():
    u = jnp.array([0.2, 0.4, 0.9])
    for kind in ("pearson", "concordance"):
        loss = lambda p, kind=kind: quality.correlation_loss(p, u, kind=kind)  # noqa: E731
        np.testing.assert_allclose(loss(u), 0.0, atol=1e-6)
        for undefined in (jnp.full(3, 0.5),) if kind == "pearson" else ():
            value, gradient = jax.value_and_grad(loss)(undefined)
            assert (value, *gradient) == (0, 0, 0, 0)
        alone = jnp.arange(3) == 1
        value, gradient = jax.value_and_grad(
            lambda p, kind=kind, alone=alone: quality.correlation_loss(p, u, kind=kind, where=alone)
        )(u / 2)
        assert (value, *gradient) == (0, 0, 0, 0)
    np.testing.assert_allclose(quality.correlation_loss(1 - u, u, kind="pearson"), 2.0, rtol=1e-6)
    np.testing.assert_allclose(quality.correlation_loss(u / 2, u, kind="pearson"), 0.0, atol=1e-6)
    assert quality.correlation_loss(u / 2, u) > 0.3


def test_eiou_of_touching_squares_and_siou_on_the_diagonal():
    square, right = jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[1.0, 1.0, 2.0, 2.0]])
    np.testing.assert_allclose(quality.eiou_loss(square, right), [1 + 2 / 8], rtol=1e-6)
    # angle 1, so exp(-1/4) in both directions
    np.testing.assert_allclose(
        quality.siou_loss(square, right), [1 + (2 - 2 * np.exp(-0.25)) / 2], rtol=1e-6
    )


def test_alpha_one_is_the_plain_family():
    pred, target = (jnp.asarray(b, jnp.float32) for b in valid_pairs())
    np.testing.assert_allclose(
        quality.alpha_iou_loss(pred, target, alpha=1.0, penalty="giou"),
        giou_loss(pred, target),
        rtol=1e-5,
        atol=1e-6,
    )


def test_task_alignment_leaves_out_what_has_no_object():
    prob, iou = jnp.array([0.5, jnp.nan, 0.9]), jnp.array([0.5, 0.5, jnp.nan])
    t = quality.task_alignment(
        prob, iou, jnp.array([1, -1, 1]), num_objects=2, where=jnp.array([True, True, False])
    )
    assert t.tolist() == [0.5, 0.0, 0.0]
