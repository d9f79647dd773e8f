"""Layouts of PyTorch against ours: by what the layers compute, and back without a trace."""

import numpy as np
import pytest

from harmonic_jax.pretrained.transform import (
    SAME,
    Transform,
    background_last,
    class_rows,
    conv_kernel,
    flattened_linear_kernel,
    linear_kernel,
    transposed_conv_kernel,
)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (SAME, (5,)),
        (conv_kernel(), (4, 3, 5, 2)),
        (linear_kernel(), (4, 3)),
        (transposed_conv_kernel(), (4, 3, 2, 2)),
        (flattened_linear_kernel(2, 3), (4, 30)),
        (background_last(3), (8,)),
        (conv_kernel().then(background_last(3)), (8, 2, 3, 3)),
        (linear_kernel().then(class_rows(3, 4, has_background=True)), (16, 6)),
    ],
)
def test_there_and_back_is_the_same(transform: Transform, shape: tuple[int, ...]) -> None:
    array = numbers(*shape)
    ours = transform.to_ours(array)
    np.testing.assert_array_equal(transform.to_torch(ours), array)
    assert sorted(ours.ravel()) == sorted(array.ravel())
    assert transform.torch_shape(ours.shape) == shape
    if len(shape) == 4 or transform is not SAME:
        assert ours.shape != shape or not np.array_equal(ours, array)


def test_a_linear_layer_on_a_flattened_map() -> None:
    weight, feature = numbers(4, 5 * 2 * 3), numbers(5, 2, 3)  # [o (c h w)], [c h w]
    expected = weight @ feature.reshape(-1)
    kernel = flattened_linear_kernel(2, 3).to_ours(weight)
    np.testing.assert_allclose(feature.transpose(1, 2, 0).reshape(-1) @ kernel, expected, rtol=1e-5)


def test_a_transposed_convolution() -> None:
    torch = pytest.importorskip("torch", reason="the layout is PyTorch's")
    weight, x = numbers(3, 4, 2, 2), numbers(1, 3, 5, 6)
    expected = torch.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), stride=2)
    kernel = transposed_conv_kernel().to_ours(weight)
    ours = np.einsum("bihw,yxio->bohywx", x, kernel).reshape(1, 4, 10, 12)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_background_moves_from_the_first_to_the_last_row_of_every_anchor() -> None:
    kernel = numbers(2 * 4, 5)  # 2 anchors of background and 3 classes
    ours = linear_kernel().then(background_last(3)).to_ours(kernel)
    for anchor in range(2):
        for label in range(4):
            there = 4 * anchor + (label + 1) % 4
            np.testing.assert_array_equal(ours[:, 4 * anchor + label], kernel[there])


def test_the_deltas_of_a_class_stay_together() -> None:
    bias = numbers(4 * 4)  # background and 3 classes, 4 numbers each
    kept = class_rows(3, 4, has_background=True).to_ours(bias)
    np.testing.assert_array_equal(kept.reshape(4, 4), bias.reshape(4, 4)[[1, 2, 3, 0]])
    dropped = class_rows(3, 4, has_background=False)
    np.testing.assert_array_equal(dropped.to_ours(bias), bias[4:])
    np.testing.assert_array_equal(dropped.to_torch(bias[4:])[:4], 0)
    np.testing.assert_array_equal(dropped.to_torch(bias[4:])[4:], bias[4:])
    assert dropped.torch_shape((12,)) == (16,)
