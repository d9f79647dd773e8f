"""The region proposal network: its samples and its proposals against loops."""

import functools

import jax
import numpy as np
import pytest

from harmonic_jax.config import RPNConfig
from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.detectors.rpn import select_proposals
from harmonic_jax.ops.box_coder import encode_boxes
from tests.detectors import reference as ref
from tests.detectors import tiny
from tests.ops.scenes import random_boxes

RPN = RPNConfig()
B = 2


# --- Proposals -----------------------------------------------------------------------------------

IMAGE = (128, 192)
SIZES = np.array([[128, 192], [100, 150]], np.float32)
ANCHORS = make_anchors(IMAGE, (2, 6), RPN.anchors)


def propose_with(topk: int, most: int) -> RPNConfig:
    return RPNConfig(topk_eval=topk, num_proposals_eval=most, topk_train=1, num_proposals_train=1)


FEW, ALL = propose_with(100, 100), propose_with(5000, 1000)
CASES = {
    "more candidates than proposals": FEW,
    "more room than proposals": propose_with(30, 300),
    "many ties": FEW,
    "saturated scores": FEW,
}


def raw_outputs(seed: int = 0) -> tuple[list, list]:
    """Random logits and boxes, and clusters of good anchors around a few objects."""
    rng = np.random.default_rng(seed)
    logits, deltas = [], []
    for anchors in ANCHORS:
        logit = rng.normal(-2, 1.5, (B, len(anchors), 1))
        delta = rng.normal(0, 0.3, (B, len(anchors), 4))
        for image in range(B):
            objects = random_boxes(rng, 5, IMAGE, 16.0, 120.0)
            near = rng.random(len(anchors)) < 0.2
            which = objects[rng.integers(0, 5, len(anchors))]
            exact = np.asarray(encode_boxes(which, anchors))
            delta[image, near] = (exact + 0.1 * delta[image])[near]
            logit[image, near, 0] += 3
        logits.append(logit.astype(np.float32))
        deltas.append(delta.astype(np.float32))
    return logits, deltas


@functools.partial(jax.jit, static_argnums=(1, 3))
def propose(outputs, config, anchors=ANCHORS, is_training=False):
    return jax.vmap(
        lambda one, size: select_proposals(one, anchors, size, config, is_training=is_training)
    )(outputs, SIZES)


def check(proposals, image: int, boxes: np.ndarray, scores: np.ndarray | None = None) -> None:
    """The rows of an image, best first, and zeros behind them."""
    own = jax.tree.map(np.asarray, tiny.row(proposals, image))
    np.testing.assert_array_equal(own.valid, np.arange(len(own.valid)) < len(boxes))
    np.testing.assert_allclose(own.boxes[own.valid], boxes, atol=1e-3)
    if scores is not None:
        np.testing.assert_allclose(own.scores[own.valid], scores, rtol=1e-5, atol=1e-7)
    assert not own.boxes[~own.valid].any()
    assert not own.scores[~own.valid].any()


def by_definition(logits: list, deltas: list, image: int, config: RPNConfig) -> list:
    """(logit, level, box), best first: ties of scores are broken by level and anchor."""
    candidates, (height, width) = [], SIZES[image]
    for l, anchors in enumerate(ANCHORS):
        for n in np.argsort(-logits[l][image, :, 0], kind="stable")[: config.topk_eval]:
            box = ref.decode(deltas[l][image, n].astype(np.float64), anchors[n].astype(np.float64))
            box = np.clip(box, 0, [width, height, width, height])
            if (box[2:] - box[:2] >= 1e-3).all():
                logit = min(float(logits[l][image, n, 0]), 17.0)  # from there on scores are 1
                candidates.append((logit, l, box))
    return ref.suppress(candidates, config.nms_iou, config.num_proposals_eval)


@pytest.mark.parametrize("name", CASES)
def test_proposals_equal_the_definition(name: str) -> None:
    logits, deltas = raw_outputs(2)
    if name == "many ties":
        logits = [np.round(level) for level in logits]
    elif name == "saturated scores":  # within a level the order is that of the logits
        logits = [level * 10 + 150 for level in logits]
    proposals = propose(tiny.predictions_of(logits, deltas), CASES[name])
    assert proposals.valid.all() == (name != "more room than proposals")
    for image in range(B):
        expected = by_definition(logits, deltas, image, CASES[name])
        scores = 1 / (1 + np.exp(-np.array([score for score, _, _ in expected])))
        check(proposals, image, np.array([box for _, _, box in expected]), scores)


def test_training_has_its_own_numbers() -> None:
    logits, deltas = raw_outputs(1)
    outputs = tiny.predictions_of(logits, deltas)
    swapped = RPNConfig(topk_train=100, num_proposals_train=100, topk_eval=1, num_proposals_eval=1)
    training = propose(outputs, swapped, ANCHORS, True)
    tiny.assert_same(training, propose(outputs, FEW))


def test_what_is_no_number_is_never_proposed() -> None:
    logits, deltas = raw_outputs(3)
    clean = propose(tiny.predictions_of(logits, deltas), ALL)  # all, so that bad ones displace none
    bad_logits = [
        np.concatenate([level, np.full((B, 3, 1), value, np.float32)], axis=1)
        for level, value in zip(logits, (np.nan, 50.0, np.nan, 60.0, np.inf), strict=True)
    ]
    bad_deltas = [
        np.concatenate([level, np.full((B, 3, 4), value, np.float32)], axis=1)
        for level, value in zip(deltas, (0.0, np.nan, np.nan, -np.nan, np.nan), strict=True)
    ]
    anchors = tuple(np.concatenate([level, level[:3]]) for level in ANCHORS)
    dirty = propose(tiny.predictions_of(bad_logits, bad_deltas), ALL, anchors)
    tiny.assert_close(dirty, clean, atol=1e-4)
    nothing = [np.full_like(level, np.nan) for level in logits]
    proposals = propose(tiny.predictions_of(nothing, deltas), ALL)
    assert not any(np.any(leaf) for leaf in proposals)


def test_a_batch_equals_its_images_and_is_constant() -> None:
    outputs = tiny.predictions_of(*raw_outputs(5))
    together = propose(outputs, FEW)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def alone(outputs, size):
        proposals = select_proposals(outputs, ANCHORS, size, FEW, is_training=False)
        return proposals.boxes.sum() + proposals.scores.sum(), proposals

    for image in range(B):
        (_, proposals), gradient = alone(tiny.row(outputs, image), SIZES[image])
        tiny.assert_close(tiny.row(together, image), proposals, atol=1e-4)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
