"""The choice of a suppression, through the detections of every family, and what is marked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import config as c
from harmonic_jax.detectors import faster_rcnn, retinanet, ssd
from harmonic_jax.detectors.parts.selection import (
    mark_non_finite,
    non_finite_images,
    select_detections,
)
from harmonic_jax.detectors.rpn import Proposals
from harmonic_jax.structures import Detections, Predictions

# Two boxes of IoU 3/4, each found as another class too, and less.
BOXES = np.array([[0, 0, 8, 8], [0, 0, 8, 6]], np.float32)
PROBS = np.array([[0.6, 0.1], [0.4, 0.3]])
SIZE = np.array([10.0, 10.0], np.float32)
CONFIG = c.PostprocessConfig(score_threshold=0.05, nms_iou=0.5, max_detections=5, topk=9)

GONE = np.exp(-(0.75**2) / 0.5)
AVERAGED = (0.6 * 8 + 0.4 * 6) / 1.0
EXPECTED = {  # (score, label), best first
    "class": [(0.6, 0), (0.3, 1)],
    "agnostic": [(0.6, 0)],
    "soft_linear": [(0.6, 0), (0.3, 1), (0.4 * 0.25, 0), (0.1 * 0.25, 1)],
    "soft_gaussian": [(0.6, 0), (0.3, 1), (0.4 * GONE, 0), (0.1 * GONE, 1)],
    "matrix": [(0.6, 0), (0.3, 1), (0.4 * GONE, 0), (0.1 * GONE, 1)],
    "weighted": [(0.6, 0), (0.3, 1)],
}


def by_sigmoid(config: c.PostprocessConfig) -> Detections:
    logits = jnp.asarray(np.log(PROBS) - np.log1p(-PROBS), jnp.float32)
    predictions = Predictions((logits,), (jnp.zeros((2, 4)),))
    return retinanet.detect_in_image(predictions, (jnp.asarray(BOXES),), SIZE, config)


def softmax_logits() -> jnp.ndarray:
    background = 1 - PROBS.sum(axis=1, keepdims=True)
    return jnp.asarray(np.log(np.concatenate([PROBS, background], axis=1)), jnp.float32)


def by_softmax(config: c.PostprocessConfig) -> Detections:
    is_candidate = jnp.ones(2, bool)
    return ssd.detect_in_image(softmax_logits(), BOXES, is_candidate, SIZE, config=config)


def of_rois(config: c.PostprocessConfig) -> Detections:
    proposals = Proposals(jnp.asarray(BOXES), jnp.ones(2), jnp.ones(2, bool))
    model = c.FasterRCNNConfig(postprocess=config)
    deltas = jnp.zeros((2, 3, 4))
    return faster_rcnn.detect_in_image(softmax_logits(), deltas, proposals, SIZE, config=model)


@pytest.mark.parametrize(
    ("detect", "name"),
    [
        *((by_sigmoid, name) for name in EXPECTED),
        *(
            (other, name)
            for other in (by_softmax, of_rois)
            for name in ("soft_gaussian", "weighted")
        ),
    ],
)
def test_each_way_by_hand(detect, name: str) -> None:
    config = dataclasses.replace(CONFIG, nms=name)
    found = jax.jit(lambda: detect(config))()
    number = int(found.valid.sum())
    scores = [score for score, _ in EXPECTED[name]]
    np.testing.assert_allclose(found.scores[:number], scores, rtol=1e-5)
    assert found.labels[:number].tolist() == [label for _, label in EXPECTED[name]]
    bottom = AVERAGED if name == "weighted" else 8.0
    np.testing.assert_allclose(found.boxes[0], [0, 0, 8, bottom], rtol=1e-5)


def test_a_sigma_of_ones_own() -> None:
    config = dataclasses.replace(CONFIG, nms="soft_gaussian", nms_sigma=0.1)
    found = jax.jit(lambda: by_sigmoid(config))()
    np.testing.assert_allclose(found.scores[2], 0.4 * np.exp(-(0.75**2) / 0.1), rtol=1e-5)
    assert int(found.valid.sum()) == 3  # the fourth fell below 0.001


def test_small_boxes_are_dropped_after_clipping() -> None:
    boxes = np.array([[0, 0, 8, 8], [7, 0, 20, 8], [0, 9.5, 8, 20]], np.float32)
    config = dataclasses.replace(CONFIG, min_size=3.0)
    found = select_detections(boxes, np.array([0.3, 0.5, 0.9]), np.arange(3), SIZE, config)
    assert found.valid.sum() == 2
    np.testing.assert_allclose(found.boxes[:2], [[7, 0, 10, 8], [0, 0, 8, 8]])


def test_images_of_outputs_that_are_not_finite_are_marked() -> None:
    shape = (3, 2)
    found = Detections(
        jnp.zeros((*shape, 4)), jnp.ones(shape), jnp.zeros(shape, int), jnp.zeros(shape, bool)
    )
    outputs = (jnp.zeros((3, 5)).at[1, 2].set(jnp.inf), [jnp.zeros((3, 1, 2)).at[2].set(jnp.nan)])
    marked = mark_non_finite(found, outputs)
    assert non_finite_images(marked).tolist() == [1, 2]
    np.testing.assert_array_equal(marked.scores[0], 1.0)
