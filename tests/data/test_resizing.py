"""`data.resizing = torchvision` against torchvision: sizes exactly, pixels up to their rounding."""

from typing import Any

import numpy as np
import pytest

from harmonic_jax.config import DataConfig
from harmonic_jax.data.loader import eval_batches
from tests.data.fake_source import FakeSource, encode, make_record


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
