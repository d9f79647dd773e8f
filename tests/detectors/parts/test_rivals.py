"""RetinaNet with every rival's losses: against NumPy over anchors, and sharded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import config as c
from harmonic_jax.detectors.parts.rivals import box_losses
from tests.detectors import reference as ref
from tests.detectors import tiny
from tests.detectors.families import (
    ANCHORS,
    BOTH,
    retinanet_case,
    retinanet_sums,
    rows_without_gradient,
)
from tests.detectors.tiny import K
from tests.losses import reference as plain

# Those that change the box loss alone differ in `box_losses`, where they are compared.
WHOLE = [n for n, loss in c.RIVALS.items() if loss.is_weighted or loss.cls_loss != "focal"]
PREDICTIONS, TRUTH = retinanet_case(7)


def loss_of_halves(predictions, loss):
    """Each image on a device of its own; the sums are added as the train step does."""

    def one(predictions, truth, is_real):
        sums = retinanet_sums(predictions, truth, is_real, loss, batch_axis="data")
        return jax.lax.psum(sums, "data").normalized()["loss"] / 2

    halves = jax.tree.map(lambda a: jnp.asarray(a)[:, None], (PREDICTIONS, TRUTH, BOTH))
    halves = (jax.tree.map(lambda a: a[:, None], predictions), *halves[1:])
    return jax.vmap(one, axis_name="data")(*halves).sum()


@jax.jit
def step(all_predictions, truth, is_real):
    """Of every loss: value and gradients."""

    def loss(own, name):
        return retinanet_sums(own, truth, is_real, c.RIVALS[name]).normalized()["loss"]

    return {name: jax.value_and_grad(loss)(all_predictions[name], name) for name in WHOLE}


@pytest.fixture(scope="module")
def trained():
    return step(dict.fromkeys(WHOLE, PREDICTIONS), TRUTH, BOTH)


@pytest.mark.parametrize("name", WHOLE)
def test_equals_numpy(trained, name):
    value, gradients = trained[name]
    np.testing.assert_allclose(value, expected(c.RIVALS[name]), rtol=2e-5)
    assert all(np.any(level) for level in jax.tree.leaves(gradients))


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_what_is_not_counted_may_hold_anything(trained, fill):
    """Scores and deltas of ignored anchors, and deltas of negatives."""
    spoilt = {
        name: tiny.spoil(PREDICTIONS, rows_without_gradient(gradients), fill)
        for name, (_, gradients) in trained.items()
    }
    for name, (value, gradients) in step(spoilt, TRUTH, BOTH).items():
        want, want_gradients = trained[name]
        np.testing.assert_allclose(value, want, rtol=1e-6, err_msg=name)
        for a, b in zip(*map(jax.tree.leaves, (gradients, want_gradients)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ["pisa", "iou_balanced"])
def test_weights_of_equal_sums_show_in_the_gradient(trained, name):
    """These weights leave the sum of the classification losses as it is: its value is blind."""
    rows = gather()
    own = {key: values[rows["positive"]] for key, values in rows.items()}
    labels, true = own["labels"], (np.arange(len(own["labels"])), own["labels"])
    iou = np.array([plain.iou(a, b) for a, b in zip(own["boxes"], own["targets"], strict=True)])
    focal = plain.focal(own["logits"], labels, 0.25, 2.0)
    box = expected_boxes(own, c.RIVALS[name])
    if name == "pisa":
        weighted = plain.isr(focal.sum(-1), iou, labels, own["objects"]) / focal.sum(-1)
        weights = np.broadcast_to(weighted[:, None], focal.shape)
    else:
        weights = np.ones(focal.shape)
        weights[true] = plain.iou_balanced_cls(focal[true], iou) / focal[true]

    def of_each(logits):
        """Its own part of the total, the weights held; of CARL the scores flow through the mean."""
        parts = (weights * plain.focal(logits, labels, 0.25, 2.0)).sum(-1)
        return parts / len(parts)

    want = plain.central_difference(of_each, own["logits"])
    if name == "pisa":
        prob = 1 / (1 + np.exp(-own["logits"][true]))
        v = 0.8 * prob + 0.2
        slope = 0.8 / v.sum() * (box - (v * box).sum() / v.sum())  # d/dp of sum(v box) / sum(v)
        want[true] += slope * prob * (1 - prob)
    gradient = np.concatenate(trained[name][1].cls_logits, axis=1)
    np.testing.assert_allclose(gradient[tuple(own["place"].T)], want, rtol=2e-4, atol=1e-6)


def test_the_boxes_of_all_equal_numpy():
    """The one step that those have to themselves which change the box loss alone."""
    rows = gather()
    own = {name: values[rows["positive"]] for name, values in rows.items()}
    where = jnp.ones((1, len(own["boxes"])), bool)
    floats = [jnp.asarray(own[name], jnp.float32) for name in ("deltas", "boxes", "targets")]

    @jax.jit
    def every(deltas, boxes, targets, anchors):
        return {
            name: box_losses(
                deltas[None], boxes[None], anchors, targets[None], where=where, loss=loss
            )
            for name, loss in c.RIVALS.items()
        }

    for name, got in every(*floats, jnp.asarray(own["anchors"], jnp.float32)).items():
        want = expected_boxes(own, c.RIVALS[name])
        np.testing.assert_allclose(got[0], want, rtol=2e-4, atol=1e-5, err_msg=name)


def test_no_positive_and_no_image():
    """Statistics of no samples: values finite, and boxes without gradient."""
    empty = dataclasses.replace(TRUTH, valid=jnp.zeros_like(TRUTH.valid))
    for is_real in (BOTH, ~BOTH):
        for value, grads in step(dict.fromkeys(WHOLE, PREDICTIONS), empty, is_real).values():
            assert np.isfinite(value)
            assert (value > 0) == is_real.all()
            assert not any(np.any(level) for level in grads.deltas)
            assert all(np.isfinite(level).all() for level in grads.cls_logits)
            assert np.any(grads.cls_logits[0]) == is_real.all()


def expected_boxes(rows: dict[str, np.ndarray], loss: c.LossConfig) -> np.ndarray:
    """The box loss of each row, before any weight."""
    functions = {
        "giou": plain.giou_loss,
        "diou": plain.diou_loss,
        "ciou": plain.ciou_loss,
        "eiou": plain.eiou_loss,
        "task_aligned": plain.giou_loss,
    }
    if loss.box_loss in functions:
        pairs = zip(rows["boxes"], rows["targets"], strict=True)
        return np.array([functions[loss.box_loss](a, b) for a, b in pairs])
    return plain.smooth_l1(rows["deltas"], rows["wanted"], 0.11)


def expected(loss: c.LossConfig) -> float:
    """The loss of the batch from the formulas, in float64."""
    rows = gather()
    positive, logits, labels = rows["positive"], rows["logits"], rows["labels"]
    own = {k: v[positive] for k, v in rows.items()}
    iou = np.array([plain.iou(a, b) for a, b in zip(own["boxes"], own["targets"], strict=True)])
    prob = 1 / (1 + np.exp(-own["logits"][np.arange(len(iou)), own["labels"]]))
    quality = np.zeros(len(positive))
    quality[positive] = iou
    alignment = plain.task_alignment(prob, iou, own["objects"])
    n_cls = n_box = positive.sum()

    cls = plain.focal(logits, labels, 0.25, 2.0).sum(-1)
    match loss.cls_loss:
        case "quality_focal":
            cls = plain.quality_focal(logits, labels, quality).sum(-1)
        case "varifocal":
            cls = plain.varifocal(logits, labels, quality).sum(-1)
        case "ia_bce":
            cls = plain.ia_bce(logits, labels, quality).sum(-1)
        case "mal":
            cls = plain.matchability_aware(logits, labels, quality).sum(-1)
        case "position":
            image = own["place"][:, 0]
            largest = np.array([max(iou[image == i]) for i in image])
            quality[positive] = iou**2 / largest
            cls = plain.position_supervised(logits, labels, quality).sum(-1)
        case "task_aligned":
            quality[positive] = alignment
            cls = plain.quality_focal(logits, labels, quality).sum(-1)
            n_cls = alignment.sum()
        case "isr":
            cls[positive] = plain.isr(cls[positive], iou, own["labels"], own["objects"])
        case "iou_balanced":
            true = plain.focal(own["logits"], own["labels"], 0.25, 2.0)
            true = true[np.arange(len(iou)), own["labels"]]
            cls[positive] += plain.iou_balanced_cls(true, iou) - true

    box = expected_boxes(own, loss)
    match loss.box_loss:
        case "task_aligned":
            box, n_box = alignment * box, alignment.sum()
        case "iou_balanced":
            box = plain.iou_balanced_loc(box, iou)
        case "carl":
            box = box + plain.carl(prob, box)
    total = loss.cls_weight * cls.sum() / n_cls + loss.box_weight * box.sum() / n_box
    if loss.correlation != "none":
        total += 0.2 * plain.correlation(prob, iou, loss.correlation)
    return total


@functools.cache
def gather() -> dict[str, np.ndarray]:
    """Every counted anchor of the batch, one row each, in float64."""
    rows = []
    anchors = np.concatenate(ANCHORS).astype(np.float64)
    for image in range(2):
        boxes, labels = tiny.objects_of(TRUTH, image)
        logits = tiny.of_image(PREDICTIONS.cls_logits, image)
        deltas = tiny.of_image(PREDICTIONS.deltas, image)
        for n, index in enumerate(ref.match_by_overlap(anchors, boxes, c.MatchConfig())):
            if index is None:
                continue
            positive = index >= 0
            target = boxes[index] if positive else anchors[n]
            rows.append(
                {
                    "positive": positive,
                    "place": (image, n),
                    "labels": labels[index] if positive else K,
                    "objects": 10 * image + index,
                    "logits": logits[n],
                    "deltas": deltas[n],
                    "anchors": anchors[n],
                    "wanted": ref.encode(target, anchors[n]),
                    "boxes": ref.decode(deltas[n], anchors[n]),
                    "targets": target,
                }
            )
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def test_the_case_has_what_the_losses_are_about():
    rows = gather()
    own = rows["objects"][rows["positive"]]
    assert len(set(own)) > 3
    assert max(np.bincount(own)) > 2
    assert len(set(np.bincount(rows["labels"][rows["positive"]]))) > 1


SHARDED = ("iou_balanced", "correlation")  # pisa, too, but ranks within a device


def test_images_on_two_devices_equal_one_batch(trained):
    @jax.jit
    def every(predictions):
        return {
            name: jax.value_and_grad(loss_of_halves)(predictions, c.RIVALS[name])
            for name in SHARDED
        }

    for name, (value, grads) in every(PREDICTIONS).items():
        want, want_grads = trained[name]
        np.testing.assert_allclose(value, want, rtol=1e-5, err_msg=name)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)
