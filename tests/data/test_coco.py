"""Folders in COCO's layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.data.coco import coco_splits
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from harmonic_jax.json_file import JsonFileError
from harmonic_jax.metrics.coco import coco_metrics
from harmonic_jax.metrics.files import (
    load_coco_annotations,
    load_coco_results,
    save_coco_annotations,
    save_coco_results,
)
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from tests.data.coco_folder import counts, image, read, thing, write

NAN = float("nan")


def test_objects_of_each_image_in_the_order_of_the_file(tmp_path: Path) -> None:
    annotations = [
        thing(1, 20, [1, 2, 3, 4], area=5.5),
        thing(2, 10, [0, 0, 40, 30], category_id=2, iscrowd=1),
        thing(3, 20, [5.25, 6, 7, 8.5], category_id=2, segmentation={"counts": [1], "size": [2]}),
    ]
    write(tmp_path, [image(20, "a.png"), image(10, "b.png")], annotations)
    source = read(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert source.category_ids == (2, 9)
    assert [record.image_id for record in source.records] == [20, 10]
    first, second = source.records
    np.testing.assert_array_equal(first.boxes, [[1, 2, 4, 6], [5.25, 6, 12.25, 14.5]])
    assert first.labels.tolist() == [1, 0]
    assert first.area.tolist() == [5.5, 59.5]
    assert second.is_crowd.tolist() == [True]
    assert source.image_bytes(1) == (tmp_path / "train" / "b.png").read_bytes()
    assert source.name == f"coco:{tmp_path.name}:train"


BAD_OBJECTS = {
    Reason.UNKNOWN_IMAGE: [
        "nonsense", *(thing(1, value) for value in (77, None, [1], 1.5, "1", 10**40)),
    ],
    Reason.UNKNOWN_CLASS: [thing(1, 1, category_id=value) for value in (3, "9", 10**40, [9])],
    Reason.MALFORMED_OBJECT: [
        *(thing(1, 1, iscrowd=value) for value in ("no", NAN, [0], 2)),
        thing(1, 1, difficult="Unspecified"),
        *(thing(1, 1, [1, 2, 3, value]) for value in ("4", None, 10**400)),
        thing(1, 1, [1, 2, 3]),
        thing(1, 1, None),
    ],
    Reason.NOT_FINITE: [thing(1, 1, box) for box in ([NAN, 2, 3, 4], [1e308, 2, 1e308, 4])],
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD_OBJECTS)
def test_a_bad_object_is_dropped_and_named(tmp_path: Path, reason: Reason) -> None:
    entries = BAD_OBJECTS[reason]
    write(tmp_path, [image(1, "a.png")], [thing(5, 1), *entries])
    source = read(tmp_path)
    assert len(source.records[0].boxes) == 1
    assert counts(source)[reason] == len(entries)
    is_named = source.report.examples(reason)[0].startswith("a.png: ")
    assert is_named == (reason != Reason.UNKNOWN_IMAGE)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (image(2, "gone.png"), Reason.MISSING_IMAGE),
        (image(2, "elsewhere/a.png"), Reason.MISSING_IMAGE),
        (image(2, "/etc/passwd"), Reason.MISSING_IMAGE),
        (image(2, None), Reason.MALFORMED_IMAGE),
        *((image(key, "b.png"), Reason.MALFORMED_IMAGE) for key in (2.5, 1e20, True, "")),
        (17, Reason.MALFORMED_IMAGE),
        (image(1, "b.png"), Reason.DUPLICATE_IMAGE),
        (image(1.0, "b.png"), Reason.DUPLICATE_IMAGE),
        (image(2, "broken.png", height=0), Reason.UNREADABLE_HEADER),
    ],
)
def test_a_bad_image_is_dropped_and_named(tmp_path: Path, entry: Any, reason: Reason) -> None:
    write(tmp_path, [image(1, "a.png"), entry], [thing(5, 1)])
    (tmp_path / "train" / "broken.png").write_bytes(b"\x89PNG")
    source = read(tmp_path)
    assert [record.file_name for record in source.records] == ["a.png"]
    assert counts(source) == {reason: 1}


@pytest.mark.parametrize("name", ["gone.png", None])
def test_objects_of_a_dropped_image_go_with_it(tmp_path: Path, name: str | None) -> None:
    """Whatever is wrong with them, and with it: their image is known."""
    objects = [thing(5, 1), thing(6, 2), thing(7, 2, "no box"), thing(8, 2, area="x")]
    write(tmp_path, [image(1, "a.png"), image(2, name)], objects)
    source = read(tmp_path)
    reason = Reason.MISSING_IMAGE if name else Reason.MALFORMED_IMAGE
    assert counts(source) == {reason: 1, Reason.DROPPED_WITH_IMAGE: 3}
    assert str(name) in source.report.examples(reason)[0]
    assert len(source.records[0].boxes) == 1


@pytest.mark.parametrize("width", [None, 0, "40", 40.5, NAN, 2**31, [40]])
def test_a_size_that_is_not_stated_is_read_from_the_file(tmp_path: Path, width: Any) -> None:
    write(tmp_path, [image(1, "a.png", width=width)], [thing(5, 1)])
    source = read(tmp_path)
    assert (source.records[0].height, source.records[0].width) == (30, 40)
    assert source.report.examples(Reason.SIZE_FROM_FILE)[0].startswith("a.png: height 30, width ")


@pytest.mark.parametrize("field", ["iscrowd", "difficult"])
def test_flags_as_people_write_them(tmp_path: Path, field: str) -> None:
    values = (0, 0.0, False, "0", None, 1, 1.0, True, "1")
    objects = [thing(i, 1, [i, 1, 5, 5], **{field: value}) for i, value in enumerate(values)]
    path = write(tmp_path, [image(1, "a.png")], objects)
    source = read(tmp_path)
    record = source.records[0]
    expected = [False] * 5 + [True] * 4
    assert (record.is_crowd if field == "iscrowd" else record.is_difficult).tolist() == expected
    assert counts(source) == {Reason.CROWD if field == "iscrowd" else Reason.DIFFICULT: 4}
    truth = load_coco_annotations(path)
    assert (truth.is_crowd | truth.is_difficult).tolist() == expected


def test_what_is_kept_and_counted(tmp_path: Path) -> None:
    areas = ["12", -1, NAN, 10**400, [3], True]
    objects = [thing(float(i), 1.0, [i, 1, 3, 4], area=area) for i, area in enumerate(areas)]
    objects += [thing(9, 1, [0, 0, 5, 5], area=None), thing(9, 1, [1, 1, 5, 5], ignore=1)]
    write(tmp_path, [image(1, "a.png", height=30.0)], objects)
    source = read(tmp_path)
    assert source.records[0].area.tolist() == [12] * len(areas) + [25, 25]
    expected = {"area_from_box": len(areas), "ignore_flag": 1, "duplicate_annotation_id": 1}
    assert counts(source) == expected
    assert source.report.examples("area_from_box")[0].startswith("a.png: annotations[0]: area is ")


def test_image_ids_of_any_kind_come_back_in_results(tmp_path: Path) -> None:
    large = [2**63, 18446744073709551615, 273522283196958101516178255469787759710, -(2**70)]
    ids = [*large, "0001_d", "7", 7]
    names = [f"{i}.png" for i in range(len(ids))]
    images = [image(key, name) for key, name in zip(ids, names, strict=True)]
    objects = [thing(i, key, [i, 1, 5, 5]) for i, key in enumerate(ids)]
    path = write(tmp_path, images, objects, files=tuple(names))
    source = read(tmp_path)
    assert not source.report.findings
    assert [record.boxes[0, 0] for record in source.records] == list(range(len(ids)))
    assert len({record.image_id for record in source.records}) == len(ids)
    assert [r.original_id for r in source.records] == [*ids[:-1], None]
    parts = source.records, source.class_names, source.category_ids
    truth = GroundTruthTable.from_records(*parts)
    of_file = load_coco_annotations(path)
    assert of_file.image_ids.tolist() == truth.image_ids.tolist()
    found = DetectionTable(truth.image_id, truth.boxes, np.ones(len(ids)), truth.labels)
    save_coco_results(tmp_path / "r.json", found, truth.category_ids, truth.original_ids)
    assert [e["image_id"] for e in json.loads((tmp_path / "r.json").read_text())] == ids
    again = load_coco_results(tmp_path / "r.json", of_file)
    assert coco_metrics(of_file, again)["AP"] == pytest.approx(1)
    save_coco_annotations(tmp_path / "a.json", of_file)
    assert load_coco_annotations(tmp_path / "a.json").original_ids == of_file.original_ids


def test_two_categories_of_one_name_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    names = ["helmet", "vest", " helmet\n", "cup"]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    write(tmp_path, [image(1, "a.png")], [thing(1, 1, category_id=2)], categories=categories)
    source = read(tmp_path)
    assert source.class_names == ("helmet (id 0)", "vest", "helmet (id 2)", "cup")
    assert source.records[0].labels.tolist() == [2]
    assert source.report.examples(Reason.SAME_CLASS_NAME) == (
        "2 categories are called 'helmet': here 'helmet (id 0)', 'helmet (id 2)'",
    )
    # What an evaluation during training makes of it.
    table = GroundTruthTable.from_records(source.records, source.class_names, source.category_ids)
    assert table.class_names == source.class_names


GOOD = [{"id": 1, "name": "a"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is no annotation file: [] must be an object with images"),
        ({"images": [], "annotations": {}, "categories": GOOD}, "annotations is {}"),
        ({"images": [], "annotations": [], "categories": []}, "list of categories is empty"),
        *(
            ({"images": [], "annotations": [], "categories": [*GOOD, *entries]}, message)
            for *entries, message in (
                ({"name": "b"}, "categories[1]: no id"),
                ({"id": 1, "name": "b"}, "categories[1]: id 1 is that of 'a' too"),
                ({"id": 2**64, "name": "b"}, "id is 18446744073709551616; it must be a whole"),
                ({"id": 2, "name": "cup\ud83d"}, r"name is 'cup\ud83d'; it must be a text"),
                ("b", "categories[1]: 'b' must be an object"),
                ({"id": 2, "name": "a"}, {"id": 3, "name": "a (id 1)"}, "names of categories are"),
            )
        ),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_by_name(
    tmp_path: Path, content: Any, message: str
) -> None:
    """By both readers alike."""
    path = write(tmp_path, [], [])
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"instances_train\.json") as caught:
        read(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(JsonFileError) as also:
        load_coco_annotations(path)
    assert str(also.value) == str(caught.value)


@pytest.mark.parametrize("split", ["val", "", "../annotations/instances_train", "a\0b"])
def test_a_split_is_a_name_and_an_absent_one_names_those_there_are(
    tmp_path: Path, split: str
) -> None:
    write(tmp_path, [], [])
    assert coco_splits(tmp_path) == ("train",)
    with pytest.raises(DataError, match=r"\.json does not exist; splits .*: train"):
        read(tmp_path, split)


def test_roboflow_s_folders_hold_annotations_beside_the_images(tmp_path: Path) -> None:
    path = write(tmp_path, [image(1, "a.png")], [thing(1, 1)])
    path.rename(tmp_path / "train" / "_annotations.coco.json")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "_annotations.coco.json").write_bytes(b"\0")
    assert coco_splits(tmp_path) == ("train",)
    assert len(read(tmp_path).records) == 1


def test_lvis_is_read_as_coco_and_its_lists_go_along(tmp_path: Path) -> None:
    """Images by their URLs, of two folders of COCO's; the numbers are those of the file."""
    lists = {"neg_category_ids": [2], "not_exhaustive_category_ids": [9]}
    images = [
        {"id": key, "height": 30, "width": 40, "coco_url": f"http://images.org/{name}"} | lists
        for key, name in ((5, "train/a.png"), (6, "val/b.png"))
    ]
    objects = [thing(1, 5), thing(2, 6, ignore=1), thing(3, 6, [9, 9, 9, 9])]
    for entry in objects:
        del entry["iscrowd"]
    groups = [
        {"id": 9, "name": "dog", "frequency": "c"},
        {"id": 2, "name": "cat", "frequency": "r"},
    ]
    files = ("a.png", "../val/b.png")
    path = write(tmp_path, images, objects, categories=groups, files=files)
    path = path.rename(path.parent / "lvis_v1_val.json")
    assert coco_splits(tmp_path) == ("lvis_v1_val",)
    source = read(tmp_path, "lvis_v1_val")
    assert source.records.file_names == ("train/a.png", "val/b.png")
    assert counts(source) == {Reason.DIFFICULT: 1}  # what `ignore` asks for
    parts = source.records, source.class_names, source.category_ids, source.federation
    truth, of_file = GroundTruthTable.from_records(*parts), load_coco_annotations(path)
    assert of_file.federation is not None
    assert of_file.federation.frequencies == ("r", "c")
    found = DetectionTable(
        [5, 5, 6, 6],
        [[1, 2, 4, 6], [0, 0, 9, 9], [9, 9, 18, 18], [20, 0, 25, 9]],
        [0.9, 0.8, 0.7, 0.95],
        [1, 0, 1, 1],
    )
    assert coco_metrics(truth, found) == coco_metrics(of_file, found)
    assert coco_metrics(truth, found)["AP_c"] == pytest.approx(1)

    content = json.loads(path.read_text())
    content["images"][1]["neg_category_ids"] = [3]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"lvis_v1_val\.json: image 6: neg_category_ids has 3; it"):
        read(tmp_path, "lvis_v1_val")


def test_real_images_agree_with_the_annotation_file(coco_tiny: Path) -> None:
    source = read(coco_tiny, "train2017")
    content = json.loads((coco_tiny / "annotations" / "instances_train2017.json").read_text())
    assert len(source.records) == 80
    assert source.category_ids == tuple(sorted(entry["id"] for entry in content["categories"]))
    assert counts(source) == {Reason.CROWD: 6}
    by_image: dict[int, list[Any]] = {}
    for entry in content["annotations"]:
        by_image.setdefault(entry["image_id"], []).append(entry)
    for record in source.records:
        entries = by_image.get(record.image_id, [])
        x, y, w, h = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4).T
        np.testing.assert_allclose(record.boxes, np.stack([x, y, x + w, y + h], 1), atol=1e-4)
        categories = [source.category_ids[label] for label in record.labels]
        assert categories == [entry["category_id"] for entry in entries]
        assert record.is_crowd.tolist() == [entry["iscrowd"] == 1 for entry in entries]
        np.testing.assert_allclose(record.area, [entry["area"] for entry in entries], rtol=1e-6)
