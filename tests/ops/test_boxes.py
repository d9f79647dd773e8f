import jax
import numpy as np
import pytest

from harmonic_jax.ops.box_coder import decode_boxes, encode_boxes
from harmonic_jax.ops.boxes import box_area, clip_boxes, iou_of_coordinates, pairwise_iou
from tests.ops.peers import torchvision_or_skip
from tests.ops.scenes import random_boxes
from tests.shapes import unchecked

RNG = np.random.default_rng(0)
A, B = random_boxes(RNG, 60), random_boxes(RNG, 70)
DEGENERATE = np.array(
    [[3, 3, 3, 3], [3, 3, 3, 9], [9, 9, 2, 2], [0, 0, 0, 0], [-1e6, -1e6, 1e6, 1e6], [0, 0, 9, 9]],
    np.float32,
)


def iou_from_formula(a: np.ndarray, b: np.ndarray, dtype) -> np.ndarray:
    """Intersection over union, one rounding for each operation of the given type."""
    a, b = a.astype(dtype)[:, None], b.astype(dtype)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.prod(np.maximum(sides, 0), axis=-1, dtype=dtype)
    area_a, area_b = (np.prod(x[..., 2:] - x[..., :2], axis=-1, dtype=dtype) for x in (a, b))
    return intersection / (area_a + area_b - intersection)


def test_area_and_iou_follow_the_formula():
    np.testing.assert_allclose(pairwise_iou(A, B), iou_from_formula(A, B, np.float64), atol=3e-7)
    sides = A.astype(np.float64)[:, 2:] - A[:, :2]
    np.testing.assert_allclose(box_area(A), sides.prod(-1), rtol=1e-6)
    np.testing.assert_allclose(box_area(DEGENERATE), [0, 0, 0, 0, 4e12, 81])


def test_iou_rounds_the_same_wherever_it_is_compiled():
    """Fused multiply-adds would make it differ from plain float32, and from place to place."""
    expected = iou_from_formula(A, B, np.float32)
    np.testing.assert_array_equal(jax.jit(pairwise_iou)(A, B), expected)

    @jax.jit
    def reduced(a, b):  # As in a loop over boxes: nothing is stored, all is fused.
        iou = iou_of_coordinates(tuple(a.T[:, :, None]), tuple(b.T[:, None, :]))
        return iou.max(axis=0), (iou * 2).max(axis=1)

    for_b, for_a = reduced(A, B)
    np.testing.assert_array_equal(for_b, expected.max(axis=0))
    np.testing.assert_array_equal(for_a, expected.max(axis=1) * 2)

    @jax.jit
    def aligned(a, b):
        return iou_of_coordinates(tuple(a.T), tuple(b.T))

    many = random_boxes(RNG, 4000)
    for other in (many[::-1], np.roll(many, 1, axis=0), many + np.float32(3.3)):
        pairs = [
            iou_from_formula(a[None], b[None], np.float32)[0, 0]
            for a, b in zip(many, other, strict=True)
        ]
        np.testing.assert_array_equal(aligned(many, other), np.array(pairs))


def test_iou_equals_torchvision_bit_for_bit():
    torch, torchvision = torchvision_or_skip()
    expected = torchvision.ops.box_iou(torch.tensor(A), torch.tensor(B)).numpy()
    np.testing.assert_array_equal(jax.jit(pairwise_iou)(A, B), expected)


def test_iou_of_degenerate_boxes_is_zero_with_finite_gradients():
    iou = np.asarray(pairwise_iou(DEGENERATE, DEGENERATE))
    assert np.isfinite(iou).all()
    assert (iou[:4] == 0).all()
    assert iou[5, 5] == 1
    gradient = jax.jit(jax.grad(lambda a: pairwise_iou(a, DEGENERATE).sum()))(DEGENERATE)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("batch", [(), (3,)])
def test_clip_boxes_puts_x_into_width_and_y_into_height(batch):
    boxes = RNG.uniform(-50, 150, (*batch, 20, 4)).astype(np.float32)
    size = RNG.uniform(20, 100, (*batch, 2)).astype(np.float32)
    height, width = size[..., 0], size[..., 1]
    limit = np.stack([width, height, width, height], axis=-1)[..., None, :]
    expected = np.minimum(np.maximum(boxes, 0), limit)
    np.testing.assert_array_equal(clip_boxes(boxes, size), expected)


def test_what_is_no_box_is_refused() -> None:
    """JAX reads a column that is not there as the last one."""
    three, five = np.ones((2, 3), np.float32), np.ones((2, 5), np.float32)
    four = np.ones((2, 4), np.float32)
    for wrong in (three, five, np.float32(1)):
        for call in (
            lambda x: box_area(x),
            lambda x: pairwise_iou(four, x),
            lambda x: pairwise_iou(x, four),
            lambda x: clip_boxes(x, np.ones(2)),
            lambda x: encode_boxes(x, four),
            lambda x: decode_boxes(x, four),
            lambda x: decode_boxes(four, x),
        ):
            with pytest.raises(ValueError, match="its last axis must hold four numbers"):
                unchecked(call, wrong)
