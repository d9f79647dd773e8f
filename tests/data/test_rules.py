"""Rules about boxes, the report they write, and the table of records they give."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.config import DataConfig
from harmonic_jax.data.decode import NOTES, REFUSALS
from harmonic_jax.data.records import Annotations, Record, RecordTable
from harmonic_jax.data.report import MAX_EXAMPLES, DataReport, Reason
from harmonic_jax.data.rules import apply_rules

CLASSES = ("cat", "dog")
NAN = float("nan")
INF = float("inf")


def raw(*images: list[tuple[float, float, float, float]], **fields: Any) -> Annotations:
    """Images of 50 x 100 pixels (height, width) with these boxes, all of class 0."""
    owners = np.repeat(np.arange(len(images)), [len(boxes) for boxes in images])
    number = len(owners)
    defaults: dict[str, Any] = {
        "image_ids": np.arange(len(images)) + 7,
        "file_names": tuple(f"{i}.jpg" for i in range(len(images))),
        "sizes": np.tile(np.array([[50, 100]], np.int32), (len(images), 1)),
        "owners": owners,
        "boxes": np.array([box for boxes in images for box in boxes], np.float64).reshape(-1, 4),
        "labels": np.zeros(number, np.int32),
        "is_crowd": np.zeros(number, bool),
        "is_difficult": np.zeros(number, bool),
        "area": np.full(number, np.nan),
    }
    return Annotations(**(defaults | fields))


def apply(
    annotations: Annotations, max_objects: int = 100, one_based: bool = False
) -> tuple[RecordTable, DataReport]:
    config = DataConfig(max_objects=max_objects)
    report = DataReport()
    table = apply_rules(
        annotations, config, class_names=CLASSES, report=report, one_based=one_based
    )
    return table, report


GOOD = (10.0, 10.0, 20.0, 30.0)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 5, 5, 20), Reason.ZERO_SIZE),
        ((30, 5, 20, 9), Reason.INVERTED),
        ((NAN, 5, 20, 9), Reason.NOT_FINITE),
        ((-INF, 5, 9, 9), Reason.NOT_FINITE),
        ((100, 5, 120, 9), Reason.OUTSIDE),
        ((-9, 5, 0, 9), Reason.OUTSIDE),
        ((-1e308, -1e308, -1e307, 1e308), Reason.OUTSIDE),
        # A sliver that float32 rounds to nothing.
        ((64.0, 5, 64.0 + 1e-7, 9), Reason.ZERO_SIZE),
    ],
)
def test_a_bad_box_is_dropped_counted_and_named(box: Any, reason: Reason) -> None:
    table, report = apply(raw([GOOD, box], [GOOD]))
    np.testing.assert_array_equal(table.boxes, np.array([GOOD, GOOD], np.float32))
    assert set(report.findings) == {reason}
    assert report.count(reason) == 1
    assert report.examples(reason)[0].startswith("0.jpg: cat (")
    assert report.findings[reason].outcome == "object dropped"


def test_a_box_that_leaves_the_image_is_clipped() -> None:
    boxes = [
        (-3, 5, 20, 9),
        (5, -3, 20, 9),
        (5, 5, 120, 9),
        (5, 5, 20, 51),
        (-1e308,) * 2 + (1e308,) * 2,
    ]
    clipped = [(0, 5, 20, 9), (5, 0, 20, 9), (5, 5, 100, 9), (5, 5, 20, 50), (0, 0, 100, 50)]
    table, report = apply(raw(boxes))
    np.testing.assert_array_equal(table.boxes, clipped)
    assert {rule: finding.count for rule, finding in report.findings.items()} == {"clipped": 5}
    np.testing.assert_array_equal(table.area, [(c - a) * (d - b) for a, b, c, d in clipped])
    table, report = apply(raw([(-1e-5, 0, 100.00001, 50)]))  # rounding is no fault
    np.testing.assert_array_equal(table.boxes, [[0, 0, 100, 50]])
    assert not report.findings


def test_one_based_corners_are_compared_as_written_and_then_shifted() -> None:
    boxes = [(1.0, 1.0, 100.0, 50.0), (504.0 - 480, 7, 504.0 - 480, 7), (0, 1, 9, 9)]
    table, report = apply(raw(boxes), one_based=True)
    np.testing.assert_array_equal(table.boxes, [[0, 0, 100, 50], [0, 0, 9, 9]])
    assert report.count(Reason.ZERO_SIZE) == 1
    assert report.examples(Reason.ZERO_SIZE) == ("0.jpg: cat (24, 7, 24, 7)",)
    assert report.count(Reason.CLIPPED) == 1  # xmin = 0 lies left of the first pixel


def test_only_equal_objects_of_one_image_are_repeats_and_all_stay() -> None:
    boxes = [GOOD, GOOD, (10.0, 10.0, 20.0, 31.0), GOOD]
    table, report = apply(raw(boxes, [GOOD], labels=np.array([0, 1, 0, 0, 0])))
    assert len(table.boxes) == 5
    assert report.count(Reason.DUPLICATE_OBJECT) == 1


def test_flags_are_kept_and_counted() -> None:
    flags = np.array([True, False])
    table, report = apply(raw([GOOD, (1, 2, 3, 4)], is_crowd=flags, is_difficult=~flags))
    assert table[0].is_crowd.tolist() == [True, False]
    assert table[0].is_difficult.tolist() == [False, True]
    assert report.count(Reason.CROWD) == report.count(Reason.DIFFICULT) == 1
    assert report.count(Reason.EMPTY_IMAGE) == 0


def test_images_without_trainable_objects_are_counted_and_stay() -> None:
    table, report = apply(raw([], [GOOD], [GOOD], [(5, 5, 5, 5)], is_crowd=np.array([1, 0, 0]) > 0))
    assert len(table) == 4
    assert report.examples(Reason.EMPTY_IMAGE) == ("0.jpg", "1.jpg", "3.jpg")


def test_the_surplus_over_max_objects_is_counted_and_stays() -> None:
    boxes = [(0.0, 0.0, i + 1.0, 9.0) for i in range(5)]
    table, report = apply(raw(boxes, boxes[:2], [*boxes[:3]]), max_objects=2)
    assert len(table.boxes) == 10
    assert report.count(Reason.TOO_MANY_OBJECTS) == 4
    assert report.examples(Reason.TOO_MANY_OBJECTS) == (
        "0.jpg: 3 of 5 objects",
        "2.jpg: 1 of 3 objects",
    )


def test_area_is_the_data_sets_own_where_it_has_one() -> None:
    areas = np.array([12.5, NAN, -1.0, 0.0])
    table, _ = apply(raw([GOOD, (0, 0, 2, 3), (0, 0, 4, 5), (0, 0, 6, 7)], area=areas))
    assert table[0].area.tolist() == [12.5, 6, 20, 0]


def test_no_images_and_no_objects() -> None:
    table, report = apply(raw())
    assert len(table) == 0
    assert list(table) == []
    assert not report.findings
    table, _ = apply(raw([]))
    assert table[0].boxes.shape == (0, 4)


def test_table_is_a_read_only_sequence_of_records() -> None:
    table, _ = apply(raw([GOOD], [], [(1, 2, 3, 4), GOOD]))
    first, last = table[0], table[-1]
    assert (first.image_id, first.file_name, first.height, first.width) == (7, "0.jpg", 50, 100)
    assert type(first.image_id) is type(first.height) is int
    np.testing.assert_array_equal(last.boxes, np.array([(1, 2, 3, 4), GOOD], np.float32))
    assert [len(record.boxes) for record in table] == [1, 0, 2]
    assert [record.image_id for record in table] == [7, 8, 9]
    for field, dtype in [("boxes", "float32"), ("labels", "int32"), ("area", "float32"),
                         ("is_crowd", "bool"), ("is_difficult", "bool")]:  # fmt: skip
        assert getattr(first, field).dtype == dtype
    with pytest.raises(ValueError, match="read-only"):
        first.boxes[0, 0] = 1.0
    with pytest.raises(IndexError):
        table[3]
    assert isinstance(pickle.loads(pickle.dumps(table))[2], Record)


def test_fingerprint_sees_every_field_and_the_order() -> None:
    def fingerprint(*images: Any, names: tuple[str, ...] = CLASSES, **fields: Any) -> str:
        return apply(raw(*images, **fields))[0].fingerprint(names)

    base = fingerprint([GOOD], [(1, 2, 3, 4)])
    assert base == fingerprint([GOOD], [(1, 2, 3, 4)])
    assert re.fullmatch("[0-9a-f]{64}", base)
    others = [
        fingerprint([(1, 2, 3, 4)], [GOOD]),
        fingerprint([GOOD, (1, 2, 3, 4)], []),
        fingerprint([GOOD], [(1, 2, 3, 5)]),
        fingerprint([GOOD], [(1, 2, 3, 4)], labels=np.array([0, 1])),
        fingerprint([GOOD], [(1, 2, 3, 4)], file_names=("0.jpg", "2.jpg")),
        fingerprint([GOOD], [(1, 2, 3, 4)], image_ids=np.array([7, 9])),
        fingerprint([GOOD], [(1, 2, 3, 4)], is_crowd=np.array([False, True])),
        fingerprint([GOOD], [(1, 2, 3, 4)], is_difficult=np.array([False, True])),
        fingerprint([GOOD], [(1, 2, 3, 4)], sizes=np.array([[50, 100], [50, 101]])),
        fingerprint([GOOD], [(1, 2, 3, 4)], names=("dog", "cat")),
        fingerprint([GOOD], [(1, 2, 3, 4)], file_names=("0.jpg\0", "1.jpg")),
    ]
    assert len({base, *others}) == len(others) + 1


def test_reports_add_up_and_name_the_first_cases() -> None:
    report, other = DataReport(), DataReport()
    report.add(Reason.CROWD, (f"{i}.jpg" for i in range(100)), count=100)
    other.add(Reason.CROWD, ["x.jpg"])
    other.add("truncated", ["y.jpg: 3 bytes"], outcome="image refused")
    report.merge(other)
    assert report.count(Reason.CROWD) == 101
    assert report.examples(Reason.CROWD) == tuple(f"{i}.jpg" for i in range(MAX_EXAMPLES))
    assert report.count("truncated") == 1
    assert report.count("no such rule") == 0
    assert report.format().splitlines()[-1].strip() == "y.jpg: 3 bytes"
    assert DataReport().format().startswith("no rule applied")


def test_every_rule_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE))
    assert {str(reason) for reason in Reason} | set(REFUSALS) | set(NOTES) <= documented


def test_what_is_not_trained_on_is_not_counted_as_such() -> None:
    """Difficult objects without `use_difficult`: the loader leaves such an image out."""
    found = raw([GOOD], [GOOD] * 3, is_difficult=np.array([1, 0, 0, 1], bool))
    for use, empty, surplus in ((True, False, 2), (False, True, 1)):
        report = DataReport()
        config = DataConfig(max_objects=1, use_difficult=use)
        apply_rules(found, config, class_names=CLASSES, report=report)
        assert (Reason.EMPTY_IMAGE in report.findings) == empty
        assert report.findings[Reason.TOO_MANY_OBJECTS].count == surplus


def test_an_area_that_float32_cannot_hold_is_the_boxes() -> None:
    table, _ = apply(raw([GOOD] * 3, area=np.array([1e39, INF, 7.0])))
    assert table.area.tolist() == [200.0, 200.0, 7.0]
