"""Objects whose mask the data do not tell: nothing is learned of it."""

import types
from typing import Any

import jax.numpy as jnp
import numpy as np
from harmonic_jax.assign.sampled import RoISamples
from harmonic_jax.detectors.two_stage import _mask_sums

from harmonic_jax.config import MaskRCNNConfig
from harmonic_jax.detectors.parts.objective import LossSums
from harmonic_jax.structures import Batch, GroundTruth, ObjectMasks

BOXES = np.array([[[4, 6, 40, 30], [20, 24, 60, 60]]] * 2, np.float32)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 2, 28, 28, 3)), jnp.float32)


def mask_sums(is_known: Any) -> LossSums:
    """Two images with two objects each, every one with a RoI; the second RoI is of object 0."""
    known = np.broadcast_to(np.array(is_known)[:, :, None, None], (2, 2, 56, 56))
    values = np.where(known, 255, 0).astype(np.uint8)
    labels = np.zeros((2, 2), np.int32)
    batch = Batch(
        images=np.zeros((2, 64, 64, 3), np.uint8),
        image_size=np.full((2, 2), 64, np.float32),
        scale=np.ones((2, 2), np.float32),
        record_index=np.arange(2, dtype=np.int32),
        is_real=np.ones(2, bool),
        ground_truth=GroundTruth(BOXES, labels, labels == 0, ObjectMasks(values, BOXES)),
    )
    rois = RoISamples(
        boxes=jnp.asarray(BOXES[:, ::-1]),
        labels=jnp.asarray(labels),
        targets=jnp.asarray(BOXES[:, ::-1]),
        objects=jnp.array([[1, 0]] * 2),
        is_positive=jnp.ones((2, 2), bool),
        valid=jnp.ones((2, 2), bool),
    )
    model: Any = types.SimpleNamespace(config=MaskRCNNConfig(), segment=lambda *_: LOGITS)
    return _mask_sums(model, (), rois, batch)


def test_an_unknown_mask_has_no_loss_and_changes_no_other() -> None:
    everything, first, second, nothing = (
        mask_sums([[a, b], [a, b]]) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))
    )
    assert float(nothing.total) == float(nothing.normalizer) == 0.0
    assert float(everything.normalizer) == 4
    assert float(first.normalizer) == float(second.normalizer) == 2
    assert float(first.total) != float(second.total)
    np.testing.assert_allclose(first.total + second.total, everything.total, rtol=1e-5)
    # The RoI of object 0 is the second one: its own logits, against a mask that is all there.
    own = np.logaddexp(0, -np.asarray(LOGITS, float)[:, 1, :, :, 0]).mean(axis=(1, 2)).sum()
    np.testing.assert_allclose(first.total, own, rtol=1e-4)
