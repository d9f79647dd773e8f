"""What every public function of `ops` and of the matching, sampling and selection of detectors
promises: numbers of any type are computed in float32, under JAX's strict settings too.

Coordinates, scores and deltas are exact in every type, so the results have to be the same.
"""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import ops
from harmonic_jax.config import MatchConfig, PostprocessConfig, RPNConfig
from harmonic_jax.detectors import rpn
from harmonic_jax.detectors.parts import matching, selection
from harmonic_jax.ops import Suppression
from harmonic_jax.structures import GroundTruth, Predictions

N, G, K = 24, 6, 3
_RNG = np.random.default_rng(0)


def _boxes(number):
    """Corners in [-256, 256]: areas to 2**18, above all that float16 can hold."""
    corners = np.sort(_RNG.integers(-64, 65, (number, 2, 2)), axis=1).reshape(number, 4) * 4
    corners[: number // 3] = [-256, -256, 256, 256]
    corners[: number // 3] += _RNG.integers(-12, 1, (number // 3, 4)) * [-4, -4, 4, 4]
    return corners.astype(np.float32)


BOXES, OBJECTS = _boxes(N), _boxes(G)
SCORES = _RNG.permutation(np.arange(1, N + 1)).astype(np.float32) / 32
DELTAS = _RNG.integers(-8, 9, (N, 4)).astype(np.float32) / 16
LOGITS = _RNG.integers(-48, 49, (N, K + 1)).astype(np.float32) / 16
LABELS = _RNG.integers(0, K, N)
OBJECT_LABELS = _RNG.integers(0, K, G)
VALID, IS_OBJECT = np.arange(N) % 5 != 4, np.arange(G) < 4
FEATURES = _RNG.normal(size=(2, 16, 16, 5)).astype(np.float32)
SIZE = np.float32([200, 240])


class Given:
    """The inputs in the types of a variation, and what stands in rows that are padding."""

    def __init__(self, floats=("float32",), boxes=("float32",), labels="int32", padding=None):
        self.boxes, self.floats = itertools.cycle(boxes), itertools.cycle(floats)
        self.labels, self.padding = labels, padding

    def b(self, boxes, valid=None):
        return jnp.asarray(self._padded(boxes, valid), next(self.boxes))

    def f(self, array, valid=None):
        return jnp.asarray(self._padded(array, valid), next(self.floats))

    def _padded(self, array, valid):
        if self.padding is None or valid is None:
            return array
        return np.where(valid.reshape(-1, *[1] * (array.ndim - 1)), array, self.padding)

    def i(self, array):
        return jnp.asarray(array, self.labels)

    def truth(self):
        return GroundTruth(self.objects(), self.i(OBJECT_LABELS), jnp.asarray(IS_OBJECT))

    def scene(self):
        return self.b(BOXES, VALID), self.f(SCORES, VALID), self.i(LABELS)

    def objects(self):
        return self.b(OBJECTS, IS_OBJECT)


KEY = jax.random.key(0)
NMS = {"iou_threshold": 0.5, "max_outputs": 9, "valid": VALID}
MATCH = MatchConfig(positive_iou=0.6, negative_iou=0.4)
RPN = RPNConfig(match=MATCH, num_samples=8, topk_eval=20, num_proposals_eval=9)
POST = PostprocessConfig(score_threshold=0.3, max_detections=9)
CALLS = {
    "box_area": lambda f, x: f(x.b(BOXES)),
    "pairwise_iou": lambda f, x: f(x.b(BOXES), x.b(OBJECTS)),
    "iou_of_coordinates": lambda f, x: f(tuple(x.b(BOXES).T), tuple(x.b(BOXES[::-1]).T)),
    "clip_boxes": lambda f, x: f(x.b(BOXES), x.b(SIZE)),
    "encode_boxes": lambda f, x: f(x.b(BOXES), x.b(BOXES[::-1])),
    "decode_boxes": lambda f, x: f(x.f(DELTAS), x.b(BOXES)),
    "nms": lambda f, x: f(*x.scene()[:2], **NMS),
    "batched_nms": lambda f, x: f(*x.scene(), **NMS),
    "suppress": lambda f, x: [
        f(*x.scene(), Suppression(method, max_outputs=9), valid=VALID)
        for method in ("class", "soft_gaussian", "matrix", "weighted", "fusion")
    ],
    "crop_masks": lambda f, x: f(
        jnp.full((G, 7, 7), 255, jnp.uint8), x.b(OBJECTS), x.i(LABELS), x.b(BOXES), size=5
    ),
    "map_filled": lambda f, x: f(
        jnp.square, jnp.ones((1, 4, 2), jnp.float32), np.ones((1, 4), bool), num_chunks=2
    ),
    "roi_align": lambda f, x: f(
        jnp.asarray(FEATURES[0]), x.b(BOXES), output_size=3, spatial_scale=0.25, aligned=True
    ),
    "pyramid_roi_align": lambda f, x: f(
        list(jnp.asarray(FEATURES)), x.b(BOXES), output_size=3, first_level=2, aligned=False
    ),
    "assign_levels": lambda f, x: f(x.b(BOXES), levels=(2, 5)),
    "sample_balanced": lambda f, x: f(KEY, VALID, ~VALID, num_samples=8, positive_fraction=0.5),
    "match_anchors": lambda f, x: f(x.b(BOXES), x.objects(), IS_OBJECT, MATCH),
    "match_default_boxes": lambda f, x: f(x.b(BOXES), x.objects(), IS_OBJECT, positive_iou=0.5),
    "dense_targets": lambda f, x: f([x.b(BOXES)], x.truth(), num_classes=K, match=MATCH),
    "draw_samples": lambda f, x: f(
        KEY,
        x.b(BOXES, VALID),
        VALID,
        x.truth(),
        match=MATCH,
        num_samples=8,
        positive_fraction=0.5,
        num_classes=K,
    ),
    "select_detections": lambda f, x: f(*x.scene(), x.b(SIZE), POST),
    "select_proposals": lambda f, x: f(
        Predictions((x.f(LOGITS[:, :1]),), (x.f(DELTAS),)),
        [x.b(BOXES)],
        x.b(SIZE),
        RPN,
        is_training=False,
    ),
}
FUNCTIONS = {
    name: value
    for module in (ops, matching, selection, rpn)
    for name, value in vars(module).items()
    if name in CALLS
}


def run(name, **types):
    return CALLS[name](FUNCTIONS[name], Given(**types))


def test_no_public_function_is_forgotten():
    public = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    assert public <= set(CALLS) == set(FUNCTIONS)


MIXED = {
    "floats": ["bfloat16", "float16", "float32"],
    "boxes": ["float16", "bfloat16", "int16", "float32"],
    "labels": "uint8",
}
WIDE = {"floats": ["float64", "float32"], "boxes": ["float32", "float64"], "labels": "int64"}
INTEGERS = {"boxes": ["int32", "int16"], "labels": "uint32"}


@pytest.fixture(scope="module")
def results():
    """Every function of float32 and of mixed types: one program each."""
    return [
        jax.jit(lambda types=types: {n: jax.tree.leaves(run(n, **types)) for n in CALLS})()
        for types in ({}, MIXED)
    ]


@pytest.mark.parametrize("name", CALLS)
def test_any_type_is_computed_in_float32(results, name):
    for want, got in zip(*(every[name] for every in results), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_types_under_strict_promotion_and_with_64_bits(name):
    def types(**given):
        leaves = jax.eval_shape(lambda: jax.tree.leaves(run(name, **given)))
        return [leaf.dtype for leaf in leaves]

    expected = types()
    assert not {"float16", "bfloat16", "float64", "int64"} & {str(dtype) for dtype in expected}
    with jax.numpy_dtype_promotion("strict"):
        assert types(**MIXED) == expected
        with jax.enable_x64(True):
            assert types(**WIDE) == types(**INTEGERS) == expected


ON_PADDING = [
    name
    for name, function in FUNCTIONS.items()
    if {"valid", "is_candidate", "ground_truth"} & set(inspect.signature(function).parameters)
]


@pytest.mark.parametrize("name", ON_PADDING)
def test_padding_may_be_nan_even_under_debug_nans(results, name):
    with jax.debug_nans(True):
        got = run(name, padding=np.nan)
    for a, b in zip(jax.tree.leaves(got), results[0][name], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
