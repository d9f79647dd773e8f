"""Default boxes against loops written from the Caffe original, and against torchvision."""

import math

import numpy as np
import pytest
from harmonic_jax.assign.default_boxes import make_default_boxes

from harmonic_jax.config import DefaultBoxConfig, SSDConfig
from harmonic_jax.detectors.parts.anchors import level_shapes

SSD300 = SSDConfig()
SSD512 = SSDConfig(
    extra_layers=("3x3/2", "3x3/2", "3x3/2", "3x3/2", "4x4"),
    default_boxes=DefaultBoxConfig(
        sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
        max_ratios=(2, 3, 3, 3, 3, 2, 2),
        steps=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
    ),
)


def ssd_boxes(config: SSDConfig, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    boxes = config.default_boxes
    return make_default_boxes(
        shape,
        config.level_shapes(shape),
        sizes=boxes.sizes[:-1],
        large_sizes=boxes.sizes[1:],
        max_ratios=boxes.max_ratios,
        steps=boxes.steps,
        clip_sides=boxes.clip_sides,
    )


def refinedet_boxes(side: int) -> tuple[np.ndarray, ...]:
    strides = (8.0, 16.0, 32.0, 64.0)
    return make_default_boxes(
        (side, side),
        level_shapes((side, side), (3, 6)),
        sizes=[4 * stride for stride in strides],
        large_sizes=None,
        max_ratios=(2, 2, 2, 2),
        steps=strides,
    )


@pytest.mark.parametrize(
    ("levels", "counts"),
    [
        (ssd_boxes(SSD300, (300, 300)), (5776, 2166, 600, 150, 36, 4)),
        (ssd_boxes(SSD512, (512, 512)), (16384, 6144, 1536, 384, 96, 16, 4)),
        (refinedet_boxes(320), (4800, 1200, 300, 75)),
        (refinedet_boxes(512), (12288, 3072, 768, 192)),
    ],
    ids=["ssd300: 8732", "ssd512: 24564", "refinedet320: 6375", "refinedet512: 16320"],
)
def test_counts(levels: tuple[np.ndarray, ...], counts: tuple[int, ...]) -> None:
    assert tuple(len(level) for level in levels) == counts
    assert sum(counts) in (8732, 24564, 6375, 16320)


def caffe_boxes(
    cells: int, *, step: float, small: float, large: float, ratios: tuple[int, ...]
) -> np.ndarray:
    """The Caffe layer: min size, sqrt(min * max), then each ratio and its inverse."""
    boxes = []
    for row in range(cells):
        for column in range(cells):
            x, y = (column + 0.5) * step, (row + 0.5) * step
            sides = [(small, small), (math.sqrt(small * large), math.sqrt(small * large))]
            for ratio in ratios:
                for r in (ratio, 1 / ratio):
                    sides.append((small * math.sqrt(r), small / math.sqrt(r)))
            boxes += [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for w, h in sides]
    return np.array(boxes)


def test_ssd300_is_caffes() -> None:
    sizes = ((30, 60), (60, 111), (111, 162), (162, 213), (213, 264), (264, 315))
    ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    cells, steps = (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300)
    levels = ssd_boxes(SSD300, (300, 300))
    for level, n, step, (small, large), ratio in zip(
        levels, cells, steps, sizes, ratios, strict=True
    ):
        expected = caffe_boxes(n, step=step, small=small, large=large, ratios=ratio)
        np.testing.assert_allclose(level, expected, atol=1e-4)


def test_ssd512_is_caffes() -> None:
    levels = ssd_boxes(SSD512, (512, 512))
    expected = caffe_boxes(2, step=256, small=384.0, large=460.8, ratios=(2,))
    np.testing.assert_allclose(levels[5], expected, atol=1e-4)
    expected = caffe_boxes(1, step=512, small=460.8, large=537.6, ratios=(2,))
    np.testing.assert_allclose(levels[6], expected, atol=1e-4)


def test_refinedet_has_no_larger_square() -> None:
    # 4 strides a side; then twice as wide as high, then twice as high as wide.
    root = math.sqrt(2)
    expected = [(32, 32), (32 * root, 32 / root), (32 / root, 32 * root)]
    first = refinedet_boxes(320)[0][:3]
    np.testing.assert_allclose(first[:, 2:] - first[:, :2], expected, rtol=1e-6)
    np.testing.assert_allclose((first[:, 2:] + first[:, :2]) / 2, 4.0)


def test_torchvisions_choices() -> None:
    torch = pytest.importorskip("torch", reason="torchvision is the oracle")
    try:
        from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
        from torchvision.models.detection.image_list import ImageList
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    from harmonic_jax.pretrained.models import SSD300_VGG16

    generator = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    images = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    features = [torch.zeros(1, 1, n, n) for n in (38, 19, 10, 5, 3, 1)]
    expected = generator(images, features)[0].numpy()
    levels = ssd_boxes(SSD300_VGG16, (300, 300))
    np.testing.assert_allclose(np.concatenate(levels), expected, atol=1e-3)
    # The longest sides of the last level are cut to the image's.
    widths = levels[-1][:, 2] - levels[-1][:, 0]
    assert widths.max() == 300 < 0.87 * 300 * math.sqrt(2)


def test_other_shapes() -> None:
    boxes = DefaultBoxConfig(sizes=(8, 16, 32, 64, 128), max_ratios=(1,) * 4, steps=(0,) * 4)
    config = SSDConfig(extra_layers=("3x3/2", "4x4"), default_boxes=boxes)
    assert config.level_shapes((240, 333)) == ((30, 42), (15, 21), (8, 11), (7, 10))
    # A step of 0 spreads centers over the image, each axis on its own.
    (level,) = make_default_boxes(
        (60, 100), [(3, 4)], sizes=[8.0], large_sizes=None, max_ratios=[1], steps=[0.0]
    )
    centers = (level[:, :2] + level[:, 2:]) / 2
    np.testing.assert_allclose(centers[:4, 0], [12.5, 37.5, 62.5, 87.5])
    np.testing.assert_allclose(centers[::4, 1], [10, 30, 50])


def test_an_image_without_room_for_a_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images of 96 x 128 .* level 5"):
        SSDConfig().level_shapes((96, 128))
