"""Anchors and default boxes against their definitions, Caffe's loops, and torchvision."""

import math

import numpy as np
import pytest

from harmonic_jax import config as c
from harmonic_jax.detectors.parts.anchors import level_shapes, make_anchors, make_default_boxes
from harmonic_jax.pretrained.models import SSD300_VGG16
from tests.ops.peers import torchvision_or_skip

RETINANET = c.AnchorConfig()
SHAPES = [(800, 1344), (128, 128), (97, 161), (600, 600), (1, 1)]
SSD300 = c.SSDConfig()
SSD512 = c.SSDConfig(
    extra_layers=("3x3/2", "3x3/2", "3x3/2", "3x3/2", "4x4"),
    default_boxes=c.DefaultBoxConfig(
        sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
        max_ratios=(2, 3, 3, 3, 3, 2, 2),
        steps=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
    ),
)


@pytest.mark.parametrize("image_shape", SHAPES)
def test_level_shapes_are_those_of_stride_two_convolutions(image_shape):
    """3x3, stride 2, padding 1, again and again: (n + 2 - 3) // 2 + 1."""
    shapes = [image_shape]
    for _ in range(7):
        shapes.append(tuple((n - 1) // 2 + 1 for n in shapes[-1]))
    assert level_shapes(image_shape, (3, 7)) == tuple(shapes[3:])


def test_anchors_follow_the_definition():
    """Area, ratio, center and order, in float64, one anchor at a time."""
    shapes = level_shapes((100, 130), (3, 5))
    levels = make_anchors((100, 130), (3, 5), RETINANET)
    for l, (anchors, (height, width)) in enumerate(zip(levels, shapes, strict=True), start=3):
        assert anchors.dtype == np.float32
        expected = []
        for i, j in np.ndindex(height, width):
            for r in (0.5, 1.0, 2.0):
                for s in (1.0, 2 ** (1 / 3), 2 ** (2 / 3)):
                    w, h = 4 * 2**l * s / r**0.5, 4 * 2**l * s * r**0.5
                    x, y = j * 2**l, i * 2**l
                    expected.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        np.testing.assert_allclose(anchors, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("image_shape", SHAPES[:4])
def test_rounded_anchors_equal_torchvision(image_shape):
    torch, torchvision = torchvision_or_skip()
    generator = torchvision.models.detection.retinanet._default_anchorgen()
    features = [torch.zeros(1, 1, *shape) for shape in level_shapes(image_shape, (3, 7))]
    images = torchvision.models.detection.image_list.ImageList(
        torch.zeros(1, 3, *image_shape), [image_shape]
    )
    (expected,) = generator(images, features)
    anchors = make_anchors(image_shape, (3, 7), c.AnchorConfig(rounding="torchvision"))
    np.testing.assert_array_equal(np.concatenate(anchors), expected.numpy())


def ssd_boxes(config: c.SSDConfig, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
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


def test_numbers_of_default_boxes():
    """The published ones."""
    made = (ssd_boxes(SSD300, (300, 300)), ssd_boxes(SSD512, (512, 512)), refinedet_boxes(320))
    assert [sum(map(len, levels)) for levels in made] == [8732, 24564, 6375]
    assert list(map(len, made[0])) == [5776, 2166, 600, 150, 36, 4]


def caffe_boxes(cells, *, step, small, large, ratios):
    """The Caffe layer: min size, sqrt(min * max), then each ratio and its inverse."""
    boxes = []
    for row, column in np.ndindex(cells, cells):
        x, y = (column + 0.5) * step, (row + 0.5) * step
        sides = [(small, small), (math.sqrt(small * large), math.sqrt(small * large))]
        for ratio in ratios:
            for r in (ratio, 1 / ratio):
                sides.append((small * math.sqrt(r), small / math.sqrt(r)))
        boxes += [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for w, h in sides]
    return np.array(boxes)


CAFFE = {  # cells, step, smaller and larger size, ratios of each level
    "ssd300": (
        SSD300,
        [(38, 8, 30, 60, (2,)), (19, 16, 60, 111, (2, 3)), (10, 32, 111, 162, (2, 3)),
         (5, 64, 162, 213, (2, 3)), (3, 100, 213, 264, (2,)), (1, 300, 264, 315, (2,))],
    ),
    "ssd512": (SSD512, [(2, 256, 384.0, 460.8, (2,)), (1, 512, 460.8, 537.6, (2,))]),
}  # fmt: skip


@pytest.mark.parametrize("name", CAFFE)
def test_default_boxes_are_caffes(name):
    config, rows = CAFFE[name]
    levels = ssd_boxes(config, (int(name[3:]),) * 2)[-len(rows) :]
    for level, (cells, step, small, large, ratios) in zip(levels, rows, strict=True):
        expected = caffe_boxes(cells, step=step, small=small, large=large, ratios=ratios)
        np.testing.assert_allclose(level, expected, atol=1e-4)


def test_refinedet_has_no_larger_square():
    """4 strides a side; then twice as wide as high, then twice as high as wide."""
    root = math.sqrt(2)
    expected = [(32, 32), (32 * root, 32 / root), (32 / root, 32 * root)]
    first = refinedet_boxes(320)[0][:3]
    np.testing.assert_allclose(first[:, 2:] - first[:, :2], expected, rtol=1e-6)
    np.testing.assert_allclose((first[:, 2:] + first[:, :2]) / 2, 4.0)


def test_torchvision_cuts_the_longest_sides():
    levels = ssd_boxes(SSD300_VGG16, (300, 300))
    widths = levels[-1][:, 2] - levels[-1][:, 0]
    assert widths.max() == 300 < 0.87 * 300 * math.sqrt(2)


def test_other_shapes():
    boxes = c.DefaultBoxConfig(sizes=(8, 16, 32, 64, 128), max_ratios=(1,) * 4, steps=(0,) * 4)
    config = c.SSDConfig(extra_layers=("3x3/2", "4x4"), default_boxes=boxes)
    assert config.level_shapes((240, 333)) == ((30, 42), (15, 21), (8, 11), (7, 10))
    # A step of 0 spreads centers over the image, each axis on its own.
    (level,) = make_default_boxes(
        (60, 100), [(3, 4)], sizes=[8.0], large_sizes=None, max_ratios=[1], steps=[0.0]
    )
    centers = (level[:, :2] + level[:, 2:]) / 2
    np.testing.assert_allclose(centers[:4, 0], [12.5, 37.5, 62.5, 87.5])
    np.testing.assert_allclose(centers[::4, 1], [10, 30, 50])


def test_anchors_that_are_rounded_to_nothing_are_refused() -> None:
    """No object could be theirs."""
    config = c.AnchorConfig(size_factor=0.1, scales=(1.0,), rounding="torchvision")
    with pytest.raises(
        c.ConfigError, match=r"anchors.size_factor is 0.1; it must be larger: on lev"
    ):
        make_anchors((64, 64), (3, 5), config)
