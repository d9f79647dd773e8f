"""Mask R-CNN: how its heads start, objects without a mask, and the masks it gives."""

import types
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from harmonic_jax import config as c
from harmonic_jax.detectors.mask_rcnn import MaskHead, _mask_sums, take_masks
from harmonic_jax.detectors.parts.matching import Samples
from harmonic_jax.detectors.parts.objective import LossSums
from harmonic_jax.detectors.roi_head import BoxHead
from harmonic_jax.detectors.rpn import RPNHead
from harmonic_jax.structures import Detections, GroundTruth, ObjectMasks
from tests.detectors import tiny
from tests.detectors.tiny import K


def test_heads_start_with_small_weights_and_no_preference() -> None:
    head = BoxHead(c.BoxHeadConfig(num_hidden=64), 8, 30, rngs=nnx.Rngs(0))
    masks = MaskHead(c.MaskHeadConfig(num_convs=1, channels=64), 8, 30, rngs=nnx.Rngs(0))
    rpn = RPNHead(c.RPNConfig(num_convs=2), 64, rngs=nnx.Rngs(0))
    for layer, spread, rtol in (
        (head.logits, 0.01, 0.05),
        (head.deltas, 0.001, 0.05),
        (masks.output, 0.001, 0.05),
        (rpn.objectness, 0.01, 0.15),
    ):
        np.testing.assert_allclose(np.std(layer.kernel[...]), spread, rtol=rtol)
        np.testing.assert_array_equal(layer.bias[...], 0.0)


BOXES = np.array([[[4, 6, 40, 30], [20, 24, 60, 60]]] * 2, np.float32)
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 28, 28, 3)), jnp.float32)


def sums_of_masks(is_known: Any) -> LossSums:
    """Two images with two objects each, every one with a RoI; the second RoI is of object 0."""
    known = np.broadcast_to(np.array(is_known)[:, None, None], (2, 2, 56, 56))
    labels, boxes = jnp.zeros((2, 2), jnp.int32), jnp.asarray(BOXES)
    masks = ObjectMasks(jnp.asarray(np.where(known, 255, 0).astype(np.uint8)), boxes)
    rois = Samples(
        rows=labels,
        boxes=boxes[:, ::-1],
        labels=labels,
        targets=boxes[:, ::-1],
        objects=jnp.array([[1, 0]] * 2),
        is_positive=labels == 0,
        valid=labels == 0,
    )
    model: Any = types.SimpleNamespace(config=c.MaskRCNNConfig(), segment=lambda *_: LOGITS)
    batch = tiny.batch_of(GroundTruth(boxes, labels, labels == 0, masks), (64, 64))
    return _mask_sums(model, (), rois, batch)


def test_an_object_without_a_mask_has_no_loss_and_changes_no_other() -> None:
    everything, first, second, nothing = map(sums_of_masks, ((1, 1), (1, 0), (0, 1), (0, 0)))
    assert float(nothing.total) == float(nothing.normalizer) == 0.0
    assert float(everything.normalizer) == 4
    assert float(first.normalizer) == float(second.normalizer) == 2
    assert float(first.total) != float(second.total)
    np.testing.assert_allclose(first.total + second.total, everything.total, rtol=1e-5)
    # The RoI of object 0 is the second one: its own logits, against a mask that is all there.
    own = np.logaddexp(0, -np.asarray(LOGITS, float)[:, 1, :, :, 0]).mean(axis=(1, 2)).sum()
    np.testing.assert_allclose(first.total, own, rtol=1e-4)


def test_masks_are_those_of_the_class() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 4, 4, K + 1)).astype(np.float32)
    labels = rng.integers(0, K, (2, 5)).astype(np.int32)
    valid = np.arange(5) < np.array([[5], [2]])
    found = Detections(
        jnp.zeros((2, 5, 4)), jnp.zeros((2, 5)), jnp.asarray(labels), jnp.asarray(valid)
    )
    masks = np.asarray(take_masks(jnp.asarray(logits), found).masks)
    for i, j in np.ndindex(2, 5):
        own = 1 / (1 + np.exp(-logits[i, j, ..., labels[i, j]].astype(np.float64)))
        np.testing.assert_allclose(masks[i, j], own if valid[i, j] else 0.0, rtol=1e-5)
