"""Postprocessing against torchvision's RetinaNet and against the definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.postprocess import postprocess_dense

from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.structures import Predictions
from tests.ops.peers import torchvision_or_skip
from tests.ops.test_nms import greedy

IMAGE, K, B = (128, 192), 7, 3
SIZES = np.array([[128, 192], [100, 192], [128, 75]], np.float32)
ANCHORS = make_anchors(IMAGE, levels=(3, 7), size_factor=4.0, scales=(1.0, 1.4), ratios=(0.5, 1.0))
OPTIONS = {"score_threshold": 0.05, "topk_per_level": 150, "nms_iou": 0.5, "max_detections": 60}


def raw_outputs(seed=0, mean=-3.0, step=None):
    rng = np.random.default_rng(seed)
    logits = [rng.normal(mean, 1.5, (B, len(a), K)).astype(np.float32) for a in ANCHORS]
    if step is not None:
        logits = [(np.round(level / step) * step).astype(np.float32) for level in logits]
    deltas = [rng.normal(0, 0.3, (B, len(a), 4)).astype(np.float32) for a in ANCHORS]
    return logits, deltas


def predictions(logits, deltas):
    return Predictions(tuple(map(jnp.asarray, logits)), tuple(map(jnp.asarray, deltas)))


@jax.jit
def run(outputs, sizes):
    return postprocess_dense(outputs, ANCHORS, sizes, **OPTIONS)


def rows(detections, image):
    """Boxes, scores and labels of the valid rows of an image."""
    valid = np.asarray(detections.valid[image])
    assert (np.diff(valid.astype(int)) <= 0).all()
    fields = (detections.boxes, detections.scores, detections.labels)
    values = [np.asarray(field[image]) for field in fields]
    assert not any(value[~valid].any() for value in values)
    return [value[valid] for value in values]


def by_definition(logits, deltas, size):
    """All pairs sorted, float64 boxes, the greedy loop."""
    boxes, scores, labels = [], [], []
    for level, d, anchors in zip(logits, deltas, ANCHORS, strict=True):
        score = 1 / (1 + np.exp(-level.astype(np.float64)))
        order = np.argsort(-score.ravel(), kind="stable")[: OPTIONS["topk_per_level"]]
        order = order[score.ravel()[order] > OPTIONS["score_threshold"]]
        row = order // K
        sides = (anchors[:, 2:] - anchors[:, :2]).astype(np.float64)[row]
        center = (anchors[:, 2:] + anchors[:, :2])[row] / 2 + d[row, :2] * sides
        half = np.exp(d[row, 2:].astype(np.float64)) * sides / 2
        decoded = np.concatenate([center - half, center + half], axis=1)
        boxes.append(np.clip(decoded, 0, np.tile(size[::-1], 2)))
        scores.append(score.ravel()[order])
        labels.append(order % K)
    boxes, scores, labels = (np.concatenate(x) for x in (boxes, scores, labels))
    kept = greedy(boxes.astype(np.float32), scores, labels, OPTIONS["nms_iou"])
    kept = kept[: OPTIONS["max_detections"]]
    return boxes[kept], scores[kept], labels[kept]


@pytest.mark.parametrize("mean", [-3.0, -6.0, -20.0])
def test_equals_the_definition(mean):
    logits, deltas = raw_outputs(mean=mean)
    detections = run(predictions(logits, deltas), SIZES)
    for image in range(B):
        expected = by_definition(
            [x[image] for x in logits], [x[image] for x in deltas], SIZES[image]
        )
        boxes, scores, labels = rows(detections, image)
        np.testing.assert_array_equal(labels, expected[2])
        np.testing.assert_allclose(scores, expected[1], rtol=1e-5)
        np.testing.assert_allclose(boxes, expected[0], atol=1e-3)
    assert detections.valid.any() == (mean > -20)


def torchvision_detections(logits, deltas, nms_iou=0.5):
    torch, torchvision = torchvision_or_skip()
    backbone = torch.nn.Identity()
    backbone.out_channels = 8
    model = torchvision.models.detection.RetinaNet(
        backbone,
        K,
        score_thresh=OPTIONS["score_threshold"],
        nms_thresh=nms_iou,
        detections_per_img=OPTIONS["max_detections"],
        topk_candidates=OPTIONS["topk_per_level"],
    )
    outputs = {
        "cls_logits": [torch.tensor(x) for x in logits],
        "bbox_regression": [torch.tensor(x) for x in deltas],
    }
    anchors = [[torch.tensor(a) for a in ANCHORS]] * B
    sizes = [tuple(int(side) for side in size) for size in SIZES]
    found = model.postprocess_detections(outputs, anchors, sizes)
    return [{field: x[field].numpy() for field in ("boxes", "scores", "labels")} for x in found]


@pytest.mark.parametrize(("seed", "mean"), [(0, -3.0), (1, -6.0), (2, 0.0)])
def test_equals_torchvision(seed, mean):
    logits, deltas = raw_outputs(seed, mean)
    detections = run(predictions(logits, deltas), SIZES)
    for image, expected in enumerate(torchvision_detections(logits, deltas)):
        boxes, scores, labels = rows(detections, image)
        np.testing.assert_array_equal(labels, expected["labels"])
        np.testing.assert_allclose(scores, expected["scores"], rtol=1e-6)
        np.testing.assert_allclose(boxes, expected["boxes"], atol=1e-3)


def test_tied_scores_equal_torchvision_as_far_as_they_are_defined():
    """Few enough candidates that no tie is cut, and no suppression that depends on their order."""
    logits, deltas = raw_outputs(4, -7.5, step=0.5)
    options = OPTIONS | {"nms_iou": 1.0}
    detections = jax.jit(lambda o, s: postprocess_dense(o, ANCHORS, s, **options))(
        predictions(logits, deltas), SIZES
    )
    for image, expected in enumerate(torchvision_detections(logits, deltas, nms_iou=1.0)):
        boxes, scores, labels = rows(detections, image)
        assert 0 < len(scores) < OPTIONS["max_detections"]
        assert len(np.unique(scores)) < len(scores)
        np.testing.assert_allclose(scores, expected["scores"], rtol=1e-6)
        ours = sorted(zip(scores, labels, *boxes.T, strict=True))
        theirs = zip(expected["scores"], expected["labels"], *expected["boxes"].T, strict=True)
        np.testing.assert_allclose(ours, sorted(theirs), atol=0.01)


def test_an_anchor_with_a_nan_logit_is_never_detected():
    logits, deltas = raw_outputs()
    absent = [level.copy() for level in logits]
    for level in (2, 3, 4):  # Coarse: fewer anchors than are looked at.
        logits[level][:, ::2, 3] = np.nan
        absent[level][:, ::2] = -30.0
    detections = run(predictions(logits, deltas), SIZES)
    expected = run(predictions(absent, deltas), SIZES)
    jax.tree.map(np.testing.assert_array_equal, detections, expected)

    logits[0][:, ::2, 3] = np.nan
    deltas = [np.zeros_like(level) for level in deltas]
    boxes, _, _ = rows(run(predictions(logits, deltas), SIZES), 0)
    broken = np.clip(ANCHORS[0][::2], 0, [192, 128, 192, 128])
    assert len(boxes) > 0
    assert not (np.abs(boxes[:, None] - broken[None]).max(axis=-1) < 1e-3).any()


def test_no_box_is_detected_that_is_not_finite():
    logits, deltas = raw_outputs()
    for level in deltas:
        level[:, ::3, 0] = np.nan
        level[:, 1::3, 2] = np.inf  # Clamped: the box ends at the border of the image.
    detections = run(predictions(logits, deltas), SIZES)
    assert detections.valid.sum() > 0
    assert np.isfinite(detections.boxes).all()
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), predictions(logits, deltas))
    assert not run(nan, SIZES).valid.any()


def test_the_two_step_selection_is_exact_under_ties():
    """As many pairs of every score as the full sort keeps, with hundreds of equal scores."""
    logits, deltas = raw_outputs(5, -2.0, step=1.0)
    everything = OPTIONS | {"nms_iou": 1.0, "max_detections": 5 * 150}
    outputs = predictions(logits, deltas)
    found = jax.jit(lambda o, s: postprocess_dense(o, ANCHORS, s, **everything))(outputs, SIZES)
    expected = []
    for level in logits:
        best = np.sort(level[0].ravel())[::-1][:150].astype(np.float64)
        expected.extend(1 / (1 + np.exp(-best[best > np.log(0.05 / 0.95)])))
    np.testing.assert_allclose(rows(found, 0)[1], np.sort(expected)[::-1], rtol=1e-5)


def test_one_image_equals_its_row_of_the_batch_with_one_compile():
    count = 0

    @jax.jit
    def single(outputs, size):
        nonlocal count
        count += 1
        return postprocess_dense(outputs, ANCHORS, size, **OPTIONS)

    outputs = predictions(*raw_outputs())
    batched = run(outputs, SIZES)
    for image in range(B):
        one = single(jax.tree.map(lambda x, i=image: x[i], outputs), SIZES[image])
        row = jax.tree.map(lambda x, i=image: x[i], batched)
        np.testing.assert_array_equal(one.valid, row.valid)
        np.testing.assert_array_equal(one.labels, row.labels)
        np.testing.assert_allclose(one.boxes, row.boxes, atol=1e-4)
        np.testing.assert_allclose(one.scores, row.scores, rtol=1e-6)
    assert count == 1


def test_bfloat16_outputs_are_scored_in_float32():
    outputs = jax.tree.map(lambda x: x.astype(jnp.bfloat16), predictions(*raw_outputs()))
    detections = run(outputs, SIZES)
    expected = run(jax.tree.map(lambda x: x.astype(jnp.float32), outputs), SIZES)
    assert detections.boxes.dtype == detections.scores.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, detections, expected)


def test_more_than_one_batch_dimension_is_refused():
    with pytest.raises(ValueError, match="image_size"):
        postprocess_dense(predictions(*raw_outputs()), ANCHORS, SIZES[None], **OPTIONS)
