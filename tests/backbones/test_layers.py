"""Pooling against NumPy written from its definition, and the standardisation of images."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.backbones.layers import max_pool, mean_pool, normalize_images

POOLS = {
    "resnet": {"size": 3, "stride": 2, "padding": 1, "ceil_mode": False},
    "vgg": {"size": 2, "stride": 2},
    "pool5 of ssd": {"size": 3, "stride": 1, "padding": 1},
}


def windows(length: int, *, size: int, stride: int, padding: int = 0, ceil_mode: bool = True):
    """The cells of each window along one axis, those outside left out."""
    rounding = math.ceil if ceil_mode else math.floor
    count = rounding((length + 2 * padding - size) / stride) + 1
    starts = [i * stride - padding for i in range(count)]
    return [range(max(s, 0), min(s + size, length)) for s in starts]


@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (7, 4)])
@pytest.mark.parametrize("num_values", [1, 3, 1000], ids=["equal", "ties", "distinct"])
@pytest.mark.parametrize("name", POOLS)
def test_max_pool(name: str, num_values: int, shape: tuple[int, int]) -> None:
    """Values, and gradients: they go to the first of equal cells, as in PyTorch."""
    rng = np.random.default_rng(3)
    x = rng.integers(0, num_values, (2, *shape, 3)).astype(np.float32)
    rows, columns = (windows(length, **POOLS[name]) for length in shape)
    y, pullback = jax.vjp(lambda x: max_pool(x, **POOLS[name]), jnp.asarray(x))
    assert y.shape == (2, len(rows), len(columns), 3)
    weights = rng.standard_normal(y.shape).astype(np.float32)
    gradient = np.zeros(x.shape, np.float32)
    for b, i, j, c in np.ndindex(y.shape):
        cells = ((row, column) for row in rows[i] for column in columns[j])
        best = max(cells, key=lambda cell: x[b, *cell, c])  # the first of equal ones
        assert y[b, i, j, c] == x[b, *best, c]
        gradient[b, *best, c] += weights[b, i, j, c]
    np.testing.assert_allclose(pullback(jnp.asarray(weights))[0], gradient, atol=1e-6)


def test_mean_pool() -> None:
    """Cells at the border are means of what there is."""
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    found = np.asarray(mean_pool(jnp.asarray(x), 2))
    assert found.shape == (2, 3, 2, 3)
    for row, column in np.ndindex(3, 2):
        cells = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].astype(np.float64)
        np.testing.assert_allclose(found[:, row, column], cells.mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(("length", "size", "padding"), [(4, 1, 0), (3, 2, 1), (5, 2, 0)])
def test_a_window_that_begins_behind_the_map_is_left_out(
    length: int, size: int, padding: int
) -> None:
    """As PyTorch does; it would hold nothing but -inf."""
    x = jnp.arange(length * length, dtype=jnp.float32).reshape(1, length, length, 1)
    y = max_pool(x, size=size, stride=2, padding=padding)
    assert bool(jnp.isfinite(y).all())
    assert y.shape[1:3] == (-(-length // 2),) * 2 if padding == 0 else (2, 2)


def test_max_pool_passes_nan_on() -> None:
    """One cell of each of 16 images is NaN."""
    x = np.ones((16, 4, 4, 1), np.float32)
    for image, cell in enumerate(np.ndindex(4, 4)):
        x[image, *cell] = np.nan
    y = np.asarray(max_pool(jnp.asarray(x), **POOLS["resnet"]))
    rows = windows(4, **POOLS["resnet"])
    for i, j in np.ndindex(2, 2):
        expected = np.isnan(x[:, rows[i]][:, :, rows[j]]).any((1, 2, 3))
        np.testing.assert_array_equal(np.isnan(y[:, i, j, 0]), expected)


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_images_are_normalised_with_imagenet_statistics() -> None:
    images = random_images(2, 3, 4)
    expected = (images / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    actual = normalize_images(jnp.asarray(images))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    mean, std = np.array([1, 2, 3], np.float32), np.array([2, 4, 8], np.float32)
    actual = normalize_images(jnp.asarray(images), mean=mean, std=std)
    np.testing.assert_allclose(actual, (images - [1.0, 2, 3]) / [2, 4, 8], atol=1e-5)


def test_padding_is_the_mean_colour_whatever_it_held() -> None:
    images = random_images(2, 6, 7)
    actual = np.array(normalize_images(jnp.asarray(images), jnp.array([[6.0, 4.0], [2.0, 7.0]])))
    plain = np.asarray(normalize_images(jnp.asarray(images)))
    for image, (h, w) in enumerate([(6, 4), (2, 7)]):
        np.testing.assert_array_equal(actual[image, :h, :w], plain[image, :h, :w])
        actual[image, :h, :w] = 0.0
    assert (actual == 0).all()


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8)]
)
def test_other_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"images is .* it must be uint8 \[b, h, w, 3\]"):
        normalize_images(jnp.asarray(images))
