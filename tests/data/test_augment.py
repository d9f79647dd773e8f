"""Boxes must still bound their pixels after every transform; colours against a float reference."""

import colorsys
from collections import Counter

import numpy as np
import pytest

from harmonic_jax.config import AugmentConfig, DataConfig
from harmonic_jax.data import augment as augmentation
from harmonic_jax.data.augment import (
    Sample,
    adjust_hsv,
    augment,
    erase,
    expand,
    flip,
    photometric_distort,
    random_crop,
)
from harmonic_jax.data.resize import FILL_COLOUR
from tests.data.fake_source import noise


def draw(height: int, width: int, boxes: np.ndarray) -> np.ndarray:
    """An image that shows each box filled with a colour of its own, (10, 20, ..) in red."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int), start=1):
        image[y1:y2, x1:x2, 0] = 10 * number
    return image


def bounds(image: np.ndarray, number: int) -> np.ndarray:
    """The box around all pixels of a drawn box, found by looking at every pixel."""
    ys, xs = np.nonzero((image[..., 0] == 10 * number) & (image[..., 1] == 0))
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def as_sample(image: np.ndarray, boxes: np.ndarray) -> Sample:
    """With the rows of the boxes as labels."""
    return Sample(image, boxes, np.arange(len(boxes)), boxes, None, boxes)


# Apart from each other, so that each stays visible.
BOXES = np.array([[3, 5, 20, 17], [30, 2, 44, 33], [6, 22, 27, 39]], np.float32)
HEIGHT, WIDTH = 40, 50


@pytest.fixture
def image() -> np.ndarray:
    return draw(HEIGHT, WIDTH, BOXES)


@pytest.mark.parametrize("axis", [0, 1])
def test_flips(axis: int, image: np.ndarray) -> None:
    flipped, boxes = flip(image, BOXES, axis=axis)
    np.testing.assert_array_equal(flipped, np.flip(image, axis))
    assert boxes.dtype == np.float32
    for number, box in enumerate(boxes, start=1):
        np.testing.assert_array_equal(bounds(flipped, number), box)
    assert not np.array_equal(boxes, BOXES)
    again, original = flip(flipped, boxes, axis=axis)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(original, BOXES)


def test_expand_moves_boxes_with_the_image(image: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    ratios, is_same = [], []
    for _ in range(300):
        canvas, boxes = expand(image, BOXES, rng, max_ratio=4.0, max_pixels=10**9)
        assert boxes.dtype == np.float32
        for number, box in enumerate(boxes, start=1):
            np.testing.assert_array_equal(bounds(canvas, number), box)
        is_same.append(canvas is image)
        if canvas is not image:
            ratios.append(canvas.shape[0] / HEIGHT)
            assert (canvas == FILL_COLOUR).all(axis=-1).sum() == canvas[..., 0].size - image[
                ..., 0
            ].size
    assert 0.4 < np.mean(is_same) < 0.6
    assert 1.0 <= min(ratios) < 1.3
    assert 3.7 < max(ratios) <= 4.0


def test_expand_keeps_to_the_pixel_cap(image: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        canvas, _ = expand(image, BOXES, rng, max_ratio=8.0, max_pixels=3 * HEIGHT * WIDTH)
        assert canvas[..., 0].size <= 3 * HEIGHT * WIDTH
    canvas, _ = expand(image, BOXES, rng, max_ratio=8.0, max_pixels=5)  # less than the image
    assert canvas.shape == image.shape


def test_crop_keeps_objects_by_their_centre(image: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([image[..., 0], xs, ys], axis=-1).astype(np.uint8)  # pixels know their place
    kept_counts = Counter()
    for _ in range(300):
        window, boxes, kept, _ = random_crop(image, BOXES, rng)
        kept_counts[len(kept)] += 1
        assert boxes.dtype == np.float32
        x1, y1 = window[0, 0, 1:]
        x2, y2 = window[-1, -1, 1:] + 1
        for row, (left, top, right, bottom) in enumerate(BOXES):
            x, y = (left + right) / 2, (top + bottom) / 2
            assert (row in kept) == (x1 < x < x2 and y1 < y < y2)
        for row, box in zip(kept, boxes, strict=True):
            visible = window * np.uint8([1, 0, 0])
            np.testing.assert_array_equal(bounds(visible, row + 1), box)
        if window.shape != image.shape:
            height, width = window.shape[:2]
            assert 0.5 <= height / width <= 2.0
            assert height >= int(0.3 * HEIGHT)
            assert width >= int(0.3 * WIDTH)
    assert set(kept_counts) == {1, 2, 3}


@pytest.mark.parametrize("option", range(1, 7))
def test_crop_reaches_the_drawn_overlap(option: int, image: np.ndarray) -> None:
    class FixedOption:
        """A generator whose choice of the option is known."""

        def __init__(self, seed: int):
            self._rng = np.random.default_rng(seed)
            self.uniform = self._rng.uniform

        def integers(self, bound: int) -> int:
            return option if bound == 7 else int(self._rng.integers(bound))

    large = np.array([[5, 5, 45, 35]], np.float32)
    min_iou = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)[option]
    for seed in range(20):
        window, boxes, kept, _ = random_crop(draw(HEIGHT, WIDTH, large), large, FixedOption(seed))
        if window.shape == image.shape:  # no window qualified
            continue
        inter = (boxes[0, 2:] - boxes[0, :2]).prod()
        union = 40 * 30 + window[..., 0].size - inter
        assert inter / union >= min_iou
        assert list(kept) == [0]


def test_tiny_images_survive_everything_and_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    changes = AugmentConfig(photometric=True, expand=4.0, crop=True, vertical_flip=0.5, erase=0.5)
    config = DataConfig(augment=changes)
    for size, number in ((1, 1), 1), ((1, 40), 1), ((3, 2), 1), ((30, 20), 0):
        image = np.full((*size, 3), 99, np.uint8)
        box = np.array([[0, 0, size[1], size[0]]] * number, np.float32).reshape(-1, 4)
        image.setflags(write=False)
        box.setflags(write=False)
        for _ in range(30):
            changed, boxes, kept, *_ = augment(as_sample(image, box), rng, config)
            assert min(changed.shape) >= 1
            assert len(boxes) == len(kept) <= number
            assert (boxes[:, :2] < boxes[:, 2:]).all()
    window, *_ = random_crop(image, box, rng)  # without objects it is left whole
    assert window is image


def reference_hsv(image: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    """One pixel after the other, in floating point."""
    out = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255.0))
        out[place] = colorsys.hsv_to_rgb((h + hue / 360) % 1.0, min(1.0, s * saturation), v)
    return out * 255


@pytest.mark.parametrize(
    ("saturation", "hue"), [(1.0, 0.0), (0.5, 0.0), (1.5, 0.0), (1.0, 18.0), (0.7, -18.0)]
)
def test_hsv_changes_agree_with_floating_point(saturation: float, hue: float) -> None:
    image = noise(24, 24, seed=3)
    found = adjust_hsv(image, saturation=saturation, hue=hue)
    error = np.abs(found - reference_hsv(image, saturation, hue))
    assert error.mean() < 1.5
    assert error.max() < 8
    if (saturation, hue) != (1.0, 0.0):
        assert np.abs(found.astype(int) - image).mean() > 4  # the test can fail


class Script:
    """A generator that plays back: `uniform` returns the values, `random` decides on or off."""

    def __init__(self, values: list[float], coins: list[float]):
        self._values, self._coins = iter(values), iter(coins)

    def uniform(self, low: float, high: float) -> float:
        value = next(self._values)
        assert low <= value <= high
        return value

    def random(self) -> float:
        return next(self._coins)

    def permutation(self, number: int) -> np.ndarray:
        return np.array([2, 0, 1])


ON, OFF = 0.0, 0.9


def distort(image: np.ndarray, coins: list[float]) -> np.ndarray:
    """Brightness 30, contrast 1.4, saturation 0.6, hue 12; coins: those four, last, channels."""
    return photometric_distort(image, Script([30.0, 1.4, 0.6, 12.0], coins))


def test_photometric_steps_one_by_one() -> None:
    image = noise(16, 16, seed=5)
    as_float = image.astype(float)
    brighter = np.clip(as_float + 30, 0, 255)
    np.testing.assert_array_equal(distort(image, [OFF] * 6), image)
    np.testing.assert_array_equal(distort(image, [ON, OFF, OFF, OFF, OFF, OFF]), brighter)
    np.testing.assert_array_equal(
        distort(image, [OFF, ON, OFF, OFF, ON, OFF]), np.clip(np.rint(as_float * 1.4), 0, 255)
    )
    np.testing.assert_array_equal(distort(image, [OFF] * 5 + [ON]), image[..., [2, 0, 1]])
    np.testing.assert_array_equal(
        distort(image, [OFF, OFF, ON, ON, OFF, OFF]), adjust_hsv(image, saturation=0.6, hue=12.0)
    )


@pytest.mark.parametrize("contrast_last", [False, True])
def test_photometric_order(contrast_last: bool) -> None:
    image = noise(16, 16, seed=5)
    expected = np.clip(image.astype(float) + 30, 0, 255)
    for step in ("hsv", "contrast") if contrast_last else ("contrast", "hsv"):
        if step == "contrast":
            expected = np.clip(expected * 1.4, 0, 255)
        else:
            expected = reference_hsv(expected, 0.6, 12.0)
    found = distort(image, [ON, ON, ON, ON, ON if contrast_last else OFF, OFF])
    assert np.abs(found - expected).mean() < 2.0


def test_photometric_draws_from_the_whole_range() -> None:
    gray = np.full((1, 1, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    levels = [int(photometric_distort(gray, rng)[0, 0, 0]) for _ in range(2000)]
    same = np.mean(np.array(levels) == 100)
    assert 0.23 < same < 0.32  # neither brightness nor contrast: 1/4, and rounding to nothing
    assert min(levels) < (100 - augmentation.BRIGHTNESS) * 0.6
    assert max(levels) > (100 + augmentation.BRIGHTNESS) * 1.4
    draws = [photometric_distort(gray, np.random.default_rng(7)) for _ in range(2)]
    np.testing.assert_array_equal(*draws)


def test_augment_follows_the_config(image: np.ndarray) -> None:
    def run(**options: object):
        config = DataConfig(augment=AugmentConfig(**{"flip": 0.0, **options}))
        return augment(as_sample(image, BOXES), np.random.default_rng(1), config)

    same, boxes, kept, frames, _, cuts, flipped_axes = run()
    assert same is image
    assert flipped_axes == ()
    np.testing.assert_array_equal(boxes, BOXES)
    np.testing.assert_array_equal(frames, BOXES)
    np.testing.assert_array_equal(cuts, BOXES)
    np.testing.assert_array_equal(kept, [0, 1, 2])
    np.testing.assert_array_equal(run(flip=1.0).image, image[:, ::-1])
    np.testing.assert_array_equal(run(vertical_flip=1.0).image, image[::-1])
    both = run(flip=1.0, vertical_flip=1.0)
    np.testing.assert_array_equal(both.image, image[::-1, ::-1])
    assert both.flipped_axes == (1, 0)


def test_erasing_fills_a_rectangle_with_noise(image: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    blank, areas, aspects = np.full((60, 80, 3), 7, np.uint8), [], []
    for _ in range(300):
        ys, xs = np.nonzero((erase(blank, rng) != 7).any(axis=-1))
        high, wide = np.ptp(ys) + 1, np.ptp(xs) + 1
        assert len(ys) > 0.98 * high * wide  # noise is rarely 7 three times
        areas.append(high * wide / 4800)
        aspects.append(high / wide)
    assert (blank == 7).all()
    assert 0.017 < min(areas) < 0.05 < 0.35 < max(areas) < 0.42
    assert 0.25 < min(aspects) < 0.6 < 2 < max(aspects) < 3.8
    same, changed = (
        augment(
            as_sample(image, BOXES),
            np.random.default_rng(1),
            DataConfig(augment=AugmentConfig(flip=0.0, erase=probability)),
        )
        for probability in (0.0, 1.0)
    )
    assert (same.image != changed.image).any()
    np.testing.assert_array_equal(same.boxes, changed.boxes)
