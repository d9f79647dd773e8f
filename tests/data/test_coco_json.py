"""Folders in COCO's layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harmonic_jax.data.coco_json import coco_splits, read_coco
from harmonic_jax.data.folders import FolderSource
from harmonic_jax.data.reasons import Reason
from harmonic_jax.data.records import DataError

CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}]


def image(identity: Any, name: Any, **fields: Any) -> dict[str, Any]:
    return {"id": identity, "file_name": name, "height": 30, "width": 40} | fields


def thing(identity: Any, image_id: Any, bbox: Any = (1, 2, 3, 4), **fields: Any) -> dict[str, Any]:
    entry = {"id": identity, "image_id": image_id, "bbox": bbox, "category_id": 9, "iscrowd": 0}
    return entry | fields


def write(
    root: Path,
    images: list[Any],
    annotations: list[Any],
    *,
    categories: Any = CATEGORIES,
    files: tuple[str, ...] = ("a.png", "b.png"),
) -> None:
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    for name in files:
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / "train" / name)


def read(root: Path, split: str = "train") -> FolderSource:
    return read_coco(root, split, max_objects=100)


def test_objects_of_each_image_in_the_order_of_the_file(tmp_path: Path) -> None:
    annotations = [
        thing(1, 20, [1, 2, 3, 4], area=5.5),
        thing(2, 10, [0, 0, 40, 30], category_id=2, iscrowd=1),
        thing(3, 20, [5.25, 6, 7, 8.5], category_id=2),
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


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (thing(1, 77), Reason.UNKNOWN_IMAGE),
        (thing(1, None), Reason.UNKNOWN_IMAGE),
        (thing(1, [1]), Reason.UNKNOWN_IMAGE),
        ("nonsense", Reason.UNKNOWN_IMAGE),
        (thing(1, 1, category_id=3), Reason.UNKNOWN_CLASS),
        (thing(1, 1, category_id="9"), Reason.UNKNOWN_CLASS),
        (thing(1, 1, [1, 2, 3]), Reason.MALFORMED_OBJECT),
        (thing(1, 1, [1, 2, 3, "4"]), Reason.MALFORMED_OBJECT),
        (thing(1, 1, [1, 2, 3, None]), Reason.MALFORMED_OBJECT),
        (thing(1, 1, [1, 2, 3, 10**400]), Reason.MALFORMED_OBJECT),
        (thing(1, 1, None), Reason.MALFORMED_OBJECT),
        (thing(1, 1, [1, 2, 0, 4]), Reason.ZERO_SIZE),
        (thing(1, 1, [9, 2, -3, 4]), Reason.INVERTED),
        (thing(1, 1, [float("nan"), 2, 3, 4]), Reason.NOT_FINITE),
        (thing(1, 1, [1, 2, float("inf"), 4]), Reason.NOT_FINITE),
        (thing(1, 1, [40, 2, 3, 4]), Reason.OUTSIDE),
    ],
)
def test_a_bad_object_is_dropped_and_named(tmp_path: Path, entry: Any, reason: Reason) -> None:
    write(tmp_path, [image(1, "a.png")], [thing(5, 1), entry])
    source = read(tmp_path)
    assert len(source.records[0].boxes) == 1
    assert {rule: finding.count for rule, finding in source.report.findings.items()} == {reason: 1}
    if reason != Reason.UNKNOWN_IMAGE:
        assert source.report.examples(reason)[0].startswith("a.png: ")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (image(2, "gone.png"), Reason.MISSING_IMAGE),
        (image(2, "../a.png"), Reason.MALFORMED_IMAGE),
        (image(2, "/etc/passwd"), Reason.MALFORMED_IMAGE),
        (image(2, None), Reason.MALFORMED_IMAGE),
        (image("2", "b.png"), Reason.MALFORMED_IMAGE),
        (image(2**70, "b.png"), Reason.MALFORMED_IMAGE),
        (17, Reason.MALFORMED_IMAGE),
        (image(1, "b.png"), Reason.DUPLICATE_IMAGE),
        (image(2, "broken.png", height=0), Reason.UNREADABLE_HEADER),
    ],
)
def test_a_bad_image_is_dropped_and_named(tmp_path: Path, entry: Any, reason: Reason) -> None:
    write(tmp_path, [image(1, "a.png"), entry], [thing(5, 1)])
    (tmp_path / "train" / "broken.png").write_bytes(b"\x89PNG")
    source = read(tmp_path)
    assert [record.file_name for record in source.records] == ["a.png"]
    assert {rule: finding.count for rule, finding in source.report.findings.items()} == {reason: 1}


def test_objects_of_a_dropped_image_go_with_it(tmp_path: Path) -> None:
    write(tmp_path, [image(1, "a.png"), image(2, "gone.png")], [thing(5, 1), thing(6, 2)])
    source = read(tmp_path)
    assert set(source.report.findings) == {Reason.MISSING_IMAGE}
    assert source.report.examples(Reason.MISSING_IMAGE) == ("gone.png",)


def test_a_size_that_is_not_stated_is_read_from_the_file(tmp_path: Path) -> None:
    write(tmp_path, [image(1, "a.png", width=None)], [thing(5, 1)])
    source = read(tmp_path)
    assert (source.records[0].height, source.records[0].width) == (30, 40)
    assert source.report.examples(Reason.SIZE_FROM_FILE) == ("a.png",)


def test_repeated_annotation_ids_are_counted_and_kept(tmp_path: Path) -> None:
    write(tmp_path, [image(1, "a.png")], [thing(0, 1), thing(0, 1, [5, 5, 5, 5]), thing(0, 1)])
    source = read(tmp_path)
    assert len(source.records[0].boxes) == 3
    assert source.report.count(Reason.DUPLICATE_ANNOTATION_ID) == 2
    assert source.report.count(Reason.DUPLICATE_OBJECT) == 1


def test_images_in_subfolders_and_in_a_folder_called_images(tmp_path: Path) -> None:
    write(tmp_path, [image(1, "x/a.png")], [thing(1, 1)], files=("x/a.png",))
    assert len(read(tmp_path).records) == 1
    (tmp_path / "train").rename(tmp_path / "images")
    assert len(read(tmp_path).records) == 1


def test_masks_do_not_hide_the_box(tmp_path: Path) -> None:
    masks = {"counts": [1, 2], "size": [30, 40]}
    write(tmp_path, [image(1, "a.png")], [thing(1, 1, segmentation=masks)])
    assert len(read(tmp_path).records[0].boxes) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no list 'images'"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "needs a name"),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "id of its own",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, [], [])
    (tmp_path / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(DataError, match=r"instances_train\.json") as caught:
        read(tmp_path)
    assert message in str(caught.value)


def test_an_absent_split_names_those_there_are(tmp_path: Path) -> None:
    write(tmp_path, [], [])
    assert coco_splits(tmp_path) == ("train",)
    with pytest.raises(DataError, match=r"instances_val\.json does not exist.*: train"):
        read(tmp_path, "val")


def test_real_images_agree_with_the_annotation_file(coco_tiny: Path) -> None:
    source = read(coco_tiny, "train2017")
    content = json.loads((coco_tiny / "annotations" / "instances_train2017.json").read_text())
    assert len(source.records) == 80
    assert source.category_ids == tuple(sorted(entry["id"] for entry in content["categories"]))
    assert source.report.count(Reason.CROWD) == 6
    assert set(source.report.findings) == {Reason.CROWD}
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
