"""Run lengths against pycocotools, which defines the format, and against the pixels."""

import pickle
from typing import Any

import numpy as np
import pycocotools.mask
import pytest

from harmonic_jax.masks import RleTable, encode_masks, encode_segmentations, join_tables


def encode(segmentation: Any, height: int, width: int) -> tuple[bytes, str]:
    """Counts, and what was wrong; on the second row of a table, as neighbours must not matter."""
    good = {"size": [height, width], "counts": [height * width]}
    sizes = np.array([[height, width]] * 3)
    table, faults = encode_segmentations([good, segmentation, good], sizes)
    assert all(fault.row == 1 and "\n" not in fault.message for fault in faults)
    assert len(table) == 3
    assert table.areas()[[0, 2]].tolist() == [0, 0]
    return table[1]["counts"], faults[0].kind if faults else ""


def random_masks(seed: int) -> np.ndarray:
    """Up to 5 masks of any density: empty, full, single pixels, noise."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 70, 2)
    return rng.random((rng.integers(0, 6), height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])


@pytest.mark.parametrize("seed", range(25))
def test_a_table_holds_what_pycocotools_encodes(seed: int) -> None:
    """And the runs of the pixels, which lead back to it."""
    masks = random_masks(seed)
    table = encode_masks(masks)
    assert len(table) == len(masks)
    runs, bounds = table.runs()
    for row, mask in enumerate(masks):
        own = runs[bounds[row] : bounds[row + 1]]
        np.testing.assert_array_equal(np.repeat(np.arange(len(own)) % 2, own), mask.T.ravel())
        rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert table[row] == rle
        np.testing.assert_array_equal(table.decode(row), mask)
        assert table.areas()[row] == mask.sum() == pycocotools.mask.area(rle)
        x, y, width, height = pycocotools.mask.toBbox(rle)
        assert table.boxes()[row].tolist() == [x, y, x + width, y + height]
    again = RleTable.from_runs(runs, bounds, masks.shape[1:])
    assert list(again) == list(table)


def test_long_runs_take_more_characters() -> None:
    """Differences of both signs, up to the largest that 32 bits hold in pycocotools."""
    runs = [5, 1, 2**29, 2**24, 7, 2**9, 15, 16, 31, 32, 2**30, 3]
    height = sum(runs)
    counts, _ = encode({"size": [height, 1], "counts": runs}, height, 1)
    theirs = pycocotools.mask.frPyObjects({"size": [height, 1], "counts": runs}, height, 1)
    assert counts == theirs["counts"]
    assert RleTable.from_bytes([counts], np.array([[height, 1]])).runs()[0].tolist() == runs


def test_rows_slices_and_joins() -> None:
    masks = np.random.default_rng(0).random((6, 9, 7)) < 0.3
    table = encode_masks(masks)
    rows = [table[i] for i in range(6)]
    assert table[-1] == rows[5]
    with pytest.raises(IndexError):
        table[6]
    for piece in (slice(2, 5), slice(4, 2), slice(5, None, -2)):
        assert list(table[piece]) == rows[piece]
    assert list(table[1:5].take(np.array([3, 0, 3]))) == [rows[4], rows[1], rows[4]]
    assert list(table.take(np.array([1, 0, 0, 0, 1, 0], bool))) == [rows[0], rows[4]]
    assert list(join_tables([table[4:], table[:0], table[:1]])) == [rows[4], rows[5], rows[0]]
    assert len(join_tables([])) == 0
    assert list(pickle.loads(pickle.dumps(table))) == rows
    with pytest.raises(ValueError, match="read-only"):
        table.counts[0] = 0


@pytest.mark.parametrize(
    "counts", ["", "52203\x00", "5220", "5220P", "P" * 9 + "0", "~~", "522030", "52203P"]
)
def test_counts_that_are_no_mask_do_not_reach_into_the_next(
    counts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first and the last row of a piece of the table, and between."""
    monkeypatch.setattr("harmonic_jax.masks.rle.ROWS_AT_ONCE", 7)
    for bad in (0, 6, 7, 12, 19):
        masks = [{"size": [4, 4], "counts": counts if row == bad else "52203"} for row in range(20)]
        table, faults = encode_segmentations(masks, np.array([[4, 4]] * 20))
        assert [(fault.row, fault.kind) for fault in faults] == [(bad, "malformed")]
        assert table.areas().tolist() == [0 if row == bad else 4 for row in range(20)]


def test_areas_and_boxes_of_large_tables() -> None:
    masks = np.random.default_rng(0).random((600, 6, 5)) < 0.4
    table = encode_masks(masks)
    np.testing.assert_array_equal(table.areas(), masks.sum(axis=(1, 2)))
    np.testing.assert_array_equal(table.boxes()[555], encode_masks(masks[555:556]).boxes()[0])


def square(x: float, y: float, side: float = 6) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.mark.parametrize(
    "polygons",
    [
        [square(2, 3)],
        [square(2, 3), square(5.5, 5.25), square(20, 10, 3)],
        [[0.5, 0.5, 29.7, 4.1, 17.3, 19.9]],
        [square(-4, -4), square(27, 17)],  # over the border
        [np.array(square(2, 3))],
    ],
)
def test_polygons_are_drawn_as_pycocotools_draws_them(polygons: list) -> None:
    counts, fault = encode(polygons, 20, 30)
    parts = [list(map(float, polygon)) for polygon in polygons]
    theirs = pycocotools.mask.merge(pycocotools.mask.frPyObjects(parts, 20, 30))
    assert (counts, fault) == (theirs["counts"], "")


def test_a_malformed_polygon_is_left_out_of_its_mask() -> None:
    nan, far = float("nan"), [0, 0, 9, 9, 1e9, 0]
    for bad in ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, nan, 6], far, "text", None,
                ["1"] * 6, [[1, 2], [3, 4], [5, 6]], [[1], [2, 3]], [10**400] * 6):  # fmt: skip
        assert encode([square(2, 3), bad], 20, 30) == (encode([square(2, 3)], 20, 30)[0], "part")
        assert encode([bad], 20, 30) == (encode(None, 20, 30)[0], "malformed")


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        (None, "missing"),
        ([], "missing"),
        ("52203", "malformed"),
        (square(2, 3), "malformed"),
        ({"size": [4, 4], "counts": [1, 2]}, "malformed"),
        ({"size": [4, 4], "counts": [20, -4]}, "malformed"),
        ({"size": [4, 4], "counts": [8.0, 8.0]}, "malformed"),
        ({"size": [4, 4], "counts": [[8], [4, 4]]}, "malformed"),
        ({"size": [4, 4], "counts": []}, "malformed"),
        ({"size": [4, 4], "counts": [2**40, 16 - 2**40]}, "malformed"),
        ({"size": [4, 4], "counts": "522\u20ac3"}, "malformed"),
        ({"size": [4, 4]}, "malformed"),
        ({"size": [4, 5], "counts": [20]}, "size"),
        ({"counts": [16]}, "size"),
    ],
)
def test_what_is_no_mask_says_what_kind(segmentation: object, kind: str) -> None:
    counts, found = encode(segmentation, 4, 4)
    assert found == kind
    assert counts == encode_masks(np.zeros((1, 4, 4)))[0]["counts"]


def test_run_lengths_in_all_three_spellings() -> None:
    for counts in ([5, 2, 2, 2, 5], "52203", b"52203", np.array([5, 2, 2, 2, 5])):
        assert encode({"size": [4, 4], "counts": counts}, 4, 4) == (b"52203", "")


@pytest.mark.parametrize(
    ("segmentation", "size"),
    [
        ([[0, 0, 2**31 - 2, 0, 2**31 - 2, 9]], [2**31 - 1, 2**31 - 1]),
        ({"size": [2**17, 2**17], "counts": [2**34]}, [2**17, 2**17]),
        ({"size": [2**17, 2**17], "counts": "0"}, [2**17, 2**17]),
        ([[0, 0, 2**30, 0, 2**30, 1]], [1, 2**30]),  # an outline of 10^10 places
        ([np.tile([0, 0, 1000, 1000], 30_000)], [1000, 1000]),
    ],
)
def test_what_would_take_gigabytes_to_draw_is_no_mask(segmentation: Any, size: list[int]) -> None:
    masks, faults = encode_segmentations([segmentation], np.array([size]))
    assert [fault.kind for fault in faults] == ["malformed"]
    assert masks.areas().tolist() == [0]
    assert masks.boxes().tolist() == [[0, 0, 0, 0]]


def test_a_long_outline_is_drawn() -> None:
    """Of the very polygon that is refused where it is longer."""
    points = np.tile([0, 0, 1000, 1000, 0, 1000], 2001)  # odd: what is inside stays inside
    masks, faults = encode_segmentations([[points]], np.array([[1000, 1000]]))
    assert not faults
    assert masks.areas()[0] > 400_000
