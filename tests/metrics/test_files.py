"""COCO files: what pycocotools makes of them, and messages for wrong ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.coco_format.files import coco_file
from harmonic_jax.json_file import JsonFileError
from harmonic_jax.metrics import (
    DetectionTable,
    GroundTruthTable,
    coco_metrics,
    coco_metrics_of_files,
)
from harmonic_jax.metrics.files import (
    MaskError,
    ground_truth_from_coco,
    load_coco_annotations,
    load_coco_results,
    save_coco_annotations,
    save_coco_results,
)
from tests.metrics.synthetic import (
    awkward_masks,
    awkward_tables,
    coco_dicts,
    pycocotools_metrics,
)

pytest.importorskip("pycocotools", reason="pycocotools is the reference of the COCO files")
Log = pytest.LogCaptureFixture


def annotations(**fields: Any) -> dict[str, Any]:
    """Two objects, the second one with these fields."""
    mask = {"segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    return {
        "images": [{"id": 3, "height": 10, "width": 20}, {"id": 4, "height": 9, "width": 9}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 0, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 5.5} | mask,
            {"id": 1, "image_id": 4, "category_id": 2, "bbox": [0, 0, 2.5, 4], "iscrowd": 1}
            | mask | fields,
        ],
    }  # fmt: skip


def result(**fields: Any) -> dict[str, Any]:
    return {"image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5} | fields


def table_of(content: Any, *, masks: bool = False) -> GroundTruthTable:
    return ground_truth_from_coco(coco_file(content, name="a.json"), masks=masks)


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("seed", [0, 1, 4, 7])
def test_numbers_of_files_are_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    """Boxes with decimals too, whose width is not the difference of their corners."""
    truth, found = awkward_tables(seed)
    paths = tmp_path / "truth.json", tmp_path / "found.json"
    save_coco_annotations(paths[0], truth)
    save_coco_results(paths[1], found, truth.category_ids)
    ours = coco_metrics_of_files(*paths)
    assert ours == pycocotools_metrics(*map(str, paths))
    assert ours == coco_metrics(truth, found)


def test_a_box_at_the_border_of_small_and_medium_stays_there() -> None:
    """25.6 x 40 is 32 x 32, but 6.41 + 25.6 - 6.41 is more than 25.6: from its corners alone the
    false positive would not be small."""
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
    truth = table_of(content)
    corner, sizes = np.split(np.array([entry["bbox"] for entry in results]), 2, axis=1)
    columns = [3, 3], np.hstack([corner, corner + sizes]), [0.9, 0.8], [1, 1]
    assert coco_metrics(truth, DetectionTable(*columns, sizes))["AP_small"] == expected["AP_small"]
    assert coco_metrics(truth, DetectionTable(*columns))["AP_small"] == pytest.approx(1.0)


def test_annotation_id_0_is_an_object_like_any_other() -> None:
    truth, found = awkward_tables(7)
    from_one, results = coco_dicts(truth, found)
    from_zero = json.loads(json.dumps(from_one))
    for annotation in from_zero["annotations"]:
        annotation["id"] -= 1
    ours = coco_metrics(table_of(from_zero), found)
    assert ours == pycocotools_metrics(json.loads(json.dumps(from_one)), results)
    assert ours != pycocotools_metrics(from_zero, results)


def test_annotations_become_columns(tmp_path: Path) -> None:
    content = annotations(difficult=1)
    table = table_of(content)
    assert (table.class_names, table.category_ids) == (("cat", "dog"), (2, 9))
    assert table.labels.tolist() == [1, 0]
    assert table.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 2.5, 4]]
    assert table.area.tolist() == [5.5, 10.0]
    assert table.is_crowd.tolist() == table.is_difficult.tolist() == [False, True]
    assert table.image_ids.tolist() == [3, 4]
    save_coco_annotations(tmp_path / "a.json", table)
    again = load_coco_annotations(tmp_path / "a.json")
    assert again.is_difficult.tolist() == [False, True]
    assert again.image_sizes is not None
    assert again.image_sizes.tolist() == [[10, 20], [9, 9]]
    content["annotations"][0]["area"] = None
    assert table_of(content).area.tolist() == [12.0, 10.0]


def test_ids_and_numbers_as_floats_are_what_they_say(tmp_path: Path) -> None:
    """And an empty list of results is a results file."""
    truth = table_of(annotations())
    entry = result(image_id=3.0, category_id=9.0, score=1, bbox=[1.0, 2, 3, 4])
    found = load_coco_results(written(tmp_path / "r.json", [entry]), truth)
    assert (found.image_id.tolist(), found.labels.tolist()) == ([3], [1])
    assert found.boxes.tolist() == [[1, 2, 4, 6]]
    empty = load_coco_results(written(tmp_path / "r.json", []), truth)
    assert coco_metrics(truth, empty)["AP"] == 0.0


HUGE = 10**400
WRONG_RESULTS = [
    ({"image_id": 8}, "r.json[1]: image_id 8 is not in the ground truth"),
    ({"image_id": "3"}, "r.json[1]: image_id '3' is not in the ground truth, but 3 is"),
    ({"image_id": None}, "r.json[1]: image_id is None; it must be a whole number, or"),
    ({"category_id": 1}, "category_id 1 is not in the ground truth, whose ids are (2, 9)"),
    ({"category_id": 2**64}, f"category_id is {2**64}; it must be a whole number"),
    ({"category_id": "9"}, "category_id is '9'; it must be a whole number of 64 bits"),
    ({"score": None}, "r.json[1]: score is None; it must be a number"),
    ({"score": HUGE}, "r.json[1]: score is 1000"),
    ({"score": float("nan")}, "r.json: detection 1 of image 3 has scores nan; numbers must be"),
    ({"bbox": [1, 2, 3]}, "r.json[1]: bbox is [1, 2, 3]; it must be four numbers"),
    ({"bbox": []}, "r.json[1]: bbox is []; it must be four numbers"),
    ({"bbox": None}, "r.json[1]: bbox is None; it must be four numbers"),
    ({"bbox": [0, 0, float("inf"), 1]}, "r.json: detection 1 of image 3 has boxes [0.0, 0.0, inf"),
    ({"bbox": [1, 2, 1e308, 4]}, "numbers must be finite, up to 1e+100"),
    ({"bbox": [1, 2, HUGE, 4]}, "r.json[1]: bbox is [1, 2, 1000"),
]
OTHER_FILES = [
    ([result(), {"image_id": 3, "caption": "a"}], "r.json[1]: no category_id; its keys are 'ima"),
    ([result(), [3, 9]], "r.json[1]: [3, 9] must be an object with image_id"),
    ({"a": 1}, "r.json is {'a': 1}; it must be a list of objects with image_id"),
    (7, "r.json is 7; it must be a list of objects"),
    (None, "r.json is None; it must be a list of objects"),
]


@pytest.mark.parametrize(
    ("content", "message"),
    [([result(), result(**fields)], message) for fields, message in WRONG_RESULTS] + OTHER_FILES,
)
def test_wrong_results_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path / "r.json", content)
    with pytest.raises(JsonFileError) as error:
        load_coco_results(path, table_of(annotations()))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


WRONG_FIELDS = [
    ({"image_id": 5}, "a.json: annotations[1]: image_id 5 is not in the list of"),
    ({"image_id": "3"}, "image_id '3' is not in the list of images, but 3 is"),
    ({"category_id": 5}, "annotations[1]: category_id 5 is not in the list of categ"),
    ({"iscrowd": 2}, "a.json: annotations[1]: iscrowd is 2; it must be 0 or 1"),
    ({"difficult": "Unspecified"}, "difficult is 'Unspecified'; it must be 0 or 1"),
    ({"area": "a"}, "annotations[1]: area is 'a'; it must be a number of square"),
    ({"area": float("nan")}, "annotations[1]: area is nan; it must be a number of sq"),
    ({"bbox": [1, 2, -3, 4]}, "bbox is (1.0, 2.0, -3.0, 4.0); its width and height"),
    ({"bbox": [1, 2, float("nan"), 4]}, "a.json: ground truth 1 of image 4 has boxes [1.0, 2.0, n"),
    ({"bbox": [1, 2, HUGE, 4]}, "annotations[1]: bbox is [1, 2, 1000"),
    ({"bbox": [1, 2, 1e200, 4]}, "numbers must be finite, up to 1e+100"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append({"id": 3}), "a.json: images[2]: id 3 is that of images[0]"),
        (lambda c: c["images"].append({"id": None}), "a.json: images[2]: id is None; it must be"),
        (lambda c: c["images"].append(5), "a.json: images[2]: 5 must be an object"),
        *((lambda c, f=fields: c["annotations"][1].update(f), m) for fields, m in WRONG_FIELDS),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, change: Any, message: str) -> None:
    content = annotations()
    change(content)
    with pytest.raises(JsonFileError) as error:
        load_coco_annotations(written(tmp_path / "a.json", content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_categories_of_one_name_are_told_apart_and_numbers_are_pycocotools(caplog: Log) -> None:
    truth, found = awkward_tables(2)
    content, results = coco_dicts(truth, found)
    for entry in content["categories"]:
        entry["name"] = "cup"
    expected = pycocotools_metrics(json.loads(json.dumps(content)), results)
    table = table_of(content)
    assert len(truth.category_ids) > 1
    assert table.class_names == tuple(f"cup (id {key})" for key in sorted(truth.category_ids))
    assert caplog.text.count("a.json: ") == 1
    metrics = coco_metrics(table, found)
    for key in ("AP", "AP50", "AR_100", "AP_small"):
        assert metrics[key] == expected[key]


def test_a_label_without_a_category_id_is_not_written(tmp_path: Path) -> None:
    table = DetectionTable([3], [[0, 0, 1, 1]], [0.5], [2])
    with pytest.raises(ValueError, match="detection 0 of image 3 has label 2"):
        save_coco_results(tmp_path / "r.json", table, [1, 2])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, r"a.json: annotations\[1\] has no usable mask: there is no segmentation"),
        ([[1, 2]], r"annotations\[1\] has no usable mask: no polygon of three"),
        ([[1, 1, 5, 1, 5, 5], [1, 2]], r"annotations\[1\] .* 1 of its polygons are malformed"),
        ({"size": [9, 8], "counts": [72]}, r"annotations\[1\] .* that of the image \[9, 9\]"),
    ],
)
def test_annotations_without_a_usable_mask_are_named(segmentation: Any, message: str) -> None:
    content = annotations(segmentation=segmentation)
    assert table_of(content).masks is None
    with pytest.raises(MaskError, match=message):
        table_of(content, masks=True)
    content["images"][0].pop("height")
    with pytest.raises(MaskError, match="image 3 has no height and width"):
        table_of(content, masks=True)
    for entry in content["annotations"]:
        entry["segmentation"] = []
    assert table_of(content, masks=True).masks is None


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6]], "segmentation is .* must be compressed run lengths"),
        ({"size": [4, 4], "counts": [16]}, "segmentation is"),
        ({"size": [4], "counts": "0"}, "segmentation is"),
        ({"size": [10, 20], "counts": "52203"}, "segmentation: its run lengths do not add up to "),
        (
            {"size": [20, 10], "counts": "52203"},
            r"segmentation: its size is \[20, 10\], that of th",
        ),
        ({"size": [10.5, 20], "counts": "52203"}, "segmentation is .* must be compressed run"),
        (None, "segmentation is None; it must be compressed"),
    ],
)
def test_wrong_masks_of_results_are_named(tmp_path: Path, segmentation: Any, message: str) -> None:
    truth = table_of(annotations(), masks=True)
    assert truth.masks is not None
    rle = truth.masks[0]
    good = {"size": rle["size"], "counts": rle["counts"].decode()}
    entries = [result(segmentation=good), result(segmentation=segmentation)]
    path = written(tmp_path / "r.json", entries)
    with pytest.raises(MaskError, match=rf"r.json\[1\]: {message}"):
        load_coco_results(path, truth, masks=True)
    boxes = load_coco_results(path, truth, masks=False)
    assert boxes.masks is None
    assert boxes.boxes.tolist() == [[1, 2, 4, 6]] * 2


@pytest.mark.parametrize("empty", [None, [], {}, ""])
def test_results_whose_segmentation_is_empty_are_boxes(
    tmp_path: Path, empty: Any, caplog: Log
) -> None:
    """As pycocotools takes them, though one entry has a mask; that is told."""
    truth, found = awkward_masks(1)
    save_coco_results(tmp_path / "r.json", found, truth.category_ids)
    entries = json.loads((tmp_path / "r.json").read_text())
    mask = entries[0]["segmentation"]
    for entry in entries:
        entry["segmentation"] = empty
    expected = pycocotools_metrics(coco_dicts(truth, found)[0], json.loads(json.dumps(entries)))
    for name, first in (("none.json", empty), ("some.json", mask)):
        entries[0]["segmentation"] = first
        loaded = load_coco_results(written(tmp_path / name, entries), truth)
        assert loaded.masks is None
        assert coco_metrics(truth, loaded) == expected
        told = "some.json[1] has no mask, others have: masks are left out" in caplog.text
        assert told == (name == "some.json")


@pytest.mark.parametrize("box", [None, []])
@pytest.mark.parametrize("masks", [None, True, False])
def test_an_entry_without_a_box_has_that_of_its_mask(
    tmp_path: Path, box: Any, masks: bool | None
) -> None:
    truth, found = awkward_masks(1)
    save_coco_results(tmp_path / "r.json", found, truth.category_ids)
    entries = json.loads((tmp_path / "r.json").read_text())
    for step in (2, 1):  # every other box, then all
        for entry in entries[::step]:
            entry["bbox"] = box
        loaded = load_coco_results(written(tmp_path / "r.json", entries), truth, masks=masks)
        np.testing.assert_array_equal(loaded.boxes, found.boxes)
        assert (loaded.masks is None) == (masks is False)
