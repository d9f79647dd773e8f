"""RetinaNet's detections against the definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import config as c
from harmonic_jax.detectors import retinanet
from harmonic_jax.detectors.parts.anchors import make_anchors
from tests.detectors import reference as ref
from tests.detectors import tiny

POST = c.PostprocessConfig(score_threshold=0.05, topk=150, nms_iou=0.5, max_detections=60)
PYRAMID = make_anchors((128, 192), (3, 7), c.AnchorConfig(scales=(1.0, 1.4), ratios=(0.5, 1.0)))
SIZES = np.array([[128, 192], [100, 192], [128, 75]], np.float32)
CLASSES = 7


def raw_outputs(seed: int = 0, mean: float = -3.0, step: float | None = None) -> tuple:
    """Logits and deltas of three images; with a step, many logits are equal."""
    rng = np.random.default_rng(seed)
    logits = [rng.normal(mean, 1.5, (3, len(a), CLASSES)).astype(np.float32) for a in PYRAMID]
    if step is not None:
        logits = [(np.round(level / step) * step).astype(np.float32) for level in logits]
    return logits, [rng.normal(0, 0.3, (3, len(a), 4)).astype(np.float32) for a in PYRAMID]


@functools.partial(jax.jit, static_argnames="config")
def detect(outputs, sizes=SIZES, config=POST):
    return jax.vmap(lambda one, size: retinanet.detect_in_image(one, PYRAMID, size, config))(
        outputs, sizes
    )


def by_definition(logits: list, deltas: list, size: np.ndarray) -> list:
    """All pairs sorted, float64 boxes, the greedy loop."""
    candidates = []
    for level, d, anchors in zip(logits, deltas, PYRAMID, strict=True):
        scores = 1 / (1 + np.exp(-level.astype(np.float64).ravel()))
        for pair in np.argsort(-scores, kind="stable")[: POST.topk]:
            row, label = divmod(int(pair), CLASSES)
            box = ref.decode(d[row].astype(np.float64), anchors[row].astype(np.float64))
            if scores[pair] > POST.score_threshold:
                candidates.append((scores[pair], label, np.clip(box, 0, np.tile(size[::-1], 2))))
    return ref.suppress(candidates, POST.nms_iou, POST.max_detections)


@pytest.mark.parametrize("mean", [-3.0, -6.0, -20.0])
def test_detections_equal_the_definition(mean: float) -> None:
    logits, deltas = raw_outputs(mean=mean)
    found = detect(tiny.predictions_of(logits, deltas))
    for i in range(3):
        expected = by_definition([x[i] for x in logits], [x[i] for x in deltas], SIZES[i])
        ref.assert_detections(tiny.row(found, i), expected)
    assert found.valid.any() == (mean > -20)


EVERYTHING = dataclasses.replace(POST, nms_iou=1.0, max_detections=5 * 150)


def test_the_two_step_selection_is_exact_under_ties() -> None:
    """As many pairs of every score as the full sort keeps, with hundreds of equal scores."""
    logits, deltas = raw_outputs(5, -2.0, step=1.0)
    found = detect(tiny.predictions_of(logits, deltas), config=EVERYTHING)
    expected = []
    for level in logits:
        best = np.sort(level[0].ravel())[::-1][: POST.topk].astype(np.float64)
        expected.extend(1 / (1 + np.exp(-best[best > np.log(0.05 / 0.95)])))
    actual = np.asarray(found.scores[0])[np.asarray(found.valid[0])]
    np.testing.assert_allclose(actual, np.sort(expected)[::-1], rtol=1e-5)


def test_an_anchor_with_a_nan_logit_is_never_detected() -> None:
    logits, deltas = raw_outputs()
    absent = [level.copy() for level in logits]
    for level in (2, 3, 4):  # Coarse: fewer anchors than are looked at.
        logits[level][:, ::2, 3] = np.nan
        absent[level][:, ::2] = -30.0
    tiny.assert_same(
        detect(tiny.predictions_of(logits, deltas)), detect(tiny.predictions_of(absent, deltas))
    )

    logits[0][:, ::2, 3] = np.nan
    deltas = [np.zeros_like(level) for level in deltas]
    found = tiny.row(detect(tiny.predictions_of(logits, deltas)), 0)
    boxes = np.asarray(found.boxes)[np.asarray(found.valid)]
    broken = np.clip(PYRAMID[0][::2], 0, [192, 128, 192, 128])
    assert len(boxes) > 0
    assert not (np.abs(boxes[:, None] - broken[None]).max(axis=-1) < 1e-3).any()


def test_no_box_is_detected_that_is_not_finite() -> None:
    logits, deltas = raw_outputs()
    for level in deltas:
        level[:, ::3, 0] = np.nan
        level[:, 1::3, 2] = np.inf  # Clamped: the box ends at the border of the image.
    outputs = tiny.predictions_of(logits, deltas)
    found = detect(outputs)
    assert found.valid.sum() > 0
    assert np.isfinite(found.boxes).all()
    assert not detect(jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), outputs)).valid.any()
