"""Every suppression against a loop in float64 over its paper's formula, and by hand."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.ops import Suppressed, Suppression, suppress
from tests.ops.scenes import clustered_scene
from tests.ops.suppression_references import LOOPS

N, K = 48, 40  # One shape for all cases: one compile a method.
SETTINGS = {
    "class": Suppression("class", max_outputs=K),
    "agnostic": Suppression("agnostic", max_outputs=K),
    "soft_linear": Suppression("soft_linear", max_outputs=K),
    "soft_gaussian": Suppression("soft_gaussian", sigma=0.4, max_outputs=K),
    "matrix": Suppression("matrix", sigma=0.4, max_outputs=K, max_candidates=30),
    "weighted": Suppression("weighted", max_outputs=K),
    "fusion": Suppression("fusion", iou=0.55, min_score=0.0, num_views=3, max_outputs=K),
}
JITTED = {
    name: jax.jit(functools.partial(suppress, settings=settings))
    for name, settings in SETTINGS.items()
}


def cases():
    rng = np.random.default_rng(11)
    boxes, scores, labels = clustered_scene(rng, N, 3, 6)
    everything = np.ones(N, bool)
    yield "clustered", boxes, scores, labels, everything
    mixed = rng.integers(0, 3, N).astype(np.int32)  # overlaps of different classes too
    yield "mixed labels", boxes, scores, mixed, everything
    yield "one cluster", *clustered_scene(rng, N, 1, N), everything
    yield "tied scores", boxes, (np.round(scores * 4) / 4).astype(np.float32), labels, everything
    yield "equal scores", boxes, np.full(N, 0.5, np.float32), labels, everything
    yield "duplicates", np.tile(boxes[:8], (6, 1)), scores, np.tile(labels[:8], 6), everything
    yield "all alike", np.tile(boxes[:1], (N, 1)), scores, np.zeros(N, np.int32), everything
    flat = boxes.copy()
    flat[::2, 2] = flat[::2, 0]
    yield "zero area", flat, scores, labels, everything
    yield "padding", boxes, scores, labels, rng.random(N) < 0.4
    yield "all padding", boxes, scores, labels, ~everything
    bad_scores, bad_boxes = scores.copy(), boxes.copy()
    bad_scores[::3] = np.nan
    bad_boxes[5::6], is_fine = np.nan, np.arange(N) % 6 != 5
    yield "nan scores", boxes, bad_scores, labels, everything
    yield "nan in padding", bad_boxes, bad_scores, labels, is_fine
    yield "zero scores", boxes, np.zeros(N, np.float32), labels, everything
    for seed in range(4):
        more = np.random.default_rng(100 + seed)
        yield f"random {seed}", *clustered_scene(more, N, 2 + seed, 4 + seed), everything


CASES = {name: values for name, *values in cases()}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_loop(name: str) -> None:
    for boxes, scores, labels, valid in CASES.values():
        rows = np.flatnonzero(valid & ~np.isnan(scores)).tolist()
        wide = boxes.astype(np.float64), scores.astype(np.float64), labels
        found = JITTED[name](boxes, scores, labels, valid=valid)
        expected = LOOPS[name](*wide, rows, SETTINGS[name])[:K]
        number = len(expected)
        assert np.asarray(found.valid).tolist() == [True] * number + [False] * (K - number)
        rows, scores, boxes = (np.array([f[i] for f in expected], float) for i in range(3))
        assert found.indices[:number].tolist() == rows.astype(int).tolist()
        assert found.labels[:number].tolist() == labels[rows.astype(int)].tolist()
        np.testing.assert_allclose(found.scores[:number], scores, rtol=2e-5)
        np.testing.assert_allclose(found.boxes[:number], boxes.reshape(-1, 4), rtol=1e-5, atol=1e-3)
        assert not any(np.any(np.asarray(values)[number:]) for values in found)


# The others are one of these in another dress.
@pytest.mark.parametrize("name", ["soft_gaussian", "matrix", "weighted", "fusion"])
def test_vmap_equals_a_loop(name: str) -> None:
    some = list(CASES.values())[:6]
    together = jax.jit(jax.vmap(lambda *a: suppress(*a[:3], SETTINGS[name], valid=a[3])))(
        *(np.stack(arrays) for arrays in zip(*some, strict=True))
    )
    for i, case in enumerate(some):
        alone = JITTED[name](*case[:3], valid=case[3])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_box_of_nan_changes_no_other(name: str) -> None:
    boxes, scores, labels, valid = CASES["clustered"]
    boxes, middle = boxes.copy(), np.argsort(scores)[N // 2]
    boxes[middle] = np.nan
    found = JITTED[name](boxes, scores, labels, valid=valid)
    without = JITTED[name](boxes, scores, labels, valid=np.arange(N) != middle)

    def by_box(result: Suppressed) -> dict[int, list[float]]:
        rows = np.column_stack([result.scores, result.boxes])[result.valid]
        return dict(zip(result.indices[result.valid].tolist(), rows.tolist(), strict=True))

    got, want = by_box(found), by_box(without)
    both = got.keys() & want.keys()
    assert len(both) >= len(want) - 1  # it takes a place
    for i in both:
        np.testing.assert_allclose(got[i], want[i], rtol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_boxes(name: str) -> None:
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    found = JITTED[name](*empty)
    assert found.boxes.shape == (K, 4)
    assert found.indices.dtype == found.labels.dtype == jnp.int32
    assert not any(np.any(values) for values in found)


def test_soft_suppression_by_hand() -> None:
    """A duplicate (IoU 1), a half (IoU 1/2) and a stranger."""
    boxes, scores = np.zeros((N, 4), np.float32), np.ones(N, np.float32)
    boxes[:4] = [[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 2], [8, 8, 9, 9]]
    scores[:4] = [0.8, 0.6, 0.4, 0.1]
    scene = boxes, scores, np.zeros(N, np.int32)
    run = {name: functools.partial(f, valid=np.arange(N) < 4) for name, f in JITTED.items()}
    linear = run["soft_linear"](*scene)
    assert linear.indices[:4].tolist() == [0, 2, 3, 0]  # IoU 1/2 is not more than 1/2
    np.testing.assert_allclose(linear.scores[:4], [0.8, 0.4, 0.1, 0], rtol=1e-6)
    gaussian = run["soft_gaussian"](*scene)
    assert gaussian.indices[:4].tolist() == [0, 2, 3, 1]
    half = 0.4 * np.exp(-0.25 / 0.4)
    # The half is taken before the duplicate, and lowers it once more.
    expected = [0.8, half, 0.1, 0.6 * np.exp(-1 / 0.4) * np.exp(-0.25 / 0.4)]
    np.testing.assert_allclose(gaussian.scores[:4], expected, rtol=1e-5)
    # The duplicate is suppressed itself: what it does to the half is discounted.
    expected = [0.8, half, 0.1, 0.6 * np.exp(-1 / 0.4)]
    np.testing.assert_allclose(run["matrix"](*scene).scores[:4], expected, rtol=1e-5)


def test_an_unknown_method_is_named() -> None:
    """The check itself: in tests, jaxtyping refuses the argument before."""
    with pytest.raises(ValueError, match="method is 'hard'; it must be one of class, agnostic"):
        Suppression.__post_init__(SimpleNamespace(method="hard"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sigma": 0.0}, "sigma is 0.0; it must be > 0"),
        ({"sigma": float("nan")}, "sigma is nan; it must be > 0"),
        ({"iou": -0.1}, r"iou is -0.1; it must be in \[0, 1\]"),
        ({"iou": float("nan")}, r"iou is nan; it must be in \[0, 1\]"),
        ({"min_score": -1}, "min_score is -1; it must be >= 0"),
        ({"max_outputs": 0}, "max_outputs is 0; it must be >= 1"),
        ({"num_views": 0}, "num_views is 0; it must be >= 1"),
        ({"max_candidates": 0}, "max_candidates is 0; it must be >= 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(values: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Suppression(**values)
