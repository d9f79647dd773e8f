"""COCO files: what pycocotools makes of them, and messages for wrong ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.metrics.coco import coco_metrics
from harmonic_jax.metrics.results_json import (
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


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (result(image_id=8), r"r.json\[1\]: image_id 8 is not in the ground truth"),
        (result(category_id=1), r"r.json\[1\]: category_id 1 is not in the ground truth"),
        (result(image_id="3"), r"r.json\[1\]: image_id is '3'; it must be an integer"),
        (result(score=None), r"r.json\[1\]: score is 'None'; it must be a number"),
        (result(bbox=[1, 2, 3]), r"r.json\[1\]: bbox is '\[1, 2, 3\]'; it must be four numbers"),
        (result(bbox=[1, 2, 3, "4"]), r"r.json\[1\]: bbox is .* it must be four numbers"),
        ({"image_id": 3, "category_id": 9, "score": 1}, r"r.json\[1\]: no bbox"),
        (result(score=float("nan")), r"r.json: detection 1 of image 3 has scores nan"),
        (result(bbox=[0, 0, float("inf"), 1]), r"r.json: detection 1 of image 3 has boxes"),
        ([3, 9], r"r.json: results\[1\] is \[3, 9\]; it must be an object"),
    ],
)
def test_wrong_results_are_named(tmp_path: Path, entry: Any, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([result(), entry]))
    with pytest.raises(ValueError, match=message) as error:
        load_coco_results(path, ground_truth_from_coco(annotations()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), r"a.json: must hold a list of images"),
        (lambda c: c["images"].append({"id": 3}), r"a.json: image_ids holds the id 3 twice"),
        (lambda c: c["categories"][0].pop("name"), r"a.json: categories\[0\]: no name"),
        (
            lambda c: c["annotations"][1].update(image_id=5),
            r"a.json: annotations\[1\]: image_id 5 is not in the ground truth",
        ),
        (
            lambda c: c["annotations"][1].update(category_id=5),
            r"a.json: annotations\[1\]: category_id 5 is not in the ground truth",
        ),
        (lambda c: c["annotations"][0].update(iscrowd=2), r"annotations\[0\]: iscrowd is '2'"),
        (lambda c: c["annotations"][0].update(area="a"), r"annotations\[0\]: area is 'a'"),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, change: Any, message: str) -> None:
    content = annotations()
    change(content)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_coco_annotations(path)


def test_files_that_are_not_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"a.json: not a JSON file \("):
        load_coco_annotations(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_coco_annotations(tmp_path / "nowhere.json")


def test_a_label_without_a_category_id_is_not_written(tmp_path: Path) -> None:
    table = DetectionTable([3], [[0, 0, 1, 1]], [0.5], [2])
    with pytest.raises(ValueError, match="detection 0 of image 3 has label 2"):
        save_coco_results(tmp_path / "r.json", table, [1, 2])
