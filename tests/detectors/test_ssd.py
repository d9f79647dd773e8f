"""SSD's choice of negatives, and its and RefineDet's detections against a loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import config as c
from harmonic_jax.detectors import refinedet, ssd
from tests.detectors import families, tiny
from tests.detectors import reference as ref
from tests.detectors.tiny import K

SHAPE = (64, 64)
hardest = jax.jit(ssd.hardest, static_argnames="ratio")


@pytest.mark.parametrize("num_values", [2, 5, 1000], ids=["many ties", "ties", "distinct"])
def test_hardest_takes_exactly_the_number_first_among_equals(num_values: int) -> None:
    rng = np.random.default_rng(num_values)
    loss = rng.integers(0, num_values, (6, 50)).astype(np.float32)
    is_candidate = rng.random((6, 50)) < 0.7
    is_candidate[4] = False
    num_positive = np.array([0, 1, 5, 40, 3, 16])
    taken = np.asarray(hardest(loss, is_candidate, num_positive, ratio=3.0))
    for row in range(6):
        candidates = np.flatnonzero(is_candidate[row])
        # A stable sort: among equal losses the lower index comes first.
        order = candidates[np.argsort(-loss[row, candidates], kind="stable")]
        expected = np.zeros(50, bool)
        expected[order[: 3 * num_positive[row]]] = True
        np.testing.assert_array_equal(taken[row], expected)
    assert taken.sum(1)[3] == is_candidate[3].sum()  # fewer than 120


def test_hardest_takes_infinite_losses_and_only_candidates() -> None:
    loss = np.array([[1.0, np.inf, np.nan, 3.0, np.inf]], np.float32)
    is_candidate = np.array([[True, True, True, True, False]])
    taken = hardest(loss, is_candidate, np.array([1]), ratio=2.0)
    assert taken.tolist() == [[False, True, True, False, False]]


def test_each_scale_is_the_length_of_a_map_of_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = c.VGGConfig(width=4, norm="batch", atrous=True)
    boxes = c.DefaultBoxConfig(sizes=(10.0, 20.0, 30.0), max_ratios=(2, 3), steps=(8.0, 16.0))
    config = c.SSDConfig(backbone, extra_layers=(), l2_scales=(5.0, 7.0), default_boxes=boxes)
    model = ssd.SSD(config, K, dtype=np.float32, rngs=nnx.Rngs(0))
    monkeypatch.setattr(ssd.MultiBoxHead, "__call__", lambda self, levels: levels)
    rng = np.random.default_rng(0)
    first, second = model(jnp.asarray(rng.integers(0, 255, (1, *SHAPE, 3)), np.uint8))
    for level, length in ((first, 5.0), (second, 7.0)):
        norms = np.linalg.norm(level, axis=-1)
        np.testing.assert_allclose(norms[norms > 0], length, rtol=1e-5)
    with pytest.raises(c.ConfigError, match="at most 2 numbers"):
        dataclasses.replace(config, l2_scales=(1.0, 2.0, 3.0))


# --- Detections ----------------------------------------------------------------------------------

POST = c.PostprocessConfig(score_threshold=0.1, topk=12, nms_iou=0.45, max_detections=20)
N = 60
ALL = np.ones(N, bool)
detect = jax.jit(functools.partial(ssd.detect_in_image, config=POST))


def random_image(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of four classes and background, boxes, and the image's size."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (N, 5)).astype(np.float32)
    corner = rng.uniform(-8, 40, (N, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 30, (N, 2))], -1)
    return logits, boxes.astype(np.float32), np.array([48.0, 40.0], np.float32)


def reference(logits, boxes, is_candidate, size) -> list:
    boxes = np.clip(boxes.astype(np.float64), 0, size[[1, 0, 1, 0]])
    found = []
    for label in range(4):
        scored = [
            (ref.softmax(logits[n].astype(np.float64))[label], label, boxes[n])
            for n in np.flatnonzero(is_candidate)
        ]
        scored = sorted((s for s in scored if s[0] > POST.score_threshold), key=lambda s: -s[0])
        found += scored[: POST.topk]
    return ref.suppress(found, POST.nms_iou, POST.max_detections)


@pytest.mark.parametrize("seed", range(6))
def test_detections_equal_a_loop(seed: int) -> None:
    """With all boxes, with few candidates, with none: others neither detect nor suppress."""
    logits, boxes, size = random_image(seed)
    logits[:, -1] -= 2  # enough above the threshold for both limits to cut
    few = np.random.default_rng(seed).random(N) < 0.1
    for is_candidate in (ALL, few, ~ALL):
        expected = reference(logits, boxes, is_candidate, size)
        ref.assert_detections(detect(logits, boxes, is_candidate, size), expected)
        assert len(expected) == 20 or is_candidate is not ALL


def test_nan_and_infinity_are_never_detected() -> None:
    logits, boxes, size = random_image(0)
    logits[0, 2], boxes[1, 1], boxes[2, 3] = np.nan, np.nan, np.inf
    logits[1:3, 0] = 50  # the best of all, if they counted
    expected = reference(logits, boxes, np.arange(N) >= 3, size)
    ref.assert_detections(detect(logits, boxes, ALL, size), expected)


def test_background_is_never_detected() -> None:
    logits, boxes, size = random_image(0)
    logits[:, -1] = 50
    ref.assert_detections(detect(logits, boxes, ALL, size), [])


def test_fewer_boxes_than_candidates_and_detections() -> None:
    logits, boxes, size = random_image(1)
    found = detect(logits[:3], boxes[:3], ALL[:3], size)
    ref.assert_detections(found, reference(logits, boxes, np.arange(N) < 3, size))


def test_refinedet_s_detections_are_refined_anchors_that_the_second_deltas_move() -> None:
    anchors = families.refinedet_anchors()
    everything = c.PostprocessConfig(
        score_threshold=0.0, topk=1000, nms_iou=1.0, max_detections=K * len(anchors)
    )
    config = dataclasses.replace(families.REFINEDET, postprocess=everything, min_objectness=0.3)
    outputs, truth = families.refinedet_case(6)
    found = jax.jit(
        lambda own: refinedet.detect(tiny.Given(config, own), tiny.batch_of(truth, families.SHAPE))
    )(outputs)
    for image in range(2):
        expected = []
        rows = zip(
            anchors,
            *(
                tiny.of_image(levels, image)
                for module in outputs
                for levels in vars(module).values()
            ),
            strict=True,
        )
        for anchor, objectness, first, logits, second in rows:
            if ref.softmax(objectness)[0] >= config.min_objectness:
                box = ref.decode(
                    second, ref.decode(first, anchor, ref.SSD_WEIGHTS), ref.SSD_WEIGHTS
                )
                box = np.clip(box, 0, 64)
                expected += [(ref.softmax(logits)[k], k, box) for k in range(K)]
        assert everything.max_detections / 3 < len(expected) < everything.max_detections
        expected.sort(key=lambda row: -row[0])
        ref.assert_detections(jax.tree.map(lambda x, i=image: x[i], found), expected)
