"""Construction of the tables, and what they refuse."""

import types
from typing import Any

import numpy as np
import pytest

from harmonic_jax.metrics.tables import (
    DetectionTable,
    GroundTruthTable,
    box_sizes,
    concatenate_detections,
)

BOX = [0.0, 0.0, 4.0, 2.0]


def truth(**columns: object) -> GroundTruthTable:
    defaults: dict[str, object] = {
        "image_ids": [5, 7],
        "image_id": [7],
        "boxes": [BOX],
        "labels": [1],
        "is_crowd": [False],
        "is_difficult": [False],
        "area": [8.0],
        "class_names": ("cat", "dog"),
        "category_ids": (1, 2),
    }
    return GroundTruthTable(**(defaults | columns))  # type: ignore[arg-type]


def found(**columns: object) -> DetectionTable:
    defaults: dict[str, object] = {"image_id": [7], "boxes": [BOX], "scores": [0.5], "labels": [0]}
    return DetectionTable(**(defaults | columns))  # type: ignore[arg-type]


def test_columns_have_the_promised_types() -> None:
    table = truth(boxes=np.array([BOX], np.float32), labels=np.array([1], np.int64))
    types_ = [getattr(table, c).dtype for c in ("image_ids", "image_id", "boxes", "labels", "area")]
    assert types_ == [np.int64, np.int64, np.float64, np.int32, np.float64]
    assert table.is_crowd.dtype == table.is_difficult.dtype == np.bool_
    assert box_sizes(table).tolist() == [[4.0, 2.0]]


def test_empty_lists_are_empty_columns() -> None:
    for table in (DetectionTable([], [], [], []), concatenate_detections([])):
        assert table.boxes.shape == (0, 4)
        assert box_sizes(table).shape == (0, 2)
        assert table.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("make", "columns", "message"),
    [
        (truth, {"image_ids": [7, 7]}, "image_ids holds the id 7 twice"),
        (truth, {"image_id": [6]}, "object 0 is of image 6, which is not in image_ids"),
        (truth, {"labels": [2]}, r"ground truth 0 of image 7 has label 2; it must be in 0\.\.1"),
        (truth, {"boxes": [[0, 0, np.nan, 1]]}, "ground truth 0 of image 7 has boxes .*nan.* fin"),
        (truth, {"area": [np.inf]}, "ground truth 0 of image 7 has area inf"),
        (truth, {"area": [1.0, 2.0]}, r"area has shape \(2,\); the other columns make it \(1,\)"),
        (truth, {"boxes": [[0, 0, 1]]}, r"boxes has shape \(1, 3\)"),
        (truth, {"class_names": ("cat", "cat")}, "class_names is .* 2 different values"),
        (truth, {"category_ids": (1,)}, r"category_ids is \(1,\); it must be 2 different values"),
        (truth, {"is_crowd": [2]}, "is_crowd has type int64; it must convert to bool"),
        (found, {"scores": [np.nan]}, "detection 0 of image 7 has scores nan; numbers must be fin"),
        (found, {"boxes": [[0, 0, 1e101, 1]]}, "detection 0 of image 7 has boxes"),
        (found, {"labels": [-1]}, "detection 0 of image 7 has label -1; it must be >= 0"),
        (found, {"labels": [0.5]}, "labels has type float64; it must convert to int32"),
    ],
)
def test_tables_refuse(make: Any, columns: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(**columns)


def test_from_records() -> None:
    def record(image_id: int, count: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            image_id=image_id,
            boxes=np.arange(4 * count, dtype=np.float32).reshape(-1, 4),
            labels=np.full(count, 1, np.int32),
            is_crowd=np.zeros(count, bool),
            is_difficult=np.ones(count, bool),
            area=np.full(count, 3, np.float32),
            masks=None,
            original_id=None,
            height=30,
            width=40 + image_id,
        )

    table = GroundTruthTable.from_records(
        [record(9, 2), record(4, 0), record(2, 1)], ["cat", "dog"], [1, 2]
    )
    assert table.image_ids.tolist() == [9, 4, 2]
    assert table.image_id.tolist() == [9, 9, 2]
    assert table.image_sizes.tolist() == [[30, 49], [30, 44], [30, 42]]
    assert table.boxes[2].tolist() == [0, 1, 2, 3]
    assert table.is_difficult.all()
    assert table.class_names == ("cat", "dog")
    assert len(GroundTruthTable.from_records([], ["cat"], [1]).labels) == 0


def test_from_padded_takes_the_valid_rows() -> None:
    table = DetectionTable.from_padded(
        image_id=np.array([3, 8]),
        boxes=np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        scores=np.array([[0.9, 0.8, np.nan], [0.7, np.nan, np.nan]], np.float32),
        labels=np.array([[0, 1, -1], [2, -1, -1]]),
        valid=np.array([[True, True, False], [True, False, False]]),
    )
    assert table.image_id.tolist() == [3, 3, 8]
    assert table.labels.tolist() == [0, 1, 2]
    assert table.boxes[:, 0].tolist() == [0, 4, 12]


def test_concatenate_keeps_rows_and_exact_sizes() -> None:
    first = found(boxes=[[0.01, 0.0, 32.01, 2.0]], sizes=[[32.0, 2.0]])
    both = concatenate_detections([first, found(image_id=[2])])
    assert both.image_id.tolist() == [7, 2]
    assert box_sizes(both)[0, 0] == 32.0 != 32.01 - 0.01


def test_numbers_that_a_column_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="labels holds a number that int32 has as 0"):
        found(labels=np.array([2**32]))
    with pytest.raises(ValueError, match="image_id holds a number that int64 has as -1"):
        found(image_id=np.array([2**64 - 1], np.uint64))
