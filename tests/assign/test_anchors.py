import numpy as np
import pytest

from harmonic_jax.detectors.parts.anchors import level_shapes, make_anchors
from tests.ops.peers import torchvision_or_skip

SCALES, RATIOS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)
SHAPES = [(800, 1344), (128, 128), (97, 161), (600, 600), (1, 1)]


@pytest.mark.parametrize("image_shape", SHAPES)
@pytest.mark.parametrize("levels", [(3, 7), (2, 6), (5, 5)])
def test_level_shapes_are_those_of_stride_two_convolutions(image_shape, levels):
    """3x3, stride 2, padding 1, again and again: (n + 2 - 3) // 2 + 1."""
    sizes, expected = image_shape, []
    for level in range(1, levels[1] + 1):
        sizes = tuple((n - 1) // 2 + 1 for n in sizes)
        if level >= levels[0]:
            expected.append(sizes)
    assert level_shapes(image_shape, levels) == tuple(expected)


def test_anchors_follow_the_definition():
    """Area, ratio, center and order, in float64, one anchor at a time."""
    levels = make_anchors((100, 130), levels=(3, 5), size_factor=4.0, scales=SCALES, ratios=RATIOS)
    shapes = level_shapes((100, 130), (3, 5))
    for l, (anchors, (height, width)) in enumerate(zip(levels, shapes, strict=True), start=3):
        assert anchors.dtype == np.float32
        expected = [
            (
                j * 2**l - 2 ** (l + 1) * s / r**0.5,
                i * 2**l - 2 ** (l + 1) * s * r**0.5,
                j * 2**l + 2 ** (l + 1) * s / r**0.5,
                i * 2**l + 2 ** (l + 1) * s * r**0.5,
            )
            for i in range(height)
            for j in range(width)
            for r in RATIOS
            for s in SCALES
        ]
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
    anchors = make_anchors(
        image_shape, levels=(3, 7), size_factor=4.0, scales=SCALES, ratios=RATIOS, rounding=True
    )
    np.testing.assert_array_equal(np.concatenate(anchors), expected.numpy())


@pytest.mark.parametrize(
    ("image_shape", "levels", "name"),
    [((0, 10), (3, 7), "image_shape"), ((9, 9), (5, 3), "levels"), ((9, 9), (-1, 3), "levels")],
)
def test_impossible_pyramids_are_refused(image_shape, levels, name):
    with pytest.raises(ValueError, match=name):
        level_shapes(image_shape, levels)
