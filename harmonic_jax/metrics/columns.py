"""What the columns of the tables must be; every refusal names the column or the image."""

from typing import Any

import numpy as np


def check_labels(
    name: str, image_id: np.ndarray, labels: np.ndarray, num_classes: int | None
) -> None:
    """Refuses labels [rows] below 0 and, where the number of classes is known, too large ones.

    Raises:
      ValueError: names the first row that is wrong, and its image.
    """
    wrong = labels < 0
    if num_classes is not None:
        wrong |= labels >= num_classes
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        legal = ">= 0" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(
            f"{name} {row} of image {image_id[row]} has label {labels[row]}; it must be {legal}"
        )


def set_column(table: object, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Converts a column of a frozen table.

    Raises:
      TypeError: the type does not convert without loss of meaning.
      ValueError: the column has another shape.
    """
    column = np.asarray(getattr(table, name))
    if column.size == 0 and 0 in shape:
        column = np.zeros(shape, dtype)  # an empty list has no type and no second axis
    if column.shape != shape:
        raise ValueError(f"{name} has shape {column.shape}; the other columns make it {shape}")
    if not np.can_cast(column.dtype, dtype, "same_kind"):
        raise TypeError(f"{name} has type {column.dtype}; it must convert to {dtype.__name__}")
    object.__setattr__(table, name, column.astype(dtype, copy=False))


def set_tuple(table: object, name: str, length: int) -> None:
    """Makes a field of a frozen table a tuple.

    Raises:
      ValueError: it has another length, or a value twice.
    """
    values = tuple(getattr(table, name))
    if len(values) != length or len(set(values)) != length:
        raise ValueError(f"{name} is {values}; it must be {length} different values, one a class")
    object.__setattr__(table, name, values)


def refuse_non_finite(table: Any, name: str, column: str) -> None:
    """Refuses a column, [rows] or [rows, n], with NaN or infinity in it.

    Raises:
      ValueError: names the first such row, and its image.
    """
    values: np.ndarray = getattr(table, column)
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        raise ValueError(
            f"{name} {row} of image {table.image_id[row]} has {column} {values[row].tolist()}; "
            "every number must be finite"
        )
