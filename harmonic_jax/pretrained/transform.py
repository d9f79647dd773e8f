"""Rearrangements of an array between PyTorch's layout and ours: no value is ever computed.

Because each knows both directions, a layout that imports a model also exports it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """An array of PyTorch's <-> ours.

    Attributes:
        to_ours: PyTorch's array -> ours; a permutation of its elements (or a part of them).
        to_torch: ours -> PyTorch's; zeros where ours has no such element.
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]

    def then(self, other: "Transform") -> "Transform":
        """First this, then another, on the way from PyTorch to us."""
        return Transform(
            lambda a: other.to_ours(self.to_ours(a)), lambda a: self.to_torch(other.to_torch(a))
        )

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape there of an array that has this shape here."""
        return self.to_torch(np.broadcast_to(np.int8(0), shape)).shape


SAME = Transform(lambda a: a, lambda a: a)


def permuted(*axes: int) -> Transform:
    """`to_ours(a) = a.transpose(axes)`."""
    back = tuple(int(i) for i in np.argsort(axes))
    return Transform(lambda a: a.transpose(axes), lambda a: a.transpose(back))


def conv_kernel() -> Transform:
    """A convolution (grouped ones too): OIHW <-> HWIO.

    Example:
        >>> conv_kernel().to_ours(np.zeros((64, 3, 7, 7))).shape
        (7, 7, 3, 64)
    """
    return permuted(2, 3, 1, 0)


def linear_kernel() -> Transform:
    """A linear layer: `[o i]` <-> `[i o]`."""
    return permuted(1, 0)


def transposed_conv_kernel() -> Transform:
    """A transposed convolution: `[i o h w]` <-> `[h w i o]`, not flipped.

    Tap (y, x) of an input cell (r, c) adds to the output cell (stride r + y, stride c + x) on
    both sides.
    """
    return permuted(2, 3, 0, 1)


def flattened_linear_kernel(height: int, width: int) -> Transform:
    """A linear layer on a flattened map: `[o (c h w)]` <-> `[(h w c) o]`.

    Example:
        >>> flattened_linear_kernel(7, 7).to_ours(np.zeros((1024, 256 * 49))).shape
        (12544, 1024)
    """
    channels_first = Transform(
        lambda a: a.reshape(a.shape[0], -1, height, width),
        lambda a: a.reshape(a.shape[0], -1),
    )
    channels_last = Transform(
        lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
        lambda a: a.reshape(height, width, -1, a.shape[-1]).transpose(3, 2, 0, 1),
    )
    return channels_first.then(channels_last)


def background_last(num_classes: int, *, axis: int = -1, has_background: bool = True) -> Transform:
    """Background from the first place among the classes (PyTorch) to the last (ours).

    Apply it to our layout, that is `conv_kernel().then(background_last(k))` for a kernel and
    `background_last(k)` for a bias. The axis may hold several groups of classes (an SSD head has
    one an anchor: `[.., a * (k + 1)]`); for outputs that have several numbers a class, see
    `class_rows`.

    Args:
        num_classes: k, without background.
        axis: the axis of the outputs in our layout.
        has_background: False where our array has no element for background (`[.., a * k]`);
            then the way back writes zeros there.

    Example:
        >>> background_last(3).to_ours(np.arange(8)).tolist()  # two anchors
        [1, 2, 3, 0, 5, 6, 7, 4]
        >>> background_last(3).to_torch(np.array([1, 2, 3, 0, 5, 6, 7, 4])).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> background_last(3, has_background=False).to_ours(np.arange(4)).tolist()
        [1, 2, 3]
    """
    return class_rows(num_classes, 1, axis=axis, has_background=has_background)


def class_rows(
    num_classes: int, per_class: int, *, axis: int = -1, has_background: bool
) -> Transform:
    """Like `background_last`, for `per_class` numbers a class: class-wise box deltas have 4.

    The axis is `[(k + 1) * per_class]` there, classes first, and `[(k + has_background) *
    per_class]` here, in the same order but for background.

    Example:
        >>> deltas = class_rows(2, 4, has_background=False)
        >>> deltas.to_ours(np.arange(12)).tolist()
        [4, 5, 6, 7, 8, 9, 10, 11]
        >>> deltas.to_torch(np.ones(8, int)).tolist()
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    """

    def to_ours(array: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(array, axis, -1)
        rows = moved.reshape(*moved.shape[:-1], -1, num_classes + 1, per_class)
        classes, background = rows[..., 1:, :], rows[..., :1, :]
        ours = np.concatenate((classes, background), axis=-2) if has_background else classes
        return np.moveaxis(ours.reshape(*moved.shape[:-1], -1), -1, axis)

    def to_torch(array: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(array, axis, -1)
        num_rows = num_classes + has_background
        rows = moved.reshape(*moved.shape[:-1], -1, num_rows, per_class)
        classes, background = rows[..., :num_classes, :], rows[..., num_classes:, :]
        if not has_background:
            background = np.zeros_like(classes[..., :1, :])
        theirs = np.concatenate((background, classes), axis=-2)
        return np.moveaxis(theirs.reshape(*moved.shape[:-1], -1), -1, axis)

    return Transform(to_ours, to_torch)
