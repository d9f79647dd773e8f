"""What values of a COCO file mean."""

from typing import Any

import pytest

from harmonic_jax.coco_format.values import (
    as_int64,
    box,
    class_id,
    identity,
    number,
    unknown,
)

NONE_OF_THEM = [None, True, False, 1.5, float("nan"), float("inf"), [], [1], {}, "", 1e17]


@pytest.mark.parametrize("value", NONE_OF_THEM)
def test_what_is_no_id(value: Any) -> None:
    assert identity(value) is None
    assert class_id(value) is None


@pytest.mark.parametrize("value", [0, -3, 2**63, 10**40, "a", "7"])
def test_ids_are_themselves(value: Any) -> None:
    assert identity(value) == value
    assert type(identity(7.0)) is int


def test_ids_in_tables_are_64_bits_and_different() -> None:
    ids = [0, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**40, "0", "a", "\ud800", 2**64]
    inside = [as_int64(key) for key in ids]
    assert inside[:4] == ids[:4]
    assert len(set(inside)) == len(ids)
    assert all(2**62 <= key < 2**63 for key in inside[4:])
    assert as_int64("0001_d") == 7882664119260407298  # the same on every day, in every file


def test_numbers_that_no_float_holds_are_none() -> None:
    assert number(10**301) is None
    assert box([1, 2, 10**400, 4]) is None
    assert box([1, 2.5, True, 4]) is None
    assert box((1, 2, 3, 4)) is None
    assert box([1, 2, 3.5, 4]) == (1, 2, 3.5, 4)


def test_a_text_and_a_number_are_two_ids_and_that_is_said() -> None:
    assert unknown("7", {7}, "the list") == "'7' is not in the list, but 7 is"
    assert unknown(7, {"7"}, "the list") == "7 is not in the list, but '7' is"
    for value in ("8", 8, "x", "²", "9" * 5000):
        assert unknown(value, {7, "7"}, "the list").endswith(" is not in the list")
