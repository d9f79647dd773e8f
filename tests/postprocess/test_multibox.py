"""Softmax postprocessing against a slow float64 loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.postprocess.multibox import postprocess_multibox

SETTINGS = {"score_threshold": 0.1, "topk_per_class": 12, "nms_iou": 0.45, "max_detections": 20}
postprocess = jax.jit(functools.partial(postprocess_multibox, **SETTINGS))


def random_image(seed: int, *, num_boxes: int = 60, num_classes: int = 4) -> tuple:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (num_boxes, num_classes + 1)).astype(np.float32)
    corner = rng.uniform(-8, 40, (num_boxes, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 30, (num_boxes, 2))], -1)
    return logits, boxes.astype(np.float32), np.array([48.0, 40.0], np.float32)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (area - w * h) if area > w * h else 0.0


def reference(logits: np.ndarray, boxes: np.ndarray, size: np.ndarray, rows: list[int]) -> list:
    """(score, label, box), best first."""
    logits, boxes = logits.astype(np.float64), boxes.astype(np.float64)
    boxes = np.clip(boxes, 0, size[[1, 0, 1, 0]])
    found = []
    for label in range(logits.shape[1] - 1):
        scored = []
        for n in rows:
            p = np.exp(logits[n] - logits[n].max())
            score = p[label] / p.sum()
            if score > SETTINGS["score_threshold"]:
                scored.append((score, n))
        kept: list[tuple[float, int]] = []
        for score, n in sorted(scored, reverse=True)[: SETTINGS["topk_per_class"]]:
            if all(iou(boxes[n], boxes[m]) <= SETTINGS["nms_iou"] for _, m in kept):
                kept.append((score, n))
        found += [(score, label, boxes[n]) for score, n in kept]
    return sorted(found, key=lambda f: -f[0])[: SETTINGS["max_detections"]]


def check(detections: object, expected: list) -> None:
    valid = np.asarray(detections.valid)
    assert valid.sum() == len(expected)
    assert valid[: len(expected)].all()
    np.testing.assert_allclose(detections.scores[: len(expected)], [f[0] for f in expected], 1e-5)
    assert detections.labels[: len(expected)].tolist() == [f[1] for f in expected]
    np.testing.assert_allclose(
        detections.boxes[: len(expected)], np.array([f[2] for f in expected]).reshape(-1, 4), 1e-5
    )
    for values in (detections.scores, detections.labels, detections.boxes):
        assert not np.any(values[len(expected) :])


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_loop(seed: int) -> None:
    logits, boxes, size = random_image(seed)
    logits[:, -1] -= 2  # enough above the threshold for both limits to cut
    expected = reference(logits, boxes, size, list(range(60)))
    assert len(expected) == 20
    check(postprocess(logits, boxes, size), expected)


@pytest.mark.parametrize("seed", range(3))
def test_boxes_that_are_no_candidates_neither_detect_nor_suppress(seed: int) -> None:
    logits, boxes, size = random_image(seed)
    is_candidate = np.random.default_rng(seed).random(60) < 0.12
    expected = reference(logits, boxes, size, np.flatnonzero(is_candidate).tolist())
    assert 0 < len(expected) < 20
    check(postprocess(logits, boxes, size, is_candidate=is_candidate), expected)


def test_nan_and_infinity_are_never_detected() -> None:
    logits, boxes, size = random_image(0)
    logits[0, 2], boxes[1, 1], boxes[2, 3] = np.nan, np.nan, np.inf
    logits[1:3, 0] = 50  # the best of all, if they counted
    check(postprocess(logits, boxes, size), reference(logits, boxes, size, list(range(3, 60))))


def test_nothing_above_the_threshold() -> None:
    logits, boxes, size = random_image(0)
    logits[:, -1] = 50
    check(postprocess(logits, boxes, size), [])


def test_fewer_boxes_than_topk_and_detections() -> None:
    logits, boxes, size = random_image(1, num_boxes=3)
    check(postprocess(logits, boxes, size), reference(logits, boxes, size, [0, 1, 2]))


def test_a_batch_equals_its_images() -> None:
    images = [random_image(seed) for seed in range(3)]
    batch = [np.stack(arrays) for arrays in zip(*images, strict=True)]
    together = postprocess(*batch)
    for i, image in enumerate(images):
        alone = postprocess(*image)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone)


def test_more_than_one_batch_dimension_is_refused() -> None:
    logits, boxes, size = (jnp.asarray(a)[None, None] for a in random_image(0))
    with pytest.raises(ValueError, match=r"image_size has shape \(1, 1, 2\)"):
        postprocess_multibox(logits, boxes, size, **SETTINGS)
