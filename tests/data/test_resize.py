"""Sizes of images, resizing and padding; `data.resizing = torchvision` against torchvision."""

from typing import Any

import numpy as np
import pytest

from harmonic_jax.config import DataConfig
from harmonic_jax.data.loader import eval_batches
from harmonic_jax.data.resize import FILL_COLOUR, fit_size, resize_image
from harmonic_jax.data.sample import empty_batch, write_image
from tests.data.fake_source import FakeSource, encode, make_record, noise


def reference_fit(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """The rule of the published detectors, in two branches."""
    scale = short_side / min(height, width)
    if max(height, width) * scale > max_side:
        scale = max_side / max(height, width)
    return round(height * scale), round(width * scale)


def test_fit_size_always_fits_the_bucket() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        height, width = rng.integers(1, 3000, 2)
        bucket = (800, 1344) if height <= width else (1344, 800)
        size = fit_size(height, width, short_side=800, max_side=1333, bounds=bucket)
        assert 1 <= size[0] <= bucket[0]
        assert 1 <= size[1] <= bucket[1]
        assert max(size) <= 1333
        expected = reference_fit(height, width, 800, 1333)
        assert size == (max(1, expected[0]), max(1, expected[1]))
        other = fit_size(height, width, short_side=800, max_side=1333, bounds=bucket[::-1])
        assert other[0] <= bucket[1]
        assert other[1] <= bucket[0]


@pytest.mark.parametrize("size", [(80, 100), (60, 75), (20, 25), (13, 17), (7, 90)])
def test_resized_boxes_bound_their_pixels(size: tuple[int, int]) -> None:
    for x1, y1, x2, y2 in (3, 5, 20, 17), (30, 2, 44, 33), (6, 22, 27, 39):
        alone = np.zeros((40, 50, 3), np.uint8)
        alone[y1:y2, x1:x2] = 255
        resized = resize_image(alone, size)
        assert resized.shape == (*size, 3)
        ys, xs = np.nonzero(resized[..., 0] >= 128)
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        scale = np.array([size[1] / 50, size[0] / 40] * 2)
        assert np.abs(found - np.array([x1, y1, x2, y2]) * scale).max() <= 0.51


def test_shrinking_a_lot_averages_areas() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 200  # bilinear sampling would look at the two black columns in between
    assert np.abs(resize_image(stripes, (16, 16)).astype(int) - 50).max() <= 1


def test_padding_is_the_mean_colour_and_nothing_else_changes() -> None:
    image = noise(32, 48)
    config = DataConfig(short_sides=(32,), max_side=64)
    batch = empty_batch(2, (32, 64), config)
    write_image(batch, 0, image, config, short_side=32)
    write_image(batch, 1, None, config, short_side=32)
    np.testing.assert_array_equal(batch.images[0, :, :48], image)
    assert (batch.images[0, :, 48:] == FILL_COLOUR).all()
    assert (batch.images[1] == FILL_COLOUR).all()
    assert batch.is_real.tolist() == [True, False]
    assert batch.image_size.tolist() == [[32, 48], [32, 64]]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.abs((np.array(FILL_COLOUR) / 255 - mean) / std).max() < 0.01


@pytest.fixture(scope="module")
def transform() -> Any:
    try:
        from torchvision.models.detection.transform import GeneralizedRCNNTransform
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    return GeneralizedRCNNTransform


def our_images(pictures: list[np.ndarray], config: DataConfig) -> list[np.ndarray]:
    records = [
        make_record(i, height=p.shape[0], width=p.shape[1], boxes=((0, 0, 9, 9),))
        for i, p in enumerate(pictures)
    ]
    source = FakeSource(records, [encode(p) for p in pictures])
    images = {}
    with eval_batches(source, config, batch_size=1) as batches:
        for batch in batches:
            h, w = batch.image_size[0].astype(int)
            images[int(batch.record_index[0])] = batch.images[0, :h, :w]
    return [images[i] for i in range(len(pictures))]


@pytest.mark.parametrize(
    "sizes",
    # Their scaled sides end in fractions above and below one half; the last is shrunk to a third.
    [((50, 77), (61, 47), (64, 64), (46, 90), (300, 271))],
)
@pytest.mark.parametrize("warp", [False, True])
def test_images_are_those_of_torchvision(transform: Any, sizes: tuple, warp: bool) -> None:
    import torch

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    config = DataConfig(
        short_sides=(96,),
        max_side=96 if warp else 160,
        resize="warp" if warp else "fit",
        resizing="torchvision",
        keep_empty=True,
    )
    fixed = {"fixed_size": (96, 96)} if warp else {}
    theirs = transform(96, 160, [0.0] * 3, [1.0] * 3, **fixed).eval()
    rounded = our_images(pictures, DataConfig(**{**vars(config), "resizing": "default"}))
    is_other_size = 0
    for picture, image, other in zip(pictures, our_images(pictures, config), rounded, strict=True):
        x = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))
        batch, _ = theirs([x])
        h, w = batch.image_sizes[0]
        expected = batch.tensors[0, :, :h, :w].permute(1, 2, 0).numpy()
        assert image.shape == expected.shape
        assert np.abs(image - expected).max() <= 1.0  # of 255
        is_other_size += other.shape != image.shape
        if picture.shape[0] == 300:  # our own choice averages areas
            assert warp is False or np.abs(other - expected).max() > 20
    assert is_other_size == (0 if warp else 3)
