"""COCO files: what pycocotools makes of them, and messages for wrong ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.json_file import JsonFileError
from harmonic_jax.metrics.coco import coco_metrics
from harmonic_jax.metrics.files import (
    ground_truth_from_coco,
    load_coco_annotations,
    load_coco_results,
    save_coco_annotations,
    save_coco_results,
)
from harmonic_jax.metrics.tables import DetectionTable
from tests.metrics.synthetic import awkward_tables, coco_dicts, pycocotools_metrics

PYCOCOTOOLS = "pycocotools is the reference of the COCO files"


def annotations() -> dict[str, Any]:
    return {
        "images": [{"id": 3}, {"id": 4}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 0, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 5.5},
            {"id": 1, "image_id": 4, "category_id": 2, "bbox": [0, 0, 2.5, 4], "iscrowd": 1},
        ],
    }


def result(**fields: Any) -> dict[str, Any]:
    return {"image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5} | fields


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 6, 7, 8, 9])
def test_numbers_of_files_are_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    """Boxes with decimals too, whose width is not the difference of their corners."""
    pytest.importorskip("pycocotools", reason=PYCOCOTOOLS)
    truth, found = awkward_tables(seed)
    truth_path, found_path = tmp_path / "truth.json", tmp_path / "found.json"
    save_coco_annotations(truth_path, truth)
    save_coco_results(found_path, found, truth.category_ids)
    loaded = load_coco_annotations(truth_path)
    ours = coco_metrics(loaded, load_coco_results(found_path, loaded))
    assert ours == pycocotools_metrics(str(truth_path), str(found_path))
    assert ours == coco_metrics(truth, found)


def test_a_box_at_the_border_of_small_and_medium_stays_there() -> None:
    """25.6 x 40 is 32 x 32, but 6.41 + 25.6 - 6.41 is more than 25.6: from its corners alone the
    false positive would not be small."""
    pytest.importorskip("pycocotools", reason=PYCOCOTOOLS)
    content = annotations()
    content["annotations"] = [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    ]
    results = [
        result(bbox=[6.41, 50, 25.6, 40], score=0.9),
        result(bbox=[0, 0, 9, 9], score=0.8),
    ]
    expected = pycocotools_metrics(json.loads(json.dumps(content)), results)
    assert expected["AP_small"] == pytest.approx(0.5)
    truth = ground_truth_from_coco(content)
    sizes = np.array([entry["bbox"][2:] for entry in results])
    corner = np.array([entry["bbox"][:2] for entry in results])
    boxes = np.hstack([corner, corner + sizes])
    labels = [truth.class_names.index("dog")] * 2
    exact = DetectionTable([3, 3], boxes, [0.9, 0.8], labels, sizes)
    assert coco_metrics(truth, exact)["AP_small"] == expected["AP_small"]
    rounded = DetectionTable([3, 3], boxes, [0.9, 0.8], labels)
    assert coco_metrics(truth, rounded)["AP_small"] == pytest.approx(1.0)


def test_annotation_id_0_is_an_object_like_any_other() -> None:
    pytest.importorskip("pycocotools", reason=PYCOCOTOOLS)
    truth, found = awkward_tables(7)
    from_one, results = coco_dicts(truth, found)
    from_zero = json.loads(json.dumps(from_one))
    for annotation in from_zero["annotations"]:
        annotation["id"] -= 1
    ours = coco_metrics(ground_truth_from_coco(from_zero), found)
    assert ours == pycocotools_metrics(json.loads(json.dumps(from_one)), results)
    assert ours != pycocotools_metrics(from_zero, results)


def test_annotations_become_columns() -> None:
    table = ground_truth_from_coco(annotations())
    assert table.class_names == ("cat", "dog")
    assert table.category_ids == (2, 9)
    assert table.labels.tolist() == [1, 0]
    assert table.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 2.5, 4]]
    assert table.area.tolist() == [5.5, 10.0]
    assert table.is_crowd.tolist() == [False, True]
    assert table.image_ids.tolist() == [3, 4]


def test_difficult_survives_a_file(tmp_path: Path) -> None:
    content = annotations()
    content["annotations"][0]["difficult"] = 1
    save_coco_annotations(tmp_path / "a.json", ground_truth_from_coco(content))
    assert load_coco_annotations(tmp_path / "a.json").is_difficult.tolist() == [True, False]


def test_empty_results(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[]")
    truth = ground_truth_from_coco(annotations())
    assert coco_metrics(truth, load_coco_results(tmp_path / "r.json", truth))["AP"] == 0.0


IN = "is not in the ground truth"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (result(image_id=8), f"r.json[1]: image_id 8 {IN}"),
        (result(image_id=10**30), f"r.json[1]: image_id {10**30} {IN}"),
        (
            result(image_id="3"),
            "r.json[1]: image_id '3' is a text; in the ground truth it is",
        ),
        (result(image_id="a.jpg"), f"image_id 'a.jpg' {IN}; it is a file name, where the id"),
        (
            result(image_id=None),
            "r.json[1]: image_id is None; it must be a whole number, or",
        ),
        (result(image_id=3.5), "r.json[1]: image_id is 3.5; it must be"),
        (result(image_id=True), "r.json[1]: image_id is True; it must be"),
        (result(category_id=1), f"r.json[1]: category_id 1 {IN}, whose ids are 2, 9"),
        (
            result(category_id=2**64),
            f"category_id is {2**64}; it must be a whole number",
        ),
        (result(category_id="9"), "category_id is '9'; it must be a whole number of 64 bits"),
        (result(score=None), "r.json[1]: score is None; it must be a number"),
        (result(score="0.5"), "r.json[1]: score is '0.5'; it must be a number"),
        (result(score=10**400), "r.json[1]: score is 1000"),
        (result(score=[0.5]), "r.json[1]: score is [0.5]; it must be a number"),
        (result(score=float("nan")), "r.json[1]: score is nan; numbers must be finite"),
        (result(bbox=[1, 2, 3]), "r.json[1]: bbox is [1, 2, 3]; it must be four numbers"),
        (result(bbox=[1, 2, 3, "4"]), "r.json[1]: bbox is [1, 2, 3, '4']; it must be four numbers"),
        (result(bbox=[]), "r.json[1]: bbox is []; it must be four numbers"),
        (result(bbox=None), "r.json[1]: bbox is None; it must be four numbers"),
        (result(bbox=[0, 0, float("inf"), 1]), "r.json[1]: bbox is [0.0, 0.0, inf, 1.0]; numbers"),
        (result(bbox=[1, 2, 1e308, 1e308]), "bbox is [1.0, 2.0, 1e+308, 1e+308]; numbers must be"),
        (result(bbox=[1, 2, 10**400, 4]), "r.json[1]: bbox is [1, 2, 1000"),
        ({"image_id": 3, "category_id": 9, "score": 1}, "r.json[1]: no bbox; its keys are 'image"),
        ({"image_id": 3, "caption": "a"}, "captions are not evaluated; boxes and masks are"),
        (
            {"image_id": 3, "category_id": 9, "keypoints": [1, 2, 2], "score": 1},
            "r.json[1]: no bbox; its keys are 'image_id', 'category_id', 'keypoints', 'score' "
            "(keypoints are not evaluated; boxes and masks are)",
        ),
        ([3, 9], "r.json[1] is [3, 9]; it must be a list of objects with image_id"),
        (None, "r.json[1] is None; it must be a list of objects"),
    ],
)
def test_wrong_results_are_named(tmp_path: Path, entry: Any, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([result(), entry]))
    with pytest.raises(JsonFileError) as error:
        load_coco_results(path, ground_truth_from_coco(annotations()))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_counted_from_0_are_suspected(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps([result(category_id=1), result(category_id=0)]))
    with pytest.raises(JsonFileError, match=r"\(2 of 2 entries .*; is it a label, counted from 0"):
        load_coco_results(tmp_path / "r.json", ground_truth_from_coco(annotations()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": [result()]}, "with the key 'annotations' alone: write its list, without"),
        ({"3": [result()], "4": []}, "with a list for each of 2 keys, '3' ..: join the lists"),
        (annotations(), "an annotation file; it must be a list"),
        ({"a": 1}, "an object, its keys are 'a'; it must be"),
        ({}, "an object, its keys are none; it must be"),
        (7, "r.json holds 7; it must be a list of objects"),
        (None, "r.json holds None; it must be a list of objects"),
    ],
)
def test_files_of_another_shape_are_told(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(JsonFileError) as error:
        load_coco_results(tmp_path / "r.json", ground_truth_from_coco(annotations()))
    assert message in str(error.value)


def test_ids_and_numbers_as_floats_are_what_they_say(tmp_path: Path) -> None:
    entry = result(image_id=3.0, category_id=9.0, score=1, bbox=[1.0, 2, 3, 4])
    (tmp_path / "r.json").write_text(json.dumps([entry]))
    found = load_coco_results(tmp_path / "r.json", ground_truth_from_coco(annotations()))
    assert (found.image_id.tolist(), found.labels.tolist()) == ([3], [1])
    assert found.boxes.tolist() == [[1, 2, 4, 6]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "a.json must hold a list of images; there is no images"),
        (
            lambda c: c["images"].append({"id": 3}),
            "a.json: images[2]: id 3 is that of images[0]",
        ),
        (lambda c: c["images"].append({"id": None}), "a.json: images[2]: id is None; it must be"),
        (lambda c: c["images"].append(5), "a.json: images[2]: 5 must be an object"),
        (lambda c: c["categories"][0].pop("name"), "a.json: categories[0]: no name"),
        *(
            (lambda c, fields=fields: c["annotations"][1].update(fields), message)
            for fields, message in (
                (
                    {"image_id": 5},
                    "a.json: annotations[1]: image_id 5 is not in the list of",
                ),
                ({"image_id": "3"}, "image_id '3' is a text; in the list of images it is a number"),
                ({"category_id": 5}, "annotations[1]: category_id 5 is not in the list of categ"),
                ({"iscrowd": 2}, "a.json: annotations[1]: iscrowd is 2; it must be 0 or 1"),
                ({"iscrowd": float("nan")}, "annotations[1]: iscrowd is nan; it must be 0 or 1"),
                ({"iscrowd": [0]}, "annotations[1]: iscrowd is [0]; it must be 0 or 1"),
                ({"difficult": "Unspecified"}, "difficult is 'Unspecified'; it must be 0 or 1"),
                (
                    {"area": "a"},
                    "annotations[1]: area is 'a'; it must be a number of square",
                ),
                ({"area": -1}, "annotations[1]: area is -1; it must be a number of square pixels"),
                ({"area": float("nan")}, "annotations[1]: area is nan; it must be a number of sq"),
                ({"area": 10**400}, "annotations[1]: area is 1000"),
                ({"bbox": [1, 2, -3, 4]}, "bbox is [1.0, 2.0, -3.0, 4.0]; its width and height"),
                ({"bbox": [1, 2, float("nan"), 4]}, "bbox is [1.0, 2.0, nan, 4.0]; numbers must"),
                ({"bbox": [1, 2, 10**400, 4]}, "annotations[1]: bbox is [1, 2, 1000"),
                ({"bbox": [1, 2, 1e200, 4]}, "numbers must be finite, up to 1e100"),
            )
        ),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, change: Any, message: str) -> None:
    content = annotations()
    change(content)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(JsonFileError) as error:
        load_coco_annotations(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_area_of_null_is_the_box_s(tmp_path: Path) -> None:
    content = annotations()
    content["annotations"][0]["area"] = None
    assert ground_truth_from_coco(content).area.tolist() == [12.0, 10.0]


def test_categories_of_one_name_are_told_apart_and_numbers_are_pycocotools(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth, found = awkward_tables(2)
    content, results = coco_dicts(truth, found)
    names = dict(zip(truth.category_ids, truth.class_names, strict=True))
    for entry in content["categories"]:
        entry["name"] = "cup"
    expected = pycocotools_metrics(json.loads(json.dumps(content)), results)
    table = ground_truth_from_coco(content, name="a.json")
    assert len(names) > 1
    assert table.class_names == tuple(f"cup (id {key})" for key in sorted(names))
    assert caplog.text.count("a.json: ") == 1
    metrics = coco_metrics(table, found)
    for key in ("AP", "AP50", "AR_100", "AP_small"):
        assert metrics[key] == expected[key]


def test_files_that_are_not_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"a.json is not JSON: it ends early"):
        load_coco_annotations(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_coco_annotations(tmp_path / "nowhere.json")


def test_a_label_without_a_category_id_is_not_written(tmp_path: Path) -> None:
    table = DetectionTable([3], [[0, 0, 1, 1]], [0.5], [2])
    with pytest.raises(ValueError, match="detection 0 of image 3 has label 2"):
        save_coco_results(tmp_path / "r.json", table, [1, 2])
