"""COCO metrics against pycocotools, and rules that pycocotools does not have."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from harmonic_jax.metrics.coco import coco_metrics, format_table
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from tests.metrics.synthetic import (
    awkward_tables,
    coco_dicts,
    detector_output,
    pycocotools_metrics,
)

pytest.importorskip("pycocotools", reason="pycocotools is the reference of the COCO numbers")

TWELVE = [
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
]  # fmt: skip


def make_truth(boxes: list[list[float]], **columns: object) -> GroundTruthTable:
    """Objects of one image and one class, unless told otherwise."""
    rows = len(boxes)
    sides = np.array(boxes, float).reshape(-1, 2, 2)
    defaults: dict[str, object] = {
        "image_ids": [1],
        "image_id": [1] * rows,
        "labels": [0] * rows,
        "is_crowd": [False] * rows,
        "is_difficult": [False] * rows,
        "area": (sides[:, 1] - sides[:, 0]).prod(axis=1),
        "class_names": ("cell",),
        "category_ids": (1,),
    }
    return GroundTruthTable(boxes=boxes, **(defaults | columns))


def make_found(boxes: list[list[float]], scores: list[float]) -> DetectionTable:
    return DetectionTable([1] * len(boxes), boxes, scores, [0] * len(boxes))


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_equals_pycocotools_on_awkward_cases(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        truth, found = awkward_tables(seed)
        assert coco_metrics(truth, found) == pycocotools_metrics(*coco_dicts(truth, found)), seed


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_a_detectors_output(seed: int) -> None:
    truth, found = detector_output(seed, num_images=60, num_classes=12, objects=7, detections=60)
    ours = coco_metrics(truth, found)
    assert ours == pycocotools_metrics(*coco_dicts(truth, found))
    assert 0.05 < ours["AP"] < 0.9  # a set on which nothing or everything is found tests little
    assert list(ours)[:12] == TWELVE


def test_awkward_cases_are_awkward() -> None:
    """The cases do hold what the tests rely on."""
    cases = [awkward_tables(seed) for seed in range(200)]
    assert any(len(truth.labels) == 0 for truth, _ in cases)
    assert any(len(found.labels) == 0 for _, found in cases)
    assert any(truth.is_crowd.any() for truth, _ in cases)
    assert any(set(found.labels) - set(truth.labels) for truth, found in cases)
    assert any(len(set(found.scores)) == 1 < len(set(found.image_id)) for _, found in cases)
    assert any((found.sizes < 0).any() for _, found in cases)
    counts = [
        np.unique(np.stack([f.image_id, f.labels]), axis=1, return_counts=True)[1] for _, f in cases
    ]
    assert max(c.max(initial=0) for c in counts) > 100


def test_all_found_exactly() -> None:
    boxes = [[0, 0, 20, 20], [50, 0, 100, 50], [0, 100, 150, 250]]
    metrics = coco_metrics(make_truth(boxes), make_found(boxes, [0.9, 0.8, 0.7]))
    for key in TWELVE:
        # one detection of the image can find one of the three objects
        assert metrics[key] == pytest.approx(1 / 3 if key == "AR_1" else 1.0, abs=1e-12), key


def test_nothing_to_find_is_minus_one() -> None:
    metrics = coco_metrics(make_truth([]), make_found([[0, 0, 5, 5]], [0.5]))
    assert set(metrics.values()) == {-1.0}


def test_nothing_found_is_zero() -> None:
    metrics = coco_metrics(make_truth([[0, 0, 50, 50]]), make_found([], []))
    assert (metrics["AP"], metrics["AR_100"]) == (0.0, 0.0)
    assert (metrics["AP_medium"], metrics["AP_small"]) == (0.0, -1.0)


def test_no_images_and_no_classes() -> None:
    empty = make_truth([], image_ids=[], class_names=(), category_ids=())
    assert set(coco_metrics(empty, make_found([], [])).values()) == {-1.0}


def test_difficult_objects_are_ignored() -> None:
    """As an object outside every area range, which is how pycocotools can be told."""
    for seed in range(20):
        truth, found = awkward_tables(seed)
        difficult = np.random.default_rng(seed).random(len(truth.labels)) < 0.3
        flagged = dataclasses.replace(truth, is_difficult=difficult)
        outside = dataclasses.replace(truth, area=np.where(difficult, 1e12, truth.area))
        expected = pycocotools_metrics(*coco_dicts(outside, found))
        assert coco_metrics(flagged, found) == expected, seed


def test_a_second_detection_of_a_difficult_object_is_false() -> None:
    boxes = [[0.0, 0.0, 50.0, 50.0], [100.0, 0.0, 150.0, 50.0]]
    truth = make_truth(boxes, is_difficult=[True, False])
    once = coco_metrics(truth, make_found(boxes, [0.9, 0.8]))
    twice = coco_metrics(truth, make_found([boxes[0], *boxes], [0.95, 0.9, 0.8]))
    assert once["AP"] == pytest.approx(1.0)
    assert twice["AP"] == pytest.approx(0.5)


def test_unknown_image_and_class_are_refused() -> None:
    truth = make_truth([[0, 0, 5, 5]])
    with pytest.raises(ValueError, match="detection 1 is of image 4, which the ground truth does"):
        coco_metrics(truth, DetectionTable([1, 4], [[0, 0, 5, 5]] * 2, [0.5, 0.5], [0, 0]))
    with pytest.raises(ValueError, match=r"detection 0 of image 1 has label 3.* in 0\.\.0"):
        coco_metrics(truth, DetectionTable([1], [[0, 0, 5, 5]], [0.5], [3]))
    with pytest.raises(ValueError, match="detection 0 is of image 1"):
        coco_metrics(make_truth([], image_ids=[]), DetectionTable([1], [[0, 0, 5, 5]], [0.5], [0]))


def test_metrics_need_numpy_alone() -> None:
    """What reads files, draws masks or prints tables is imported where that is done."""
    code = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in ('pycocotools', 'msgspec', 'rich', 'jax', 'cv2'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from harmonic_jax.metrics import DetectionTable, GroundTruthTable, coco_metrics\n"
        "truth = GroundTruthTable([1], [1], [[0, 0, 9, 9]], [0], [False], [False], [81.0],\n"
        "                         ('a',), (1,))\n"
        "found = DetectionTable([1], [[0, 0, 9, 9]], [0.5], [0])\n"
        "assert coco_metrics(truth, found)['AP50'] > 0.99\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_table_text() -> None:
    truth = make_truth([[0, 0, 20, 20]], class_names=("cell", "bubble"), category_ids=(1, 2))
    text = format_table(coco_metrics(truth, make_found([[0, 0, 20, 16]], [0.9])))
    rows = [line.split() for line in text.splitlines()]
    assert rows[1] == ["AP", "0.700", "1.000", "1.000", "0.700", "-", "-"]
    assert rows[3] == ["AR", "0.700", "0.700", "0.700", "0.700", "-", "-"]
    assert rows[-2:] == [["cell", "0.700", "1.000"], ["bubble", "-", "-"]]


def test_the_table_shows_voc_s_numbers_where_they_are() -> None:
    metrics = coco_metrics(make_truth([[0, 0, 20, 16]]), make_found([[0, 0, 20, 16]], [0.9]))
    assert "VOC" not in format_table(metrics)
    text = format_table(metrics | {"VOC_mAP": 0.8125, "VOC07_mAP": 0.75})
    assert "0.812 (area), 0.750 (2007, 11 points)" in text


def test_a_long_name_moves_its_own_numbers_only() -> None:
    truth = make_truth([[0, 0, 20, 16]])
    metrics = coco_metrics(truth, make_found([[0, 0, 20, 16]], [0.9]))
    long = {f"{kind}/{'x' * 300}": 0.25 for kind in ("AP", "AP50")}
    lines = format_table(metrics | long).splitlines()
    assert max(len(line) for line in lines if "x" not in line) < 120
    assert f"{'x' * 300}    0.250    0.250" in (line.rstrip() for line in lines)


def test_voc_without_objects_has_a_dash() -> None:
    metrics = coco_metrics(make_truth([[0, 0, 20, 16]]), make_found([], []))
    text = format_table(metrics | {"VOC_mAP": -1.0, "VOC07_mAP": -1.0})
    assert "VOC mAP at IoU .50: - (area), - (2007, 11 points)" in text


def test_the_columns_of_the_table_stay_in_line_whatever_the_names() -> None:
    names = ("cat", "齿轮", "x" * 100)
    truth = make_truth([[0, 0, 20, 20]], class_names=names, category_ids=(1, 2, 3))
    lines = format_table(coco_metrics(truth, make_found([[0, 0, 20, 16]], [0.9]))).splitlines()
    assert len(lines[1]) == 42 + 6 * 9
    assert lines[-3:] == [
        f"cat{' ' * 39}{'0.700':>9}{'1.000':>9}",
        f"齿轮{' ' * 38}{'-':>9}{'-':>9}",
        f"{'x' * 100}{'-':>9}{'-':>9}",
    ]
