"""Matching against the plain matrix in float32 NumPy, a greedy loop, and torchvision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.config import AnchorConfig, MatchConfig
from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.detectors.parts.matching import (
    MatchState,
    dense_targets,
    draw_samples,
    match_anchors,
    match_default_boxes,
    multibox_targets,
)
from harmonic_jax.structures import GroundTruth
from tests.detectors import tiny
from tests.detectors.reference import match_one_to_one
from tests.ops.scenes import random_boxes

IMAGE = (96, 160)
LEVELS = make_anchors(IMAGE, (3, 6), AnchorConfig(scales=(1.0, 1.5)))
ANCHORS = np.concatenate(LEVELS)
G, K = 13, 5  # Padded size; no multiple of the block.
MATCH = MatchConfig()
BY_OVERLAP = MatchConfig(low_quality=False)
match = jax.jit(match_anchors, static_argnums=3)
match_one = jax.jit(functools.partial(match_default_boxes, positive_iou=0.5))


def plain_match(boxes, anchors, config):
    """The whole matrix, the definition literally; where IGNORE or NEGATIVE no index."""
    if len(boxes) == 0:
        return np.full(len(anchors), -1), np.zeros(len(anchors), int)
    area = lambda x: (x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1])  # noqa: E731
    sides = np.minimum(boxes[:, None, 2:], anchors[:, 2:]) - np.maximum(
        boxes[:, None, :2], anchors[:, :2]
    )
    inter = np.prod(np.maximum(sides, np.float32(0)), axis=2, dtype=np.float32)
    iou = inter / (area(boxes)[:, None] + area(anchors) - inter)
    best = iou.max(axis=0)
    is_positive = best >= np.float32(config.positive_iou)
    state = np.where(is_positive, 1, np.where(best < np.float32(config.negative_iou), 0, -1))
    if config.low_quality:
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


@pytest.mark.parametrize("config", [MATCH, BY_OVERLAP], ids=["low quality", "by overlap"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_matrix(name, config):
    matches = match(ANCHORS, *padded(CASES[name]), config)
    check(matches, *plain_match(CASES[name], ANCHORS, config))
    assert matches.index.dtype == jnp.int32
    assert matches.state.dtype == jnp.int8


def test_padding_may_be_anything_anywhere():
    boxes = CASES["12 boxes"]
    expected = plain_match(boxes, ANCHORS, MATCH)
    for fill in (np.nan, np.inf, 0.0, 7.0):
        rows, valid = padded(boxes, fill)
        check(match(ANCHORS, rows, valid, MATCH), *expected)
    # Holes in front: the index counts rows, holes included.
    rows, valid = np.roll(rows, 1, axis=0), np.roll(valid, 1)
    index = np.where(expected[0] >= 0, expected[0] + 1, -1)
    check(match(ANCHORS, rows, valid, MATCH), index, expected[1])


def test_an_object_that_overlaps_no_anchor_claims_none():
    """torchvision gives it all anchors there are: its highest IoU, 0, is reached by all."""
    boxes = np.array([[500, 500, 520, 520], [10, 10, 10, 10]], np.float32)
    for rows in (boxes, np.concatenate([boxes, CASES["2 boxes"]])):
        index, state = plain_match(rows[2:], ANCHORS, MATCH)
        check(match(ANCHORS, *padded(rows), MATCH), np.where(index >= 0, index + 2, -1), state)


def test_no_matrix_of_anchors_times_objects():
    """A few numbers an anchor; the IoUs with 100 objects alone would take 400 bytes."""
    run = jax.jit(jax.vmap(lambda boxes, valid: match_anchors(ANCHORS, boxes, valid, MATCH)))
    compiled = run.lower(jnp.zeros((16, 100, 4)), jnp.zeros((16, 100), bool)).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    assert memory < 100 * 16 * len(ANCHORS)


def truth_of(num_objects, seed=0):
    rng = np.random.default_rng(seed)
    boxes, valid = padded(random_boxes(rng, num_objects, IMAGE, 12, 90))
    labels = np.where(valid, rng.integers(0, K, G), -7)
    return GroundTruth(jnp.asarray(boxes), jnp.asarray(labels), jnp.asarray(valid))


@jax.jit
def targets_of(truth):
    """One after the other of all levels, and of default boxes."""
    dense = dense_targets(LEVELS, truth, num_classes=K, match=MATCH)
    assert [level.labels.shape[0] for level in dense] == [len(level) for level in LEVELS]
    joined = jax.tree.map(lambda *rows: jnp.concatenate(rows), *dense)
    return joined, multibox_targets(ANCHORS, truth, num_classes=K, positive_iou=0.5)


@pytest.mark.parametrize("num_objects", [0, 1, 5, 13])
def test_targets_say_what_the_matching_says(num_objects):
    truth = truth_of(num_objects, num_objects)
    boxes, labels = np.asarray(truth.boxes), np.asarray(truth.labels)
    rows = truth.boxes, truth.valid
    matched = (match(ANCHORS, *rows, MATCH), {-1, 0, 1}), (match_one(ANCHORS, *rows), {0, 1})
    for targets, (matches, seen) in zip(targets_of(truth), matched, strict=True):
        state, index = np.asarray(matches.state), np.asarray(matches.index)
        is_positive = state == MatchState.POSITIVE
        np.testing.assert_array_equal(targets.is_positive, is_positive)
        np.testing.assert_array_equal(targets.is_counted, state != MatchState.IGNORE)
        np.testing.assert_array_equal(targets.labels, np.where(is_positive, labels[index], K))
        expected = np.where(is_positive[:, None], boxes[index], ANCHORS)
        np.testing.assert_array_equal(targets.boxes, expected)
        # Every object claims an anchor, and padding leaks nothing.
        claimed = {tuple(box) for box in np.asarray(targets.boxes)[is_positive]}
        assert claimed == {tuple(box) for box in boxes[:num_objects]}
        assert set(state) == (seen if num_objects else {0})


def small_boxes(rng, count, *, room=40.0, size=24.0):
    """In a small room: many objects want the same anchor."""
    corner = rng.uniform(0, room, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(size / 2, size, (count, 2))], -1)
    return boxes.astype(np.float32)


def owners(anchors, boxes, valid=None):
    valid = np.ones(len(boxes), bool) if valid is None else valid
    matches = match_one(anchors, boxes, valid)
    assert set(np.unique(matches.state)) <= {MatchState.NEGATIVE, MatchState.POSITIVE}
    return np.where(matches.state == MatchState.POSITIVE, matches.index, -1)


@pytest.mark.parametrize(("num_anchors", "num_boxes"), [(200, 12), (12, 12), (5, 12), (60, 1)])
def test_one_to_one_equals_the_greedy_loop(num_anchors, num_boxes):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        anchors, boxes = small_boxes(rng, num_anchors), small_boxes(rng, num_boxes)
        rows = np.concatenate([boxes, np.full((3, 4), np.nan, np.float32)])
        actual = owners(anchors, rows, np.arange(len(rows)) < num_boxes)
        np.testing.assert_array_equal(actual, match_one_to_one(anchors, boxes, 0.5))
        assert num_anchors < 200 or set(actual) >= set(range(num_boxes))


def test_two_objects_that_want_one_box_both_get_one():
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 4], [30, 30, 40, 40]], np.float32)
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10]], np.float32)
    # The second object fits the first anchor perfectly; the first object takes what is left.
    np.testing.assert_array_equal(owners(anchors, boxes), [1, 0, -1])
    # An object outside of all boxes claims none, and none is claimed without objects.
    assert owners(anchors, boxes + 90).tolist() == [-1, -1, -1]
    assert owners(anchors, boxes, np.zeros(2, bool)).tolist() == [-1, -1, -1]


def test_one_to_one_ends_whatever_it_is_given():
    """Refined anchors of a network that diverged must not hang the step."""
    rng = np.random.default_rng(0)
    anchors, boxes = small_boxes(rng, 50), small_boxes(rng, 6)
    anchors[::3] = np.nan
    anchors[1::3] = [-np.inf, 0, np.inf, 10]
    boxes[2] = np.nan
    owner = owners(anchors, boxes)
    assert set(owner[2::3]) >= {0, 1, 3, 4, 5}
    assert (owner[::3] == -1).all()


@pytest.mark.parametrize("num_objects", [0, 1, 4])
def test_samples_are_drawn_by_their_match(num_objects):
    """With claims of low overlap, and boxes between the thresholds that are never drawn."""
    config = MatchConfig(positive_iou=0.7, negative_iou=0.3)
    rng = np.random.default_rng(1)
    every, exists = tiny.boxes_of(rng, 80), np.arange(80) % 9 != 8
    truth = tiny.row(tiny.random_truth(rng, (num_objects,)), 0)
    drawn = jax.jit(
        functools.partial(
            draw_samples, match=config, num_samples=32, positive_fraction=0.5, num_classes=K
        )
    )(jax.random.key(2), np.where(exists[:, None], every, np.nan), exists, truth)
    drawn = jax.tree.map(np.asarray, drawn)
    boxes = np.asarray(truth.boxes)[:num_objects]
    index, state = plain_match(boxes, np.where(exists[:, None], every, 0.0), config)
    assert drawn.valid.all()
    assert len(set(drawn.rows.tolist())) == 32
    assert exists[drawn.rows].all()
    assert drawn.is_positive.sum() == min(16, ((state == 1) & exists).sum())
    np.testing.assert_array_equal(drawn.boxes, every[drawn.rows])
    np.testing.assert_array_equal(state[drawn.rows], drawn.is_positive)
    for row, target in zip(drawn.rows, drawn.targets, strict=True):
        np.testing.assert_array_equal(target, boxes[index[row]] if state[row] == 1 else every[row])
