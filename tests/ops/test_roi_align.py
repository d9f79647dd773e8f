"""RoIAlign against torchvision and against sampling one point after the other in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import ops
from harmonic_jax.ops import assign_levels
from tests.ops.peers import torchvision_or_skip
from tests.ops.scenes import random_boxes
from tests.shapes import unchecked

H, W, C = 12, 17, 3
IMAGE = (4 * H, 4 * W)
STATIC = ("output_size", "aligned", "sampling_ratio")
roi_align = jax.jit(ops.roi_align, static_argnames=(*STATIC, "spatial_scale"))
pyramid_roi_align = jax.jit(ops.pyramid_roi_align, static_argnames=(*STATIC, "first_level"))
LARGE = (480, 640)
PYRAMID = [(120, 160), (60, 80), (30, 40), (15, 20)]  # Levels 2 to 5 of the large image.


def sample(features, y, x):
    """One bilinear sample of [h w c], by cases."""
    height, width, _ = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(features.shape[2])
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = features[top, left] * (left + 1 - x) + features[top, right] * (x - left)
    lower = features[bottom, left] * (left + 1 - x) + features[bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def reference(features, boxes, size, scale, aligned, ratio):
    pooled = np.zeros((len(boxes), size, size, features.shape[2]))
    for r, box in enumerate(boxes.astype(np.float64)):
        x1, y1, x2, y2 = box * scale - (0.5 if aligned else 0.0)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        for i, j, m, n in np.ndindex(size, size, ratio, ratio):
            y = y1 + height / size * (i + (m + 0.5) / ratio)
            x = x1 + width / size * (j + (n + 0.5) / ratio)
            pooled[r, i, j] += sample(features, y, x) / ratio**2
    return pooled


def edge_boxes():
    """Out of the image on each side, whole image, empty, inverted, a sample on the very edge."""
    h, w = IMAGE
    boxes = [
        [-20.0, -9.0, 20.0, 9.0],
        [w - 9.0, h - 13.0, w + 30.0, h + 8.0],
        [-3.0, -3.0, w + 3.0, h + 3.0],
        [0.0, 0.0, w, h],
        [-400.0, 5.0, -300.0, 9.0],
        [5.0, 3000.0, 9.0, 3001.0],
        [7.0, 7.0, 7.0, 7.0],
        [0.0, 0.0, 0.0, 0.0],
        [9.0, 4.0, 30.0, 4.0],
        [30.0, 20.0, 10.0, 8.0],
        [-8.0, -8.0, 0.0, 0.0],
        [0.0, 0.0, 2.0 * w, 2.0 * h],
        [1e-3, 1e-3, 2e-3, 2e-3],
    ]
    return np.array(boxes, np.float32)


def features_and_boxes(seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(H, W, C)).astype(np.float32)
    boxes = random_boxes(rng, 20, IMAGE, 2.0, 60.0)
    return features, np.concatenate([boxes, edge_boxes()])


CASES = [(7, True, 2), (7, False, 2), (2, True, 3), (3, False, 1), (1, True, 4)]


@pytest.mark.parametrize(("size", "aligned", "ratio"), CASES)
def test_equals_the_definition(size, aligned, ratio):
    features, boxes = features_and_boxes()
    pooled = roi_align(
        features,
        boxes,
        output_size=size,
        spatial_scale=0.25,
        aligned=aligned,
        sampling_ratio=ratio,
    )
    expected = reference(features, boxes, size, 0.25, aligned, ratio)
    np.testing.assert_allclose(pooled, expected, atol=2e-5)


@pytest.mark.parametrize(("size", "aligned", "ratio"), CASES)
def test_features_and_gradients_equal_torchvision(size, aligned, ratio):
    torch, torchvision = torchvision_or_skip()
    features, boxes = features_and_boxes(1)
    options = {"output_size": size, "spatial_scale": 0.25, "aligned": aligned}
    ours, pull = jax.vjp(lambda f: roi_align(f, boxes, **options, sampling_ratio=ratio), features)
    cotangent = np.random.default_rng(2).normal(size=ours.shape).astype(np.float32)

    tensor = torch.tensor(np.moveaxis(features, 2, 0)[None].copy(), requires_grad=True)
    theirs = torchvision.ops.roi_align(
        tensor, [torch.tensor(boxes)], **options, sampling_ratio=ratio
    )
    theirs.backward(torch.tensor(np.moveaxis(cotangent, 3, 1).copy()))
    np.testing.assert_allclose(np.moveaxis(np.asarray(ours), 3, 1), theirs.detach(), atol=2e-5)
    gradient = np.moveaxis(np.asarray(pull(cotangent)[0]), 2, 0)
    np.testing.assert_allclose(gradient, tensor.grad[0], atol=1e-4)


def pyramid_case(rng, num_boxes):
    levels = [rng.normal(size=(*shape, C)).astype(np.float32) for shape in PYRAMID]
    boxes = random_boxes(rng, num_boxes, LARGE, 2.0, 900.0)
    boxes[-1] = (0.0, 0.0, LARGE[1], LARGE[0])
    return levels, boxes


@pytest.mark.parametrize("num_boxes", [1, 50, 77])
def test_pyramid_equals_torchvision(num_boxes):
    torch, torchvision = torchvision_or_skip()
    rng = np.random.default_rng(num_boxes)
    levels, boxes = pyramid_case(rng, num_boxes)
    if num_boxes > 50:
        assert set(np.asarray(assign_levels(boxes, levels=(2, 5)))) == {2, 3, 4, 5}
    pool = partial(pyramid_roi_align, output_size=7, first_level=2, aligned=False)
    ours, pull = jax.vjp(lambda levels: pool(levels, boxes), levels)
    cotangent = rng.normal(size=ours.shape).astype(np.float32)

    inputs = {
        str(i): torch.tensor(np.moveaxis(level, 2, 0)[None].copy(), requires_grad=True)
        for i, level in enumerate(levels)
    }
    peer = torchvision.ops.MultiScaleRoIAlign(list(inputs), 7, sampling_ratio=2)
    theirs = peer(inputs, [torch.tensor(boxes)], [LARGE])
    theirs.backward(torch.tensor(np.moveaxis(cotangent, 3, 1).copy()))
    np.testing.assert_allclose(np.moveaxis(np.asarray(ours), 3, 1), theirs.detach(), atol=1e-4)
    for gradient, tensor in zip(pull(cotangent)[0], inputs.values(), strict=True):
        expected = 0.0 if tensor.grad is None else np.moveaxis(tensor.grad[0].numpy(), 0, 2)
        np.testing.assert_allclose(gradient, np.broadcast_to(expected, gradient.shape), atol=1e-4)


def test_levels_equal_torchvision_beside_the_borders_too():
    torch, _ = torchvision_or_skip()
    from torchvision.ops.poolers import initLevelMapper

    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(0, np.log(3000), (4000, 2)))
    powers = 224.0 * 2.0 ** np.arange(-4, 4)
    beside = powers[:, None] * (1 + np.array([0, 1e-7, -1e-7, 3e-7, -3e-7, 2e-6, -2e-6, 1e-3]))
    sides = np.concatenate([sides, np.repeat(beside.reshape(-1, 1), 2, axis=1), np.zeros((1, 2))])
    boxes = np.concatenate([np.zeros_like(sides), sides], axis=1).astype(np.float32)
    expected = initLevelMapper(2, 5)([torch.tensor(boxes)]).numpy() + 2
    np.testing.assert_array_equal(assign_levels(boxes, levels=(2, 5)), expected)


@pytest.mark.parametrize("aligned", [True, False])
def test_gradient_is_the_transpose_of_the_pooling(aligned):
    """Pooling is linear in the features: <pool(f), g> = <f, gradient(g)> for all f and g."""
    features, boxes = features_and_boxes(3)
    pool = partial(roi_align, output_size=4, spatial_scale=0.25, aligned=aligned)
    _, pull = jax.vjp(lambda f: pool(f, boxes), features)
    rng = np.random.default_rng(4)
    cotangent = rng.normal(size=(len(boxes), 4, 4, C)).astype(np.float32)
    gradient = np.asarray(pull(cotangent)[0])
    for _ in range(3):
        other = rng.normal(size=features.shape).astype(np.float32)
        forward = np.sum(np.asarray(pool(other, boxes), np.float64) * cotangent)
        np.testing.assert_allclose(np.sum(other * gradient, dtype=np.float64), forward, rtol=1e-4)


@pytest.mark.parametrize("aligned", [True, False])
def test_bad_boxes_are_zeros_and_disturb_no_other(aligned):
    features, boxes = features_and_boxes(7)
    pool = partial(roi_align, output_size=3, spatial_scale=0.25, aligned=aligned)
    bad = np.array(
        [[np.nan] * 4, [0, 0, np.inf, 9], [-np.inf, 0, 5, 5], [2, np.nan, 9, 9]], np.float32
    )
    value, pull = jax.vjp(pool, jnp.asarray(features), jnp.concatenate([bad, boxes]))
    np.testing.assert_array_equal(value[: len(bad)], 0.0)
    np.testing.assert_allclose(value[len(bad) :], pool(features, boxes), atol=1e-6)
    gradient, of_boxes = pull(jnp.ones_like(value))
    assert not np.asarray(of_boxes).any()
    _, alone = jax.vjp(lambda f: pool(f, boxes), features)
    np.testing.assert_allclose(
        gradient, alone(np.ones((len(boxes), 3, 3, C), np.float32))[0], atol=1e-4
    )


@pytest.mark.parametrize("aligned", [True, False])
def test_any_finite_box_has_finite_values_and_gradients(aligned):
    features, _ = features_and_boxes()
    ends = np.array([-3.4e38, -1e30, -1e9, 0.0, 1e-38, 1e9, 1e30, 3.4e38], np.float32)
    boxes = np.stack(np.meshgrid(ends, ends, ends, ends), axis=-1).reshape(-1, 4)[::7]
    pool = partial(roi_align, output_size=2, spatial_scale=0.25, aligned=aligned)
    value, pull = jax.vjp(lambda f: pool(f, boxes), features)
    assert np.isfinite(value).all()
    assert np.abs(value).max() <= np.abs(features).max()
    assert np.isfinite(pull(value)[0]).all()


def test_no_boxes_and_maps_smaller_than_a_sample():
    pool = partial(roi_align, output_size=7, spatial_scale=0.25, aligned=False)
    value, pull = jax.vjp(lambda f: pool(f, jnp.zeros((0, 4))), jnp.ones((H, W, C)))
    assert value.shape == (0, 7, 7, C)
    assert not np.asarray(pull(value)[0]).any()
    single = pool(jnp.full((1, 1, 1), 3.0), jnp.array([[0.0, 0.0, 4.0, 4.0]]))
    np.testing.assert_allclose(single, 3.0, rtol=1e-6)


def test_pyramid_pools_each_box_on_its_level_and_vmaps():
    rng = np.random.default_rng(8)
    cases = [pyramid_case(rng, 33) for _ in range(2)]
    options = {"output_size": 3, "sampling_ratio": 1, "aligned": True}
    pool = partial(pyramid_roi_align, first_level=2, **options)

    @jax.jit
    def run(levels, boxes):
        """Value and gradient of the pyramid, and those of each level for its boxes put together."""
        level = jax.vmap(partial(assign_levels, levels=(2, 5)))(boxes)

        def by_levels(levels):
            total = 0.0
            for l, features in enumerate(levels, start=2):
                own = jax.vmap(partial(roi_align, spatial_scale=2.0**-l, **options))
                on_level = (level == l)[..., None, None, None]
                total += jnp.where(on_level, own(features, boxes), 0.0)
            return total

        together = jax.vjp(lambda levels: jax.vmap(pool)(levels, boxes), levels)
        return [
            (value, pull(jnp.sin(value))) for value, pull in (together, jax.vjp(by_levels, levels))
        ]

    got, want = run(*jax.tree.map(lambda *arrays: jnp.stack(arrays), *cases))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(got[0][1], pool(*cases[1]), atol=1e-5)


def test_bfloat16_features_are_summed_in_float32():
    features, boxes = features_and_boxes(9)
    rounded = jnp.asarray(features, jnp.bfloat16)
    pool = partial(roi_align, output_size=7, spatial_scale=0.25, aligned=True)
    value, pull = jax.vjp(lambda f: pool(f, boxes), rounded)
    wide = pool(rounded.astype(jnp.float32), boxes)
    assert value.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, wide.astype(jnp.bfloat16))
    (gradient,) = pull(jnp.ones_like(value))
    assert gradient.dtype == jnp.bfloat16
    _, pull = jax.vjp(lambda f: pool(f, boxes), rounded.astype(jnp.float32))
    np.testing.assert_array_equal(gradient, pull(jnp.ones(wide.shape))[0].astype(jnp.bfloat16))


def test_impossible_sizes():
    features, boxes = features_and_boxes()
    options = {"output_size": 2, "spatial_scale": 1.0, "aligned": True}
    for name in ("output_size", "sampling_ratio"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            roi_align(features, boxes, **options | {name: 0})
    with pytest.raises(ValueError, match="levels is empty"):
        pyramid_roi_align([], boxes, output_size=2, first_level=2, aligned=True)


@pytest.mark.parametrize(
    ("features", "told"),
    [
        (np.ones((2, 4, 4, 1), np.float32), r"features are float32 of shape \(2, 4, 4, 1\)"),
        (np.ones((4, 4, 1), np.int32), r"features are int32 of shape \(4, 4, 1\)"),
    ],
)
def test_features_of_a_batch_and_integers_are_refused(features: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        unchecked(
            ops.roi_align, features, np.ones((1, 4), np.float32), output_size=1, spatial_scale=1.0,
            aligned=True, sampling_ratio=1,
        )  # fmt: skip
