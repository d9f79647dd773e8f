"""TIDE's errors by hand, and against its authors' library where that is installed."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from harmonic_jax.metrics.consistency.measures import KINDS, find_errors
from harmonic_jax.metrics.consistency.sampling import sample_metrics
from harmonic_jax.metrics.consistency.study import AREA_NAMES, Study
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, box_sizes
from tests.metrics.consistency import brute
from tests.metrics.test_coco import make_found, make_truth


def hand_made() -> tuple[GroundTruthTable, DetectionTable]:
    """Two images, two classes; one detection of each kind."""
    truth = GroundTruthTable(
        image_ids=[1, 2],
        image_id=[1, 1, 1, 1, 2],
        boxes=[[0, 0, 10, 10], [50, 0, 60, 10], [0, 50, 10, 60], [80, 80, 90, 90], [0, 0, 9, 9]],
        labels=[0, 0, 1, 0, 1],
        is_crowd=[False] * 5,
        is_difficult=[False] * 5,
        area=[100, 100, 100, 100, 81],
        class_names=("cat", "dog"),
        category_ids=(1, 2),
    )
    boxes = [
        [0, 0, 10, 10],  # true
        [0, 0, 10, 9],  # duplicate
        [50, 0, 60, 3],  # location: IoU .3 with object 1, which is not found
        [0, 50, 10, 60],  # class: object 2 is a dog
        [0, 50, 10, 58],  # class: again, with a lower score
        [80, 80, 90, 83],  # both: IoU .3 with an object of another class
        [30, 30, 40, 40],  # background
    ]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    return truth, DetectionTable([1] * 7, boxes, scores, [0, 0, 0, 0, 0, 1, 1])


def named_errors(case: Study) -> tuple[list[str], np.ndarray, np.ndarray]:
    kind, claims, is_missed, _ = find_errors(case)
    return [KINDS[k] if k >= 0 else "true" for k in kind], claims, is_missed


def test_kinds_by_hand() -> None:
    truth, found = hand_made()
    case = Study(truth, found)
    kinds, claims, is_missed = named_errors(case)
    assert kinds == ["true", "duplicate", "location", "class", "class", "both", "background"]
    assert claims.tolist() == [-1, -1, 1, 2, -1, -1, -1]  # the better of the two claims 2
    assert np.flatnonzero(is_missed).tolist() == [3, 4]
    assert case.is_found.tolist() == [True, False, False, False, False]


def test_borders_between_kinds() -> None:
    """IoU .1 and .5 are badly placed (TIDE's <=), of an object that is found already as well."""
    truth = make_truth([[0, 0, 10, 10]])
    heights = [10, 5, 4.5, 1, 0.9]
    found = make_found([[0, 0, 10, h] for h in heights], [0.9, 0.8, 0.7, 0.6, 0.5])
    kinds, claims, _ = named_errors(Study(truth, found))
    assert kinds == ["true", "location", "location", "location", "background"]
    assert (claims == -1).all()


def test_costs_by_hand() -> None:
    """Cats: 3 objects; the order is TP FP FP FP FP, so AP50 is 34 of 101 recalls at precision 1."""
    values = sample_metrics(Study(*hand_made()), resamples=0, seed=0).values
    cat, dog = ({n: float(c[0]) for n, c in values["classes", k].items()} for k in ("cat", "dog"))
    assert cat["AP50"] == pytest.approx(34 / 101)
    # The badly placed box becomes a true positive: TP FP TP, up to recall 2/3 at precision 2/3.
    assert cat["dAP_location"] == pytest.approx(33 / 101 * 2 / 3)
    assert cat["dAP_class"] == cat["dAP_duplicate"] == 0.0  # nothing true comes after them
    assert cat["dAP_missed"] == pytest.approx(51 / 101 - 34 / 101)  # one of two is found
    # The dog of image 1 is found by the mended box; the other one is not: recall 1/2.
    assert dog["dAP_class"] == pytest.approx(51 / 101)
    assert dog["AP50"] == dog["dAP_location"] == 0.0
    overall = {n: float(c[0]) for n, c in values["overall", ""].items()}
    assert overall["dAP_class"] == pytest.approx((0 + 51 / 101) / 2)


def test_kinds_and_sizes_equal_loops() -> None:
    seen = set()
    for seed in range(12):
        truth, found = brute.case(seed)
        kind, _, _, area = find_errors(Study(truth, found))
        ours = {d: (KINDS[kind[d]], int(area[d])) for d in np.flatnonzero(kind >= 0).tolist()}
        assert ours == brute.errors(truth, found), seed
        seen |= set(ours.values())
    assert len(seen) > 10


def tidecv_errors(
    truth: GroundTruthTable, found: DetectionTable
) -> dict[tuple[str, str], dict[str, float]]:
    """Of all sizes, and of each as the library's qualifiers have it."""
    tidecv = pytest.importorskip("tidecv", reason="tidecv is the reference of TIDE's errors")
    from tidecv.errors.qualifiers import Qualifier

    # tidecv-light, the fork that needs NumPy alone, has the same name and other boxes.
    is_xyxy = not hasattr(tidecv, "datasets")

    def box_of(table: GroundTruthTable | DetectionTable, row: int) -> list[float]:
        ends = table.boxes[row, 2:] if is_xyxy else box_sizes(table)[row]
        return [*table.boxes[row, :2].tolist(), *ends.tolist()]

    data, results = tidecv.Data("truth"), tidecv.Data("found")
    for image in truth.image_ids.tolist():
        data.add_image(image, str(image))
        results.add_image(image, str(image))
    for k, name in enumerate(truth.class_names):
        data.add_class(k, name)
    for row in range(len(truth.labels)):
        image, label = int(truth.image_id[row]), int(truth.labels[row])
        data.add_ground_truth(image, label, box_of(truth, row))
    for row in range(len(found.labels)):
        image, label = int(found.image_id[row]), int(found.labels[row])
        results.add_detection(image, label, float(found.scores[row]), box_of(found, row))
    run = tidecv.TIDE().evaluate(data, results, mode=tidecv.TIDE.BOX)
    names = {
        "Cls": "class", "Loc": "location", "Both": "both", "Dupe": "duplicate",
        "Bkg": "background", "Miss": "missed",
    }  # fmt: skip
    assert all(run.error_dict.values())

    def area_range(entry: dict[str, Any]) -> int:
        x1, y1, x2, y2 = entry["bbox"]
        area = (x2 - x1) * (y2 - y1) if is_xyxy else x2 * y2
        return int(area > 1024) + int(area > 9216)

    def gains(qualifier: Any) -> dict[str, float]:
        fixed = run.fix_main_errors(qual=qualifier)
        return {f"dAP_{names[kind.short_name]}": gain / 100 for kind, gain in fixed.items()}

    expected = {("overall", ""): gains(None) | {"AP50": run.ap / 100}}
    for number, name in enumerate(AREA_NAMES):
        of_size = Qualifier(name, lambda entry, number=number: area_range(entry) == number)
        expected["areas", name] = gains(of_size)
    return expected


@pytest.mark.parametrize("seed", range(4))
def test_equals_tidecv(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without crowds, whose detections tidecv also sorts into kinds of errors, and without
    images that have no object, on which tidecv-light fails. Ten of COCO's recalls are not i / 100,
    as tidecv has them, but the double beside it; it matters where recall is exactly i / 100."""
    monkeypatch.setattr("harmonic_jax.metrics.coco.RECALLS", np.arange(101) / 100)
    truth, found = brute.detector_case(seed, num_images=40, objects=6, detections=30)
    has_objects = np.isin(truth.image_ids, truth.image_id)
    truth, found = brute.copies(truth, found, has_objects.astype(int))
    none = np.zeros(len(truth.labels), bool)
    truth = dataclasses.replace(truth, is_crowd=none, area=box_sizes(truth).prod(axis=1))
    assert set(truth.labels) == set(range(4))
    expected = tidecv_errors(truth, found)
    values = sample_metrics(Study(truth, found), resamples=0, seed=0).values
    for place, numbers in expected.items():
        ours = {name: float(values[place][name][0]) for name in numbers}
        assert ours == pytest.approx(numbers, abs=1e-9), place
        assert sum(numbers.values()) > 0.01
