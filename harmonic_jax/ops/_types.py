"""Types of annotations: those of jaxtyping where it is installed, of which tests check the shapes.

These operators need jax and numpy alone: elsewhere an annotation says no more than that it is an
array.
"""

import numpy as np
from jax import Array

try:
    from jaxtyping import Bool, Float, Int, Integer, Key, Real, UInt8, UInt32
except ImportError:

    class _Unchecked:
        def __class_getitem__(cls, shape: object) -> type:
            return Array

    Bool = Float = Int = Integer = Key = Real = UInt8 = UInt32 = _Unchecked  # type: ignore

AnyArray = Array | np.ndarray
"""Anchors are numpy: constants of whatever is compiled around them."""

__all__ = [
    "AnyArray", "Array", "Bool", "Float", "Int", "Integer", "Key", "Real", "UInt8", "UInt32",
]  # fmt: skip
