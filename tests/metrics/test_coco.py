"""COCO metrics of boxes and masks against pycocotools, and rules that it does not have."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.masks import encode_masks
from harmonic_jax.metrics import (
    DetectionTable,
    GroundTruthTable,
    coco_metrics,
    coco_metrics_of_files,
    concatenate_detections,
    format_table,
    load_coco_annotations,
    load_coco_results,
    mask_metrics,
    save_coco_annotations,
    save_coco_results,
)
from tests.metrics.synthetic import (
    awkward_masks,
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
Tables = tuple[GroundTruthTable, DetectionTable]


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


def by_pycocotools(truth: GroundTruthTable, found: DetectionTable, kind: str) -> dict[str, float]:
    annotations, results = coco_dicts(truth, found)
    for entry in results:
        if kind == "segm":
            del entry["bbox"]  # else pycocotools takes the box's area for the mask's
    return pycocotools_metrics(annotations, results, kind)


@pytest.mark.parametrize("first_seed", range(0, 120, 20))
@pytest.mark.parametrize(("make", "kind"), [(awkward_tables, "bbox"), (awkward_masks, "segm")])
def test_equals_pycocotools_on_awkward_cases(
    make: Callable[[int], Tables], kind: Any, first_seed: int
) -> None:
    """Difficult objects are those outside of every area range, which pycocotools can be told."""
    for seed in range(first_seed, first_seed + 20):
        truth, found = make(seed)
        expected = by_pycocotools(truth, found, kind)
        assert coco_metrics(truth, found, iou_type=kind) == expected, seed
        if seed % 5 == 0:
            difficult = np.random.default_rng(seed).random(len(truth.labels)) < 0.3
            outside = dataclasses.replace(truth, area=np.where(difficult, 1e12, truth.area))
            truth = dataclasses.replace(truth, is_difficult=difficult)
            expected = by_pycocotools(outside, found, kind)
            assert coco_metrics(truth, found, iou_type=kind) == expected, seed


def test_equals_pycocotools_on_a_detectors_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, and in many."""
    truth, found = detector_output(0, num_images=60, num_classes=12, objects=7, detections=60)
    ours = coco_metrics(truth, found)
    assert ours == by_pycocotools(truth, found, "bbox")
    assert 0.05 < ours["AP"] < 0.9  # a set on which nothing or everything is found tests little
    assert list(ours)[:12] == TWELVE
    monkeypatch.setattr("harmonic_jax.metrics.coco._AT_ONCE", 100)
    monkeypatch.setattr("harmonic_jax.metrics.matching._PAIRS_AT_ONCE", 100)
    assert coco_metrics(truth, found) == ours


def perturbed(truth: GroundTruthTable) -> DetectionTable:
    """Detections of real objects: shifted masks of any score, some of another class."""
    rng = np.random.default_rng(0)
    tables = []
    for row in range(0, len(truth.labels), 2):
        masks = encode_masks(np.roll(truth.masks.decode(row), rng.integers(-4, 5, 2), (0, 1))[None])
        label = truth.labels[row] if rng.random() < 0.8 else rng.integers(80)
        columns = [truth.image_id[row]], masks.boxes(), [rng.random()], [label]
        tables.append(DetectionTable(*columns, masks=masks))
    return concatenate_detections(tables)


def test_real_annotations_in_files_of_both_kinds(coco_tiny: Path, tmp_path: Path) -> None:
    """Polygons and crowds as COCO has them; then the same from files that we wrote."""
    path, results = coco_tiny / "annotations" / "instances_val2017.json", tmp_path / "found.json"
    truth = load_coco_annotations(path, masks=True)
    found = perturbed(truth)
    save_coco_results(results, found, truth.category_ids)
    entries = json.loads(results.read_text())
    for entry in entries:
        del entry["bbox"]
    ours = coco_metrics(truth, found, iou_type="segm")
    assert ours == pycocotools_metrics(str(path), entries, "segm")
    assert ours == coco_metrics_of_files(path, results, iou_type="segm")
    assert 0.1 < ours["AP"] < 0.9
    save_coco_annotations(tmp_path / "truth.json", truth)
    again = load_coco_annotations(tmp_path / "truth.json", masks=True)
    loaded = load_coco_results(results, again)
    assert coco_metrics(again, loaded, iou_type="segm") == ours
    assert coco_metrics(again, loaded) == coco_metrics(truth, found)
    assert load_coco_annotations(path).masks is None


def test_all_found_exactly() -> None:
    boxes = [[0, 0, 20, 20], [50, 0, 100, 50], [0, 100, 150, 250]]
    metrics = coco_metrics(make_truth(boxes), make_found(boxes, [0.9, 0.8, 0.7]))
    expected = dict.fromkeys(TWELVE, 1.0) | {"AR_1": 1 / 3}  # one detection of the image counts
    assert {key: metrics[key] for key in TWELVE} == pytest.approx(expected, abs=1e-12)


def test_nothing_to_find_is_minus_one_and_nothing_found_is_zero() -> None:
    empty = make_truth([], image_ids=[], class_names=(), category_ids=())
    for truth, found in (
        (make_truth([]), make_found([[0, 0, 5, 5]], [0.5])),
        (empty, make_found([], [])),
    ):
        assert set(coco_metrics(truth, found).values()) == {-1.0}
    metrics = coco_metrics(make_truth([[0, 0, 50, 50]]), make_found([], []))
    assert (metrics["AP"], metrics["AR_100"]) == (0.0, 0.0)
    assert (metrics["AP_medium"], metrics["AP_small"]) == (0.0, -1.0)


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
        coco_metrics(make_truth([], image_ids=[]), make_found([[0, 0, 5, 5]], [0.5]))


def test_masks_that_are_not_there_or_not_of_the_image() -> None:
    truth, found = awkward_masks(1)
    with pytest.raises(ValueError, match="the ground truth table has no masks"):
        mask_metrics(dataclasses.replace(truth, masks=None), found)
    with pytest.raises(ValueError, match="the detection table has no masks"):
        mask_metrics(truth, dataclasses.replace(found, masks=None))
    other = encode_masks(np.ones((len(found.labels), 3, 5), bool))
    with pytest.raises(ValueError, match=r"mask has the size \[3, 5\] and its image \["):
        mask_metrics(truth, dataclasses.replace(found, masks=other))
    with pytest.raises(ValueError, match="there are 1 masks and"):
        dataclasses.replace(found, masks=other[:1])
    with pytest.raises(ValueError, match="1 of 2 parts have masks; it must be all or none"):
        concatenate_detections([found, dataclasses.replace(found, masks=None)])


def test_metrics_need_numpy_alone() -> None:
    """What reads files, draws masks or prints tables is imported where that is done."""
    code = (
        "import sys\n"
        "for name in ('pycocotools', 'msgspec', 'rich', 'jax', 'cv2'):\n"
        "    sys.modules[name] = None\n"
        "from harmonic_jax.metrics import DetectionTable, GroundTruthTable, coco_metrics\n"
        "found = DetectionTable([1], [[0, 0, 9, 9]], [0.5], [0])\n"
        "objects = [[0, 0, 9, 9]], [0], [False], [False], [81.0]\n"
        "truth = GroundTruthTable([1], [1], *objects, ('a',), (1,))\n"
        "assert coco_metrics(truth, found)['AP50'] > 0.99\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_of_text_stays_in_line_whatever_the_names() -> None:
    names = ("cat", "齿轮", "x" * 100)
    truth = make_truth([[0, 0, 20, 20]], class_names=names, category_ids=(1, 2, 3))
    lines = format_table(coco_metrics(truth, make_found([[0, 0, 20, 16]], [0.9]))).splitlines()
    assert lines[1].split() == ["AP", "0.700", "1.000", "1.000", "0.700", "-", "-"]
    assert lines[3].split() == ["AR", "0.700", "0.700", "0.700", "0.700", "-", "-"]
    assert len(lines[1]) == 42 + 6 * 9
    assert lines[-3:] == [
        f"cat{' ' * 39}{'0.700':>9}{'1.000':>9}",
        f"齿轮{' ' * 38}{'-':>9}{'-':>9}",
        f"{'x' * 100}{'-':>9}{'-':>9}",
    ]


def test_two_tables_of_text() -> None:
    masks = encode_masks(np.ones((2, 4, 4), bool))
    truth = dataclasses.replace(make_truth([[0, 0, 4, 4]] * 2), masks=masks)
    found = dataclasses.replace(make_found([[0, 0, 4, 4]] * 2, [0.9, 0.8]), masks=masks)
    metrics = coco_metrics(truth, found) | mask_metrics(truth, found)
    for area, shown in ((0.8125, "0.812 (area), 0.750"), (-1.0, "- (area), 0.750")):
        text = format_table(metrics | {"VOC_mAP": area, "VOC07_mAP": 0.75})
        assert f"VOC mAP at IoU .50: {shown} (2007, 11 points)" in text
    assert metrics["mask_AP"] == metrics["mask_AP/cell"] == pytest.approx(1.0)
    lines = format_table(metrics).splitlines()
    assert lines[0] == "boxes"
    middle = lines.index("masks")
    assert lines[1 : middle - 1] == format_table(coco_metrics(truth, found)).splitlines()
    assert len(lines[middle:]) == len(lines[1:middle])


def test_equal_scores_rank_by_the_data_sets_own_ids(tmp_path: Path) -> None:
    """Also of texts and of numbers beyond 64 bits, which the tables know by a hash."""
    box = [1.0, 1.0, 10.0, 10.0]
    for number in range(4):
        texts = [f"{letter}{number}" for letter in "dbca"]
        for ids in (texts, [2**64 + number + 10 * i for i in (3, 0, 2, 1)]):
            images = [{"id": i, "width": 60, "height": 40, "file_name": f"{i}.jpg"} for i in ids]
            things = [
                {"id": k, "image_id": i, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0}
                for k, i in enumerate(ids, start=1)
            ]
            wrong = sorted(ids)[:2]
            results = [
                {"image_id": i, "category_id": 1, "score": 0.5}
                | {"bbox": [30.0, 20.0, 5.0, 5.0] if i in wrong else box}
                for i in ids
            ]
            truth = {"images": images, "annotations": things}
            truth["categories"] = [{"id": 1, "name": "cat"}]
            paths = tmp_path / "a.json", tmp_path / "p.json"
            for path, content in zip(paths, (truth, results), strict=True):
                path.write_text(json.dumps(content))
            # Two wrong ones, then two right ones: precision 1/3 up to recall 1/4, 1/2 up to 1/2.
            assert coco_metrics_of_files(*paths)["AP"] == pytest.approx(51 / 101 / 2)
