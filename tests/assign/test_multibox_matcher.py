"""One-to-one and max-IoU assignment against a slow greedy loop, and against torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.assign.multibox_matcher import match_default_boxes, multibox_targets

from harmonic_jax.detectors.parts.matching import MatchState
from harmonic_jax.structures import GroundTruth

match = jax.jit(match_default_boxes, static_argnames="positive_iou")


def iou_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.maximum(high - low, 0).prod(-1)
    areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)
    return inter / (areas - inter)


def greedy(anchors: np.ndarray, boxes: np.ndarray, threshold: float) -> np.ndarray:
    """The object of each anchor, -1 for background: pair by pair, best pair first."""
    table = iou_table(anchors.astype(np.float64), boxes.astype(np.float64))
    owner = np.full(len(anchors), -1)
    free = table.copy()
    while free.size and free.max() > 0:
        n, g = np.unravel_index(free.argmax(), free.shape)
        owner[n] = g
        free[n], free[:, g] = 0, 0
    for n in np.flatnonzero(owner < 0):
        if len(boxes) and table[n].max() >= threshold:
            owner[n] = table[n].argmax()
    return owner


def random_boxes(rng: np.random.Generator, count: int, *, room: float, size: float) -> np.ndarray:
    corner = rng.uniform(0, room, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(size / 2, size, (count, 2))], -1).astype(
        np.float32
    )


def assignment(anchors: np.ndarray, boxes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    matches = match(anchors, boxes, valid, positive_iou=0.5)
    assert set(np.unique(matches.state)) <= {MatchState.NEGATIVE, MatchState.POSITIVE}
    return np.where(matches.state == MatchState.POSITIVE, matches.index, -1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("num_anchors", "num_boxes"), [(200, 12), (12, 12), (5, 12), (60, 1)])
def test_equals_the_greedy_loop(seed: int, num_anchors: int, num_boxes: int) -> None:
    rng = np.random.default_rng(seed)
    # In a small room: many objects want the same anchor.
    anchors = random_boxes(rng, num_anchors, room=40, size=24)
    boxes = random_boxes(rng, num_boxes, room=40, size=24)
    padded = np.concatenate([boxes, np.full((3, 4), np.nan, np.float32)])
    valid = np.arange(len(padded)) < num_boxes
    actual = assignment(anchors, padded, valid)
    np.testing.assert_array_equal(actual, greedy(anchors, boxes, 0.5))
    if num_anchors == 200:
        assert set(actual) >= set(range(num_boxes))


def test_two_objects_that_want_one_box_both_get_one() -> None:
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 4], [30, 30, 40, 40]], np.float32)
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10]], np.float32)
    # The second object fits the first anchor perfectly; the first object takes what is left.
    np.testing.assert_array_equal(assignment(anchors, boxes, np.ones(2, bool)), [1, 0, -1])


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_torchvision_where_best_boxes_differ(seed: int) -> None:
    torch = pytest.importorskip("torch", reason="torchvision is the oracle")
    try:
        from torchvision.models.detection._utils import SSDMatcher
        from torchvision.ops import box_iou
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    rng = np.random.default_rng(seed)
    anchors = random_boxes(rng, 3000, room=250, size=60)
    boxes = random_boxes(rng, 6, room=250, size=60)
    table = box_iou(torch.from_numpy(boxes), torch.from_numpy(anchors))
    assert len(set(table.argmax(1).tolist())) == len(boxes)  # no two want the same
    expected = SSDMatcher(0.5)(table).numpy()
    np.testing.assert_array_equal(assignment(anchors, boxes, np.ones(6, bool)), expected)


def test_without_objects_all_is_background() -> None:
    anchors = random_boxes(np.random.default_rng(0), 20, room=40, size=24)
    nothing = np.full((4, 4), np.nan, np.float32)
    assert (assignment(anchors, nothing, np.zeros(4, bool)) == -1).all()


def test_an_object_outside_of_all_boxes_claims_none() -> None:
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    boxes = np.array([[50, 50, 60, 60]], np.float32)
    assert assignment(anchors, boxes, np.ones(1, bool)).tolist() == [-1]


def test_ends_whatever_it_is_given() -> None:
    """Refined anchors of a network that diverged must not hang the step."""
    rng = np.random.default_rng(0)
    anchors = random_boxes(rng, 50, room=40, size=24)
    anchors[::3] = np.nan
    anchors[1::3] = [-np.inf, 0, np.inf, 10]
    boxes = random_boxes(rng, 6, room=40, size=24)
    boxes[2] = np.nan
    owner = assignment(anchors, boxes, np.ones(6, bool))
    assert set(owner[2::3]) >= {0, 1, 3, 4, 5}
    assert (owner[::3] == -1).all()


def test_vmapped_equals_a_loop_over_images() -> None:
    rng = np.random.default_rng(1)
    anchors = random_boxes(rng, 100, room=40, size=24)
    boxes = np.stack([random_boxes(rng, 9, room=40, size=24) for _ in range(3)])
    truth = GroundTruth(
        boxes, rng.integers(0, 5, (3, 9)).astype(np.int32), np.arange(9) < np.array([[9], [0], [4]])
    )

    def targets(truth: GroundTruth) -> tuple:
        return multibox_targets(anchors, truth, num_classes=5, positive_iou=0.5)

    batched = jax.jit(jax.vmap(targets))(jax.tree.map(jnp.asarray, truth))
    one_image = jax.jit(targets)
    for i in range(3):
        alone = one_image(jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), truth))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), batched, alone)
    assert not batched.is_positive[1].any()
    assert (np.asarray(batched.labels[1]) == 5).all()
    np.testing.assert_array_equal(batched.boxes[1], anchors)
