"""Detections of the RoI head against a slow float64 loop; torchvision's are in tests/detectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from harmonic_jax.postprocess.proposals import Proposals
from harmonic_jax.postprocess.two_stage import postprocess_rois, take_masks

from harmonic_jax.structures import Detections

K, P = 3, 30
SIZE = (60.0, 80.0)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SETTINGS = {
    "score_threshold": 0.05,
    "nms_iou": 0.5,
    "max_detections": 12,
    "min_size": 2.0,
    "weights": WEIGHTS,
}
postprocess = jax.jit(functools.partial(postprocess_rois, **SETTINGS))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, Proposals]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-5, 60, (P, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 30, (P, 2))], -1).astype(np.float32)
    logits = rng.normal(0, 2, (P, K + 1)).astype(np.float32)
    deltas = rng.normal(0, 1, (P, K + 1, 4)).astype(np.float32)
    valid = np.arange(P) < 25
    return logits, deltas, Proposals(boxes, np.ones(P, np.float32), valid)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    overlap = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(overlap / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap))


def reference(logits: np.ndarray, deltas: np.ndarray, proposals: Proposals) -> list[tuple]:
    """(score, label, box), best first."""
    candidates = []
    for i in np.flatnonzero(proposals.valid):
        z = logits[i].astype(np.float64)
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        box = np.asarray(proposals.boxes[i], np.float64)
        size, centre = box[2:] - box[:2], (box[2:] + box[:2]) / 2
        for k in range(K):
            d = deltas[i, k].astype(np.float64) / np.array(WEIGHTS)
            middle, half = centre + d[:2] * size, size * np.exp(d[2:]) / 2
            moved = np.clip(np.concatenate([middle - half, middle + half]), 0, [80, 60, 80, 60])
            if p[k] > 0.05 and (moved[2:] - moved[:2] >= 2.0).all():
                candidates.append((p[k], k, moved))
    candidates.sort(key=lambda c: -c[0])
    kept: list[tuple] = []
    for candidate in candidates:
        same = [c for c in kept if c[1] == candidate[1]]
        if all(iou(candidate[2], c[2]) <= 0.5 for c in same):
            kept.append(candidate)
    return kept[:12]


def test_equals_a_loop() -> None:
    for seed in range(4):
        case = random_case(seed)
        found, expected = postprocess(*case, jnp.array(SIZE)), reference(*case)
        assert int(found.valid.sum()) == len(expected) > 5
        for i, (score, label, box) in enumerate(expected):
            np.testing.assert_allclose(found.scores[i], score, rtol=1e-5)
            assert int(found.labels[i]) == label
            np.testing.assert_allclose(found.boxes[i], box, atol=1e-3)


def test_a_batch_equals_a_loop_over_images() -> None:
    cases = [random_case(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *cases)
    sizes = jnp.array([SIZE, (30.0, 30.0), SIZE])
    together = postprocess(*stacked, sizes)
    for i, case in enumerate(cases):
        alone = postprocess(*case, sizes[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], atol=1e-5), alone, together
        )


def test_nothing_comes_of_nan_infinity_or_padding() -> None:
    logits, deltas, proposals = random_case(0)
    logits[0] = np.nan
    deltas[1] = np.inf
    deltas[2] = np.nan
    proposals = proposals._replace(valid=np.arange(P) < 3)
    found = postprocess(logits, deltas, proposals, jnp.array(SIZE))
    assert not found.valid.any()
    for leaf in (found.boxes, found.scores, found.labels):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_background_is_never_detected_however_sure() -> None:
    logits, deltas, proposals = random_case(1)
    logits[:, K] = 40.0
    assert not postprocess(logits, deltas, proposals, jnp.array(SIZE)).valid.any()


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
