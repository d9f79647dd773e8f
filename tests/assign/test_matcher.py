"""Matching against torchvision's Matcher and against the plain matrix in float32 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.detectors.parts.matching import MatchState, match_anchors
from tests.ops.peers import torchvision_or_skip
from tests.ops.scenes import random_boxes

IMAGE = (96, 160)
ANCHORS = np.concatenate(
    make_anchors(IMAGE, levels=(3, 6), size_factor=4.0, scales=(1.0, 1.5), ratios=(0.5, 1.0, 2.0))
)
G = 13  # Padded size; no multiple of the block.
OPTIONS = {"positive_iou": 0.5, "negative_iou": 0.4, "low_quality": True}
match = jax.jit(match_anchors, static_argnames=tuple(OPTIONS))


def iou_matrix(boxes, anchors):
    area = lambda x: (x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1])  # noqa: E731
    sides = np.minimum(boxes[:, None, 2:], anchors[:, 2:]) - np.maximum(
        boxes[:, None, :2], anchors[:, :2]
    )
    inter = np.prod(np.maximum(sides, np.float32(0)), axis=2, dtype=np.float32)
    return inter / (area(boxes)[:, None] + area(anchors) - inter)


def plain_match(boxes, anchors, positive_iou, negative_iou, low_quality):
    """The whole matrix, the definition literally; where IGNORE or NEGATIVE no index."""
    if len(boxes) == 0:
        return np.full(len(anchors), -1), np.zeros(len(anchors), int)
    iou = iou_matrix(boxes, anchors)
    best = iou.max(axis=0)
    is_positive = best >= np.float32(positive_iou)
    state = np.where(is_positive, 1, np.where(best < np.float32(negative_iou), 0, -1))
    if low_quality:
        top = iou.max(axis=1, keepdims=True)
        state[((iou == top) & (top > 0)).any(axis=0)] = 1
    return np.where(state == 1, iou.argmax(axis=0), -1), state


def cases():
    rng = np.random.default_rng(5)
    for n in (0, 1, 2, 8, 12, 13):
        yield f"{n} boxes", random_boxes(rng, n, IMAGE, 8, 90)
    yield "twins", np.repeat(random_boxes(rng, 4, IMAGE, 8, 90), 3, axis=0)
    yield "anchors themselves", ANCHORS[rng.integers(0, len(ANCHORS), 10)]
    # Symmetric about the anchors' grid: each object ties several anchors.
    yield "ties", np.array([[20, 20, 28, 28], [0, 0, 96, 96], [36, 4, 60, 12]], np.float32)
    yield "tiny", np.array([[33, 33, 33.5, 33.5], [90, 70, 91, 95]], np.float32)


CASES = dict(cases())


def padded(boxes, fill=np.nan):
    rows = np.full((G, 4), fill, np.float32)
    rows[: len(boxes)] = boxes
    return rows, np.arange(G) < len(boxes)


def check(matches, expected_index, expected_state):
    state = np.asarray(matches.state)
    np.testing.assert_array_equal(state, expected_state)
    is_positive = state == MatchState.POSITIVE
    np.testing.assert_array_equal(
        np.asarray(matches.index)[is_positive], expected_index[is_positive]
    )


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_matrix(name, low_quality):
    options = OPTIONS | {"low_quality": low_quality}
    matches = match(ANCHORS, *padded(CASES[name]), **options)
    check(matches, *plain_match(CASES[name], ANCHORS, **options))
    assert matches.index.dtype == jnp.int32
    assert matches.state.dtype == jnp.int8


@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.7, 0.3), (0.5, 0.5)])
@pytest.mark.parametrize("low_quality", [True, False])
def test_equals_torchvision(thresholds, low_quality):
    torch, torchvision = torchvision_or_skip()
    matcher = torchvision.models.detection._utils.Matcher(*thresholds, low_quality)
    for boxes in CASES.values():
        if len(boxes) == 0:
            continue  # It raises.
        expected = matcher(
            torchvision.ops.box_iou(torch.tensor(boxes), torch.tensor(ANCHORS))
        ).numpy()
        matches = match(
            ANCHORS,
            *padded(boxes),
            positive_iou=thresholds[0],
            negative_iou=thresholds[1],
            low_quality=low_quality,
        )
        state = np.where(expected >= 0, 1, np.where(expected == -1, 0, -1))
        check(matches, expected, state)


def test_padding_may_be_anything_anywhere():
    boxes = CASES["12 boxes"]
    expected = plain_match(boxes, ANCHORS, **OPTIONS)
    for fill in (np.nan, np.inf, 0.0, 7.0):
        rows, valid = padded(boxes, fill)
        check(match(ANCHORS, rows, valid, **OPTIONS), *expected)
    # Holes in front: the index counts rows, holes included.
    rows, valid = np.roll(rows, 1, axis=0), np.roll(valid, 1)
    index = np.where(expected[0] >= 0, expected[0] + 1, -1)
    check(match(ANCHORS, rows, valid, **OPTIONS), index, expected[1])


def test_an_object_that_overlaps_no_anchor_claims_none():
    """torchvision gives it all anchors there are: its highest IoU, 0, is reached by all."""
    boxes = np.array([[500, 500, 520, 520], [10, 10, 10, 10]], np.float32)
    for rows in (boxes, np.concatenate([boxes, CASES["2 boxes"]])):
        matches = match(ANCHORS, *padded(rows), **OPTIONS)
        index, state = plain_match(rows[2:], ANCHORS, **OPTIONS)
        check(matches, np.where(index >= 0, index + 2, -1), state)


def test_vmap_equals_a_loop_with_one_compile():
    count = 0

    def traced(boxes, valid):
        nonlocal count
        count += 1
        return match_anchors(ANCHORS, boxes, valid, **OPTIONS)

    rows = [padded(boxes) for boxes in CASES.values()]
    boxes, valid = (np.stack(arrays) for arrays in zip(*rows, strict=True))
    batched = jax.jit(jax.vmap(traced))(boxes, valid)
    count = 0
    single = jax.jit(traced)
    for i in range(len(rows)):
        matches = single(boxes[i], valid[i])
        np.testing.assert_array_equal(batched.index[i], matches.index)
        np.testing.assert_array_equal(batched.state[i], matches.state)
    assert count == 1


def test_no_matrix_of_anchors_times_objects():
    """A few numbers an anchor; the IoUs with 100 objects alone would take 400 bytes."""
    run = jax.jit(jax.vmap(lambda boxes, valid: match_anchors(ANCHORS, boxes, valid, **OPTIONS)))
    compiled = run.lower(jnp.zeros((16, 100, 4)), jnp.zeros((16, 100), bool)).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    assert memory < 16 * len(ANCHORS) * 64
