"""The worst cases are the worst, and their pictures show them where they are."""

from typing import Any

import numpy as np
import pytest

from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.tables import DetectionTable
from harmonic_jax.report.cases import (
    Images,
    add_pictures,
    window_around,
    worst_cases,
)
from tests.report.studies import studied, tables, truth_of


def by_hand() -> Study:
    """Image 10: a cat; image 20: a dog found well, a cat found late; image 30: a big missed dog."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 90, 90], [95, 0, 99, 4]]
    truth = truth_of([10, 20, 30], [10, 20, 20, 30, 30], boxes, [0, 1, 0, 1, 0], ("cat", "dog"))
    found = DetectionTable(
        image_id=[10, 20, 20, 20],
        # IoU .25 with the cat; on the dog, but called a cat; on the dog; on the cat.
        boxes=[[0, 0, 5, 5], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 58]],
        scores=[0.9, 0.8, 1.0, 0.3],
        labels=[0, 0, 1, 0],
    )
    raw = DetectionTable([20, 20], [[50, 50, 60, 60], [0, 0, 10, 10]], [0.2, 1.0], [0, 1])
    return Study(truth, found, raw)


def test_cases_by_hand() -> None:
    groups = {group.kind: group for group in worst_cases(by_hand())}
    texts = {
        kind: [(case.image_id, case.text) for case in group.cases] for kind, group in groups.items()
    }
    assert texts == {
        "misplaced": [(10, "cat: score 0.90, IoU 0.25")],
        "background": [
            (20, "cat: score 0.80, IoU 0.00; it overlaps an object of class dog by 0.90")
        ],
        "unsure": [(20, "cat: score 0.30, IoU 0.80")],
        "missed": [
            (30, "dog: missed; no box touches it"),
            (10, "cat: missed; the nearest box is of class cat: score 0.90, IoU 0.25"),
            (30, "cat: missed; no box touches it"),
        ],
        "lost": [(20, "cat: kept: score 0.30, IoU 0.80; before NMS: score 0.20, IoU 1.00")],
    }
    (lost,) = groups["lost"].cases
    assert (
        lost.boxes["truth"].boxes.tolist() == lost.boxes["raw"].boxes.tolist() == [[50, 50, 60, 60]]
    )
    assert lost.boxes["found"].boxes.tolist() == [[50, 50, 60, 58]]
    assert groups["background"].cases[0].boxes["truth"].boxes.tolist() == [[0, 0, 10, 10]]


@pytest.mark.parametrize("images", [4, 60])
def test_a_group_holds_few_of_an_image_worst_first(images: int) -> None:
    truth, _, found = tables(images=images)
    case, _ = studied(truth, found, resamples=0)
    (group,) = [g for g in worst_cases(case) if g.kind == "misplaced"]
    pairs, expected, seen = case.pairs, [], []
    rows = [
        i for i in range(len(pairs)) if pairs.iou[i] >= 0.1 and pairs.score[i] - pairs.iou[i] > 0.2
    ]
    for row in sorted(rows, key=lambda i: pairs.iou[i] - pairs.score[i]):
        if seen.count(pairs.image[row]) < 2 and len(seen) < 16:
            seen.append(pairs.image[row])
            expected.append(found.boxes[pairs.detection[row]].tolist())
    drawn = [box for c in group.cases for box in c.boxes["found"].boxes.tolist()]
    assert drawn == expected
    assert group.total == len(rows) > len(drawn)
    assert len(drawn) == 16 or images == 4


def test_windows_hold_the_boxes_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = (int(rng.integers(1, 900)), int(rng.integers(1, 900)))
        limit = np.array([size[1], size[0]] * 2)
        start = rng.uniform(-20, 1, (2, 2)) + rng.uniform(0, 1, (2, 2)) * limit[:2]
        boxes = np.hstack([start, start + rng.uniform(0, 400, (2, 2))])
        x1, y1, x2, y2 = window_around(boxes, size)
        assert 0 <= x1 < x2 <= size[1]
        assert 0 <= y1 < y2 <= size[0]
        inside = np.clip(boxes, 0, limit)
        assert (inside[:, :2] >= [x1 - 1, y1 - 1]).all()
        assert (inside[:, 2:] <= [x2 + 1, y2 + 1]).all()


def test_pictures_are_cut_out_once_each_and_may_be_missing() -> None:
    """A bright object lies in its window; large pictures become small."""
    asked: list[int] = []

    def pixels(image_id: int) -> Any:
        asked.append(image_id)
        image = np.zeros((1800, 2000, 3), np.uint8) if image_id == 30 else np.zeros((90, 100, 3))
        image[50:60, 50:60] = 250
        return None if image_id == 10 else image.astype(np.uint8)

    groups = worst_cases(by_hand())
    add_pictures(groups, Images(pixels))
    assert sorted(asked) == [10, 20, 30]
    for case in (case for group in groups for case in group.cases):
        assert (case.pixels is None) == (case.image_id == 10)
    (lost,) = groups[-1].cases
    x1, y1, x2, y2 = lost.window
    assert lost.pixels.shape == (y2 - y1, x2 - x1, 3)
    rows, columns = np.nonzero(lost.pixels[:, :, 0])
    truth = lost.boxes["truth"].boxes[0] - [x1, y1, x1, y1]
    assert truth.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]

    huge = Study(
        truth_of([1], [1], [[0, 0, 3000, 900]], [0], ("cat",)),
        DetectionTable([1], [[0, 0, 3000, 2000]], [0.9], [0]),
    )
    image = np.zeros((2000, 3000, 3), np.uint8)
    groups = worst_cases(huge)
    add_pictures(groups, Images(lambda image_id: image))
    (large,) = groups[0].cases
    assert large.pixels.shape == (267, 400, 3)
    assert large.window == (0, 0, 3000, 2000)
