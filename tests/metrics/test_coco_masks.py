"""Mask AP against pycocotools: random cases, files, and real annotations."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.masks import encode_masks
from harmonic_jax.metrics.coco import coco_metrics, format_table, mask_metrics
from harmonic_jax.metrics.files import (
    MaskError,
    ground_truth_from_coco,
    load_coco_annotations,
    load_coco_results,
    save_coco_annotations,
    save_coco_results,
)
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, concatenate_detections
from tests.metrics.synthetic import awkward_masks, coco_dicts, pycocotools_metrics


def by_pycocotools(truth: GroundTruthTable, found: DetectionTable) -> dict[str, float]:
    annotations, results = coco_dicts(truth, found)
    for entry in results:
        del entry["bbox"]  # else pycocotools takes the box's area for the mask's
    return pycocotools_metrics(annotations, results, "segm")


@pytest.mark.parametrize("first_seed", range(0, 160, 20))
def test_equals_pycocotools_on_awkward_cases(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        truth, found = awkward_masks(seed)
        ours = coco_metrics(truth, found, iou_type="segm")
        assert ours == by_pycocotools(truth, found), seed


def test_awkward_cases_are_awkward() -> None:
    cases = [awkward_masks(seed) for seed in range(160)]
    assert any(len(truth.labels) == 0 for truth, _ in cases)
    assert any(len(found.labels) == 0 for _, found in cases)
    assert any(truth.is_crowd.any() for truth, _ in cases)
    assert any(0 in truth.masks.areas() for truth, _ in cases)
    assert any(0 in found.masks.areas() for _, found in cases)
    assert any(len(set(found.scores)) == 1 < len(found.scores) for _, found in cases)
    values = [coco_metrics(truth, found, iou_type="segm")["AP"] for truth, found in cases]
    assert 0.05 < np.mean([value for value in values if value >= 0]) < 0.9


def perturbed(content: dict[str, Any], truth: GroundTruthTable) -> DetectionTable:
    """Detections of real objects: shifted masks of any score, some of another class."""
    rng = np.random.default_rng(0)
    tables = []
    for row in range(len(truth.labels)):
        pixels = truth.masks.decode(row)
        for _ in range(2):
            shift = rng.integers(-4, 5, 2)
            masks = encode_masks(np.roll(pixels, shift, axis=(0, 1))[None])
            label = truth.labels[row] if rng.random() < 0.8 else rng.integers(80)
            tables.append(
                DetectionTable(
                    [truth.image_id[row]], masks.boxes(), [rng.random()], [label], masks=masks
                )
            )
    return concatenate_detections(tables)


def test_real_annotations_in_files_of_both_kinds(coco_tiny: Path, tmp_path: Path) -> None:
    """Polygons and crowds as COCO has them; then the same from files that we wrote."""
    path = coco_tiny / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    truth = load_coco_annotations(path, masks=True)
    found = perturbed(content, truth)
    results = tmp_path / "found.json"
    save_coco_results(results, found, truth.category_ids)
    entries = json.loads(results.read_text())
    for entry in entries:
        del entry["bbox"]
    expected = pycocotools_metrics(str(path), entries, "segm")
    ours = coco_metrics(truth, found, iou_type="segm")
    assert ours == expected
    assert 0.1 < ours["AP"] < 0.9
    save_coco_annotations(tmp_path / "truth.json", truth)
    again = load_coco_annotations(tmp_path / "truth.json", masks=True)
    loaded = load_coco_results(results, again)
    assert coco_metrics(again, loaded, iou_type="segm") == ours
    assert coco_metrics(again, loaded) == coco_metrics(truth, found)
    assert load_coco_annotations(path).masks is None


def test_results_without_boxes_have_those_of_their_masks(tmp_path: Path) -> None:
    truth, found = awkward_masks(1)
    path = tmp_path / "found.json"
    save_coco_results(path, found, truth.category_ids)
    entries = json.loads(path.read_text())
    for entry in entries:
        del entry["bbox"]
    path.write_text(json.dumps(entries))
    np.testing.assert_array_equal(load_coco_results(path, truth).boxes, found.boxes)


def test_an_object_marked_difficult_is_ignored() -> None:
    truth, found = awkward_masks(2)
    difficult = np.random.default_rng(0).random(len(truth.labels)) < 0.3
    flagged = dataclasses.replace(truth, is_difficult=difficult)
    outside = dataclasses.replace(truth, area=np.where(difficult, 1e12, truth.area))
    assert coco_metrics(flagged, found, iou_type="segm") == by_pycocotools(outside, found)


def test_masks_that_are_not_there_or_not_of_the_image() -> None:
    truth, found = awkward_masks(1)
    for tables, name in (
        ((dataclasses.replace(truth, masks=None), found), "ground truth"),
        ((truth, dataclasses.replace(found, masks=None)), "detection"),
    ):
        with pytest.raises(ValueError, match=f"the {name} table has no masks"):
            coco_metrics(*tables, iou_type="segm")
    other = encode_masks(np.ones((len(found.labels), 3, 5), bool))
    with pytest.raises(ValueError, match=r"mask has the size \[3, 5\] and its image \["):
        coco_metrics(truth, dataclasses.replace(found, masks=other), iou_type="segm")
    with pytest.raises(ValueError, match="there are 1 masks and"):
        dataclasses.replace(found, masks=other[:1])
    with pytest.raises(ValueError, match="1 of 2 parts have masks; it must be all or none"):
        concatenate_detections([found, dataclasses.replace(found, masks=None)])


def annotations(**fields: Any) -> dict[str, Any]:
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    entry = {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 1, 4, 4]}
    return {
        "images": [{"id": 3, "height": 10, "width": 20}],
        "categories": [{"id": 9, "name": "dog"}],
        "annotations": [
            entry | {"segmentation": square},
            entry | {"segmentation": square} | fields,
        ],
    }


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, r"a.json: annotations\[1\] has no usable mask: there is no segmentation"),
        ([[1, 2]], r"annotations\[1\] has no usable mask: no polygon of three"),
        ([[1, 1, 5, 1, 5, 5], [1, 2]], r"annotations\[1\] .* 1 of its polygons are malformed"),
        ({"size": [9, 9], "counts": [81]}, r"annotations\[1\] .* that of the image \[10, 20\]"),
    ],
)
def test_annotations_without_a_usable_mask_are_named(segmentation: Any, message: str) -> None:
    content = annotations(segmentation=segmentation)
    assert ground_truth_from_coco(content, name="a.json").masks is None
    with pytest.raises(ValueError, match=message):
        ground_truth_from_coco(content, name="a.json", masks=True)


def test_annotations_without_any_masks_have_none() -> None:
    content = annotations()
    for entry in content["annotations"]:
        entry["segmentation"] = []
    assert ground_truth_from_coco(content, masks=True).masks is None
    content = annotations()
    content["images"][0].pop("height")
    with pytest.raises(ValueError, match="image 3 has no height and width"):
        ground_truth_from_coco(content, masks=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segmentation": [[1, 2, 3, 4, 5, 6]]},
            r"r.json\[1\]: segmentation is .* must be compres",
        ),
        ({"segmentation": {"size": [4, 4], "counts": [16]}}, r"r.json\[1\]: segmentation is"),
        ({"segmentation": {"size": [4], "counts": "0"}}, r"r.json\[1\]: segmentation is"),
        (
            {"segmentation": {"size": [10, 20], "counts": "52203"}},
            r"r.json\[1\]: segmentation: its run lengths do not add up to 10 x 20 pixels$",
        ),
        (
            {"segmentation": {"size": [10, 20], "counts": "b'52203'"}},
            r"r.json\[1\]: .* they are the text of Python bytes: write counts.decode\(\)$",
        ),
        (
            {"segmentation": {"size": [20, 10], "counts": "52203"}},
            r"r.json\[1\]: segmentation: its size is \[20, 10\], that of the image \[10, 20\]",
        ),
        (
            {"segmentation": {"size": [10.5, 20], "counts": "52203"}},
            r"r.json\[1\]: segmentation is .* must be compressed run lengths",
        ),
        ({}, r"r.json\[1\]: no segmentation"),
        ({"segmentation": []}, r"r.json\[1\]: segmentation is \[\]; it must be compressed"),
    ],
)
def test_wrong_masks_of_results_are_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    truth = ground_truth_from_coco(annotations(), masks=True)
    good = {"image_id": 3, "category_id": 9, "score": 0.5, "bbox": [1, 1, 4, 4]}
    rle = truth.masks[0]
    mask = {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
    (tmp_path / "r.json").write_text(json.dumps([good | mask, good | change]))
    with pytest.raises(MaskError, match=message):
        load_coco_results(tmp_path / "r.json", truth, masks=True)
    boxes = load_coco_results(tmp_path / "r.json", truth, masks=False)
    assert boxes.masks is None
    assert boxes.boxes.tolist() == [[1, 1, 5, 5]] * 2


@pytest.mark.parametrize("empty", [None, [], {}, ""])
def test_results_whose_segmentation_is_empty_are_boxes(
    tmp_path: Path, empty: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As pycocotools takes them, though one entry has a mask; that is told."""
    truth, found = awkward_masks(1)
    save_coco_results(tmp_path / "r.json", found, truth.category_ids)
    entries = json.loads((tmp_path / "r.json").read_text())
    for entry in entries:
        entry["segmentation"] = empty
    (tmp_path / "none.json").write_text(json.dumps(entries))
    expected = pycocotools_metrics(coco_dicts(truth, found)[0], json.loads(json.dumps(entries)))
    loaded = load_coco_results(tmp_path / "none.json", truth)
    assert loaded.masks is None
    assert coco_metrics(truth, loaded) == expected
    assert not caplog.text
    rle = found.masks[0]
    entries[0]["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    (tmp_path / "some.json").write_text(json.dumps(entries))
    some = load_coco_results(tmp_path / "some.json", truth)
    assert some.masks is None
    assert coco_metrics(truth, some) == expected
    assert "some.json[1] has no mask, others have: masks are left out" in caplog.text


@pytest.mark.parametrize("box", [None, []])
@pytest.mark.parametrize("masks", [None, True, False])
def test_an_entry_without_a_box_has_that_of_its_mask(
    tmp_path: Path, box: Any, masks: bool | None
) -> None:
    truth, found = awkward_masks(1)
    save_coco_results(tmp_path / "r.json", found, truth.category_ids)
    entries = json.loads((tmp_path / "r.json").read_text())
    for entry in entries[::2]:
        entry["bbox"] = box
    (tmp_path / "r.json").write_text(json.dumps(entries))
    loaded = load_coco_results(tmp_path / "r.json", truth, masks=masks)
    np.testing.assert_array_equal(loaded.boxes, found.boxes)
    assert (loaded.masks is None) == (masks is False)


def test_two_tables_of_text() -> None:
    truth = ground_truth_from_coco(annotations(), masks=True)
    found = DetectionTable([3, 3], truth.boxes, [0.9, 0.8], [0, 0], masks=truth.masks)
    metrics = coco_metrics(truth, found) | mask_metrics(truth, found)
    assert metrics["mask_AP"] == metrics["mask_AP/dog"] == pytest.approx(1.0)
    lines = format_table(metrics).splitlines()
    assert lines[0] == "boxes"
    middle = lines.index("masks")
    assert lines[1 : middle - 1] == format_table(coco_metrics(truth, found)).splitlines()
    assert len(lines[middle:]) == len(lines[1:middle])
