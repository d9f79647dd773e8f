"""Proposals against torchvision's RPN and against the definition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.postprocess.proposals import select_proposals

from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.ops.box_coder import decode_boxes, encode_boxes
from harmonic_jax.ops.boxes import clip_boxes
from harmonic_jax.structures import Predictions
from tests.ops.peers import torchvision_or_skip
from tests.ops.scenes import random_boxes
from tests.ops.test_nms import greedy

IMAGE, B = (128, 192), 2
SIZES = np.array([[128, 192], [100, 150]], np.float32)
ANCHORS = make_anchors(IMAGE, levels=(2, 6), size_factor=8.0, scales=(1.0,), ratios=(0.5, 1.0, 2.0))
OPTIONS = {"pre_nms_topk": 400, "post_nms_topk": 300, "nms_iou": 0.7}
CASES = {
    "more than 1000 candidates": {},
    "fewer than 1000 candidates": {"pre_nms_topk": 100},
    "all anchors": {"pre_nms_topk": 5000, "post_nms_topk": 1000},
    "more room than proposals": {"pre_nms_topk": 60, "post_nms_topk": 500},
    "large and good boxes only": {"min_size": 24.0, "score_threshold": 0.3},
}
STATIC = ("pre_nms_topk", "post_nms_topk", "nms_iou", "min_size", "score_threshold")


def raw_outputs(seed=0):
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


def predictions(logits, deltas):
    return Predictions(tuple(map(jnp.asarray, logits)), tuple(map(jnp.asarray, deltas)))


run = jax.jit(
    lambda outputs, sizes, **options: select_proposals(outputs, ANCHORS, sizes, **options),
    static_argnames=STATIC,
)


def torchvision_proposals(logits, deltas, sizes, **options):
    torch, _ = torchvision_or_skip()
    from torchvision.models.detection.rpn import RegionProposalNetwork

    options = {"min_size": 1e-3, "score_threshold": 0.0, **OPTIONS, **options}
    before, after = ({"training": options[k], "testing": options[k]} for k in STATIC[:2])
    network = RegionProposalNetwork(
        None, None, 0.7, 0.3, 256, 0.5, before, after, options["nms_iou"]
    )
    network.score_thresh, network.min_size = options["score_threshold"], options["min_size"]
    anchors = [torch.tensor(np.concatenate(ANCHORS))] * len(sizes)
    joined = torch.tensor(np.concatenate(deltas, axis=1)).reshape(-1, 4)
    decoded = network.box_coder.decode(joined, anchors).view(len(sizes), -1, 4)
    boxes, scores = network.filter_proposals(
        decoded,
        torch.tensor(np.concatenate(logits, axis=1)),
        [tuple(size) for size in sizes.tolist()],
        [len(level) for level in ANCHORS],
    )
    return [box.numpy() for box in boxes], [score.numpy() for score in scores]


@pytest.mark.parametrize("name", CASES)
def test_equals_torchvision(name):
    logits, deltas = raw_outputs()
    proposals = run(predictions(logits, deltas), SIZES, **{**OPTIONS, **CASES[name]})
    expected = torchvision_proposals(logits, deltas, SIZES, **CASES[name])
    for image in range(B):
        boxes, scores = expected[0][image], expected[1][image]
        valid = np.asarray(proposals.valid[image])
        np.testing.assert_array_equal(valid, np.arange(len(valid)) < len(boxes))
        np.testing.assert_allclose(proposals.scores[image][valid], scores, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(proposals.boxes[image][valid], boxes, atol=1e-3)
        assert not np.asarray(proposals.boxes[image])[~valid].any()
        assert not np.asarray(proposals.scores[image])[~valid].any()
    assert proposals.valid.all() == (name in ("more than 1000 candidates", "all anchors"))


def test_saturated_scores_keep_the_order_of_the_logits():
    logits, deltas = raw_outputs(1)
    logits = [level * 10 + 150 for level in logits]
    proposals = run(predictions(logits, deltas), SIZES, **{**OPTIONS, "pre_nms_topk": 100})
    boxes, _ = torchvision_proposals(logits, deltas, SIZES, pre_nms_topk=100)
    for image in range(B):
        valid = np.asarray(proposals.valid[image])
        np.testing.assert_allclose(proposals.boxes[image][valid], boxes[image], atol=1e-3)


def test_ties_are_broken_by_level_and_anchor():
    logits, deltas = raw_outputs(2)
    logits = [np.round(level) for level in logits]
    proposals = run(predictions(logits, deltas), SIZES, **OPTIONS)
    for image in range(B):
        boxes, scores, labels = [], [], []
        for l, anchors in enumerate(ANCHORS):
            best = np.argsort(-logits[l][image, :, 0], kind="stable")[: OPTIONS["pre_nms_topk"]]
            boxes.append(decode_boxes(deltas[l][image][best], anchors[best]))
            scores.append(logits[l][image, best, 0])
            labels.append(np.full(len(best), l))
        boxes = np.asarray(clip_boxes(jnp.concatenate(boxes), SIZES[image]))
        scores, labels = np.concatenate(scores), np.concatenate(labels)
        large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= 1e-3).all(axis=1))
        kept = large[greedy(boxes[large], scores[large], labels[large], OPTIONS["nms_iou"])]
        kept = kept[: OPTIONS["post_nms_topk"]]
        valid = np.asarray(proposals.valid[image])
        np.testing.assert_allclose(proposals.boxes[image][valid], boxes[kept], atol=1e-3)


def test_what_is_no_number_is_never_proposed():
    logits, deltas = raw_outputs(3)
    options = {**OPTIONS, "pre_nms_topk": 5000}  # All, so that bad ones take nobody's place.
    clean = run(predictions(logits, deltas), SIZES, **options)
    bad_logits = [
        np.concatenate([level, np.full((B, 3, 1), value, np.float32)], axis=1)
        for level, value in zip(logits, (np.nan, 50.0, np.nan, 60.0, np.inf), strict=True)
    ]
    bad_deltas = [
        np.concatenate([level, np.full((B, 3, 4), value, np.float32)], axis=1)
        for level, value in zip(deltas, (0.0, np.nan, np.nan, -np.nan, np.nan), strict=True)
    ]
    anchors = [np.concatenate([level, level[:3]]) for level in ANCHORS]
    dirty = jax.jit(lambda outputs, sizes: select_proposals(outputs, anchors, sizes, **options))(
        predictions(bad_logits, bad_deltas), SIZES
    )
    for a, b in zip(dirty, clean, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_nothing_but_nan():
    logits, deltas = raw_outputs(4)
    proposals = run(
        predictions([np.full_like(level, np.nan) for level in logits], deltas), SIZES, **OPTIONS
    )
    assert not proposals.valid.any()
    assert not np.asarray(proposals.boxes).any()


def test_a_batch_equals_its_images():
    outputs = predictions(*raw_outputs(5))
    together = run(outputs, SIZES, **OPTIONS)
    for image in range(B):
        alone = run(jax.tree.map(lambda array, i=image: array[i], outputs), SIZES[image], **OPTIONS)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[image], b, atol=1e-4)
    with pytest.raises(ValueError, match="image_size has shape"):
        select_proposals(outputs, ANCHORS, SIZES[None], **OPTIONS)


def test_proposals_are_constants():
    outputs = predictions(*raw_outputs(6))

    def value(outputs):
        proposals = select_proposals(outputs, ANCHORS, SIZES, **OPTIONS)
        return jnp.sum(proposals.boxes) + jnp.sum(proposals.scores)

    for gradient in jax.tree.leaves(jax.jit(jax.grad(value))(outputs)):
        assert not np.asarray(gradient).any()
