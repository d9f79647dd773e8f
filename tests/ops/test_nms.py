"""Suppression against torchvision and against a greedy loop in plain float32 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import ops
from harmonic_jax.ops import Suppression, batched_nms, suppress
from tests.ops.peers import torchvision_or_skip
from tests.ops.scenes import clustered_scene, random_boxes, uniform_scene
from tests.shapes import unchecked

N, K = 700, 700  # One shape for all cases: one compile for each threshold.


def greedy(boxes, scores, labels, threshold):
    """Kept indices, best first: the definition, one box at a time, without offsets."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = list(np.argsort(-scores, kind="stable"))
    kept = []
    while order:
        best, rest = order[0], np.array(order[1:], int)
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        inter = np.prod(np.maximum(high - low, np.float32(0)), axis=1, dtype=np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = inter / (area[best] + area[rest] - inter)
        is_duplicate = (iou.astype(np.float64) > threshold) & (labels[rest] == labels[best])
        order = list(rest[~is_duplicate])
    return np.array(kept, int)


def integer_boxes(rng, n, size=60):
    corner = rng.integers(0, size, (n, 2))
    return np.concatenate([corner, corner + rng.integers(0, 12, (n, 2))], 1).astype(np.float32)


def chain(n):
    """Each box overlaps the next: every keep decision hangs on the one before."""
    x = np.arange(n, dtype=np.float32)
    return np.stack([x, np.zeros(n), x + 4, np.ones(n)], axis=1).astype(np.float32)


def tenths(rng, n):
    """Pairs whose IoU is 3/10, 5/10 or 7/10 exactly: beside a threshold by its rounding only."""
    boxes = np.zeros((n, 4), np.float32)
    boxes[:, 0] = np.repeat(np.arange((n + 1) // 2), 2)[:n] * 20
    widths = np.where(np.arange(n) % 2, rng.choice([3, 5, 7], n), 10)
    boxes[:, 2], boxes[:, 3] = boxes[:, 0] + widths, 1
    return boxes


def cases():
    rng = np.random.default_rng(7)
    yield "uniform", *uniform_scene(rng, N, 5)
    yield "clustered", *clustered_scene(rng, N, 3)
    yield "many classes", *clustered_scene(rng, N, 300)
    boxes, scores, labels = clustered_scene(rng, N, 3)
    yield "tied scores", boxes, (np.round(scores * 8) / 8).astype(np.float32), labels
    yield "equal scores", boxes, np.ones(N, np.float32), labels
    yield "zero scores", boxes, rng.choice(np.float32([-0.0, 0.0]), N), labels
    yield "identical boxes", np.tile(boxes[:1], (N, 1)), scores, labels
    yield "whole pixels", integer_boxes(rng, N), scores, labels
    flat = integer_boxes(rng, N)
    flat[::2, 2] = flat[::2, 0]
    yield "zero area", flat, scores, labels
    yield "chain", chain(N), np.linspace(1, 0, N, dtype=np.float32), np.zeros(N, np.int32)
    yield "tenths", tenths(rng, N), scores, np.zeros(N, np.int32)
    scores = scores.copy()
    scores[::3] = -np.inf
    scores[1::7] = np.inf
    yield "infinite scores", boxes, scores, labels


CASES = {name: values for name, *values in cases()}
STATIC = ("iou_threshold", "max_outputs")
run = jax.jit(batched_nms, static_argnames=STATIC)
nms = jax.jit(ops.nms, static_argnames=STATIC)


def indices(kept):
    is_kept = np.asarray(kept.valid)
    assert not np.asarray(kept.indices)[~is_kept].any()
    assert (np.diff(is_kept.astype(int)) <= 0).all(), "valid rows come first"
    return np.asarray(kept.indices)[is_kept]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_equals_the_greedy_definition(name, threshold):
    boxes, scores, labels = CASES[name]
    kept = run(boxes, scores, labels, iou_threshold=threshold, max_outputs=K)
    np.testing.assert_array_equal(indices(kept), greedy(boxes, scores, labels, threshold))


@pytest.mark.parametrize("shift", [-1e3, 1e5, -1e7])
def test_classes_never_act_on_each_other_wherever_they_are(shift):
    """Offsets would mix them: steps are negative, or rounded to nothing beside the coordinates."""
    boxes, scores, labels = CASES["clustered"]
    boxes = np.round(boxes) + np.float32(shift)
    found = run(boxes, scores, labels * 90 - 7, iou_threshold=0.5, max_outputs=K)
    np.testing.assert_array_equal(indices(found), greedy(boxes, scores, labels, 0.5))


def test_labels_of_64_bits_are_compared_whole():
    boxes, scores = np.tile(np.float32([0, 0, 8, 8]), (2, 1)), np.float32([0.9, 0.8])
    with jax.enable_x64(True):
        labels = np.array([1, 1 + 2**32])
        kept = run(boxes, scores, labels, iou_threshold=0.5, max_outputs=2)
    assert kept.valid.tolist() == [True, True]


def test_areas_beyond_float32_and_boxes_of_nan():
    boxes = np.float32(
        [[0, 0, 1e20, 1e20], [0, 0, 1e20, 1e20], [-1e20, -1e20, 0, 0], [np.nan] * 4, [0, 0, 8, 8]]
    )
    kept = indices(nms(boxes, np.linspace(1, 0.5, 5), iou_threshold=0.5, max_outputs=5))
    np.testing.assert_array_equal(kept, [0, 2, 3, 4])


@pytest.mark.parametrize("name", CASES)
def test_equals_torchvision_alone_and_by_classes(name):
    torch, torchvision = torchvision_or_skip()
    boxes, scores, labels = CASES[name]
    tensors = [torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)]
    alone = torchvision.ops.nms(*tensors[:2], 0.5).numpy()
    kept = indices(nms(boxes, scores, iou_threshold=0.5, max_outputs=K))
    np.testing.assert_array_equal(kept, alone)

    by_class = torchvision.ops.boxes._batched_nms_vanilla(*tensors, 0.5).numpy()
    kept = indices(run(boxes, scores, labels, iou_threshold=0.5, max_outputs=K))
    assert set(kept) == set(by_class)
    if len(np.unique(scores)) == N:  # Its last sort is not stable: tied boxes come in any order.
        np.testing.assert_array_equal(kept, by_class)
    np.testing.assert_array_equal(scores[kept], scores[by_class])


@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize(("n", "max_outputs"), [(1, 1), (3, 9), (129, 2), (300, 150)])
def test_any_size(n, max_outputs, threshold):
    boxes, scores, labels = clustered_scene(np.random.default_rng(n), n, 2, cluster=2)
    scores = np.round(scores * 8) / 8  # ties
    valid = np.arange(n) % 5 < 4
    kept = indices(
        run(boxes, scores, labels, iou_threshold=threshold, max_outputs=max_outputs, valid=valid)
    )
    expected = np.flatnonzero(valid)[greedy(boxes[valid], scores[valid], labels[valid], threshold)]
    np.testing.assert_array_equal(kept, expected[:max_outputs])


def test_padding_and_nan_change_nothing():
    boxes, scores, labels = (array.copy() for array in CASES["clustered"])
    valid = np.random.default_rng(0).random(N) < 0.6
    expected = np.flatnonzero(valid)[greedy(boxes[valid], scores[valid], labels[valid], 0.5)]
    boxes[~valid] = np.nan
    is_nan = ~valid & (np.arange(N) % 2 == 0)
    scores[is_nan] = np.nan
    kept = run(boxes, scores, labels, iou_threshold=0.5, max_outputs=K, valid=valid)
    np.testing.assert_array_equal(indices(kept), expected)
    scores[~valid] = np.nan
    kept = run(boxes, scores, labels, iou_threshold=0.5, max_outputs=K)
    np.testing.assert_array_equal(indices(kept), expected)


def test_nothing_valid_and_nothing_at_all():
    boxes, scores, labels = CASES["uniform"]
    none = np.zeros(N, bool)
    kept = run(boxes, scores, labels, iou_threshold=0.5, max_outputs=K, valid=none)
    assert not kept.valid.any()
    kept = nms(jnp.zeros((0, 4)), jnp.zeros(0), iou_threshold=0.5, max_outputs=3)
    assert kept.valid.tolist() == [False] * 3
    assert kept.indices.dtype == jnp.int32


def test_vmap_equals_a_loop_and_contents_never_recompile():
    count = 0

    def traced(boxes, scores, labels, valid):
        nonlocal count
        count += 1
        return batched_nms(boxes, scores, labels, valid=valid, iou_threshold=0.5, max_outputs=40)

    rng = np.random.default_rng(3)
    scenes = [clustered_scene(rng, 300, 4, cluster) for cluster in (1, 5, 60, 300)]
    boxes, scores, labels = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    valid = np.arange(300)[None] < np.array([300, 0, 120, 300])[:, None]
    batched = jax.jit(jax.vmap(traced))(boxes, scores, labels, valid)
    count = 0
    single = jax.jit(traced)
    for i in range(4):
        kept = single(boxes[i], scores[i], labels[i], valid[i])
        np.testing.assert_array_equal(batched.indices[i], kept.indices)
        np.testing.assert_array_equal(batched.valid[i], kept.valid)
    assert count == 1


def test_only_the_best_are_sorted():
    """The early exit: 5000 boxes of which the first 64 fill the output need no full sort."""
    text = (
        run.lower(
            jnp.asarray(random_boxes(np.random.default_rng(0), 5000)),
            jnp.zeros(5000),
            jnp.zeros(5000, jnp.int32),
            iou_threshold=0.5,
            max_outputs=100,
        )
        .compile()
        .as_text()
    )
    assert "TopK" in text
    assert " sort(" not in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"boxes": np.ones((3, 5))}, "its last axis must hold four numbers"),
        ({"scores": np.ones(2)}, r"shapes \(3, 4\), \(2,\) and \(3,\)"),
        ({"labels": np.zeros(2, int)}, r"shapes \(3, 4\), \(3,\) and \(2,\)"),
        ({"labels": np.zeros(3)}, "labels are float32; they must be integers"),
        ({"iou_threshold": float("nan")}, "iou_threshold is nan"),
        ({"iou_threshold": 5.0}, "iou_threshold is 5.0"),
        ({"max_outputs": 0}, "max_outputs 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, told: str) -> None:
    values = {
        "boxes": np.ones((3, 4)), "scores": np.ones(3), "labels": np.zeros(3, int),
        "iou_threshold": 0.5, "max_outputs": 2,
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=told):
        unchecked(batched_nms, **values)
    if not {"iou_threshold", "max_outputs"} & set(changes):
        del values["iou_threshold"], values["max_outputs"]
        with pytest.raises(ValueError, match=told):
            unchecked(suppress, **values, settings=Suppression())
