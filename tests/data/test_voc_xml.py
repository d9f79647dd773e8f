"""Folders in PASCAL VOC's layout."""

import shutil
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from harmonic_jax.data.voc import VOC_CLASSES, voc_splits
from tests.data.voc_folder import SIZE, counts, read, thing, write


def test_one_based_inclusive_corners_become_pixels(tmp_path: Path) -> None:
    hard = thing("dog", (1.5, 1, 40, 30), "<difficult>1</difficult>")
    write(tmp_path, {"b": SIZE + thing() + hard, "a": SIZE + thing("dog")})
    source = read(tmp_path)
    assert source.class_names == VOC_CLASSES
    assert source.category_ids == tuple(range(1, 21))
    first, second = source.records
    assert (first.image_id, first.file_name, second.file_name) == (0, "b.jpg", "a.jpg")
    np.testing.assert_array_equal(first.boxes, [[0, 1, 10, 20], [0.5, 0, 40, 30]])
    assert first.labels.tolist() == [VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")]
    assert first.is_difficult.tolist() == [False, True]
    assert first.area.tolist() == [190, 39.5 * 30]
    assert source.image_bytes(1) == (tmp_path / "JPEGImages" / "a.jpg").read_bytes()
    assert counts(source) == {Reason.DIFFICULT: 1}


def test_classes_come_from_all_annotations_not_only_this_splits(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing("zebra")})
    write(tmp_path, {"b": SIZE + thing("ape")}, split="test")
    assert read(tmp_path).class_names == read(tmp_path, "test").class_names == ("ape", "zebra")


def test_a_labels_file_rules_and_other_names_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing("zebra") + thing("ape") + thing(" ape ")})
    (tmp_path / "labels.txt").write_text("ape\n\nbear\n")
    source = read(tmp_path)
    assert source.class_names == ("ape", "bear")
    assert source.records[0].labels.tolist() == [0, 0]
    assert source.report.examples(Reason.UNKNOWN_CLASS) == ("a.jpg: 'zebra'",)
    for content, named in ("ape, zebra\n", "'ape, zebra'"), ("0 ape\n1 zebra\n", "'0 ape', "):
        (tmp_path / "labels.txt").write_text(content)
        with pytest.raises(DataError, match=rf"a line, {named}.*the objects are 'ape', 'zebra'$"):
            read(tmp_path)
    (tmp_path / "labels.txt").write_text("ape\nape\n")
    with pytest.raises(DataError, match=r"labels\.txt must hold one class name a line"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 7, 5, 7), Reason.ZERO_SIZE),
        ((5, 7, 5, 9), Reason.ZERO_SIZE),
        ((9, 7, 5, 9), Reason.INVERTED),
        (("nan", 7, 5, 9), Reason.NOT_FINITE),
        (("-Infinity", 7, 5, 9), Reason.NOT_FINITE),
        (("1e999", 7, 5, 9), Reason.NOT_FINITE),
        ((41, 7, 50, 9), Reason.OUTSIDE),
        ((-5, 7, 0, 9), Reason.OUTSIDE),
    ],
)
def test_a_bad_box_is_dropped_and_named(tmp_path: Path, box: object, reason: Reason) -> None:
    write(tmp_path, {"a": SIZE + thing() + thing("dog", box)})
    source = read(tmp_path)
    assert len(source.records[0].boxes) == 1
    assert counts(source) == {reason: 1}
    assert source.report.examples(reason)[0].startswith("a.jpg: dog (")


def test_a_box_past_the_border_is_clipped(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing(box=(0, 7, 41, 9))})
    source = read(tmp_path)
    np.testing.assert_array_equal(source.records[0].boxes, [[0, 6, 40, 9]])
    assert source.report.examples(Reason.CLIPPED) == ("a.jpg: cat (0, 7, 41, 9)",)


def test_an_object_without_a_box_is_dropped(tmp_path: Path) -> None:
    part = "<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>"
    nested = f"<object><name>cat</name><part>{thing('head')}</part></object>"
    write(tmp_path, {"a": SIZE + part + nested + thing()})
    source = read(tmp_path)
    assert source.class_names == VOC_CLASSES  # the head of a cat is no object
    assert counts(source) == {Reason.MALFORMED_OBJECT: 2}


def test_bad_images_are_dropped_and_named(tmp_path: Path) -> None:
    write(tmp_path, {"good": SIZE + thing(), "bare": None, "gone": SIZE, "broken": "<a>"})
    (tmp_path / "JPEGImages" / "gone.jpg").unlink()
    lists = tmp_path / "ImageSets" / "Main" / "train.txt"
    lists.write_text("good\nbare\n\ngone\nbroken\ngood\n")
    source = read(tmp_path)
    assert [record.image_id for record in source.records] == [0]
    assert counts(source) == {
        Reason.MISSING_ANNOTATION: 1,
        Reason.MISSING_IMAGE: 1,
        Reason.UNREADABLE_ANNOTATION: 1,
        Reason.DUPLICATE_IMAGE: 1,
    }
    assert "bare.xml" in source.report.examples(Reason.MISSING_ANNOTATION)[0]
    folder = tmp_path / "JPEGImages"
    assert source.report.examples(Reason.MISSING_IMAGE) == (f"gone: not in {folder}",)
    assert "broken.xml" in source.report.examples(Reason.UNREADABLE_ANNOTATION)[0]


@pytest.mark.parametrize(
    "side", ["0", "-40", "nan", "inf", "1e400", "2147483648", "4e1.", "40.5", ""]
)
def test_a_size_that_is_none_is_read_from_the_file(tmp_path: Path, side: str) -> None:
    size = f"<size><width>{side}</width><height>30</height></size>" if side else ""
    write(tmp_path, {"a": size + thing(), "b": size + thing()})
    (tmp_path / "JPEGImages" / "b.jpg").write_bytes(b"\xff\xd8")
    source = read(tmp_path)
    assert [(record.height, record.width) for record in source.records] == [(30, 40)]
    assert counts(source) == {Reason.SIZE_FROM_FILE: 1, Reason.UNREADABLE_HEADER: 1}
    stated = f"<size> is {side} x 30" if side else "no <size>"
    assert source.report.examples(Reason.SIZE_FROM_FILE) == (f"a.jpg: {stated}",)


def test_png_images_are_found(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing()})
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "a.png")
    assert read(tmp_path).records[0].file_name == "a.png"


def test_entities_neither_grow_nor_read_files(tmp_path: Path) -> None:
    write(tmp_path, {"good": SIZE + thing(), "bomb": None, "spy": None, "wide": None})
    levels = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "lol">{levels}]><annotation>&e11;</annotation>'
    secret = tmp_path / "secret.txt"
    secret.write_text("cat")
    spy = f'<!DOCTYPE a [<!ENTITY x SYSTEM "{secret}">]><annotation>&x;</annotation>'
    (tmp_path / "Annotations" / "bomb.xml").write_text(bomb)
    (tmp_path / "Annotations" / "spy.xml").write_text(spy)
    # A declaration that a search for its bytes would miss.
    (tmp_path / "Annotations" / "wide.xml").write_text(spy, encoding="utf-16")
    start = time.perf_counter()
    source = read(tmp_path)
    assert time.perf_counter() - start < 5
    assert [record.file_name for record in source.records] == ["good.jpg"]
    assert counts(source) == {Reason.UNREADABLE_ANNOTATION: 3}


def test_a_declared_document_type_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"good": SIZE + thing(), "typed": None})
    text = f"<!DOCTYPE annotation><annotation>{SIZE}{thing()}</annotation>"
    assert ET.fromstring(text) is not None  # harmless to the parser: it is our rule that refuses
    (tmp_path / "Annotations" / "typed.xml").write_text(text)
    assert counts(read(tmp_path)) == {Reason.UNREADABLE_ANNOTATION: 1}


def test_a_devkit_joins_years(tmp_path: Path) -> None:
    write(tmp_path / "VOC2007", {"1": SIZE + thing(), "2": SIZE + thing("dog")}, split="trainval")
    write(tmp_path / "VOC2012", {"1": SIZE + thing("cow")}, split="trainval")
    assert voc_splits(tmp_path) == ("2007_trainval", "2012_trainval")
    source = read(tmp_path, "2007_trainval+2012_trainval")
    assert [record.image_id for record in source.records] == [0, 1, 2]
    labels = [VOC_CLASSES[record.labels[0]] for record in source.records]
    assert labels == ["cat", "dog", "cow"]
    assert [Path(path).parent.parent.name for path in source.paths] == [
        "VOC2007",
        "VOC2007",
        "VOC2012",
    ]
    (tmp_path / "VOC2007" / "JPEGImages" / "1.jpg").unlink()
    source = read(tmp_path, "2007_trainval+2012_trainval+2007_trainval")
    assert [record.image_id for record in source.records] == [1, 2]  # as where 1.jpg is there
    assert counts(source) == {Reason.MISSING_IMAGE: 2, Reason.DUPLICATE_IMAGE: 1}
    with pytest.raises(DataError, match=r"no split 'trainval'.*: 2007_trainval, 2012_trainval"):
        read(tmp_path, "trainval")


@pytest.mark.parametrize("split", ["val", "../Main/train", "..", "", "/etc/passwd"])
def test_an_absent_split_names_those_there_are(tmp_path: Path, split: str) -> None:
    write(tmp_path, {"a": SIZE + thing()})
    with pytest.raises(DataError, match=r"split.*: train$"):
        read(tmp_path, split)


def test_a_folder_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no ImageSets/Main.* with one: it has no folders$"):
        read(tmp_path)
    (tmp_path / "ImageSets" / "main").mkdir(parents=True)
    with pytest.raises(DataError, match=r"'ImageSets'; in ImageSets, its folders are 'main'$"):
        read(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").touch()
    with pytest.raises(DataError, match=r"the files in annotations/ are of COCO's layout"):
        read(tmp_path)
    write(tmp_path, {"a": None})
    annotations, images = tmp_path / "Annotations", tmp_path / "JPEGImages"
    with pytest.raises(DataError, match=r"Annotations holds no \.xml files: it is empty$"):
        read(tmp_path)
    (annotations / "a.json").touch()
    (images / "a.xml").touch()
    hint = "; JPEGImages holds 1 .xml, which belong in Annotations"
    with pytest.raises(DataError, match=rf"holds no \.xml files: 1 \.json{hint}$"):
        read(tmp_path)
    annotations.rename(tmp_path / "labels")
    with pytest.raises(DataError, match=rf"no folder Annotations: its folders are .*{hint}$"):
        read(tmp_path)
    (tmp_path / "labels").rename(annotations)
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{SIZE}</annotation>")
    with pytest.raises(DataError, match="no object with a name in any annotation"):
        read(tmp_path)
    (tmp_path / "labels.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"labels\.txt is not UTF-8"):
        read(tmp_path)
    (tmp_path / "labels.txt").unlink()
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"1 of 1 cannot be read, such as a\.xml: no element found"):
        read(tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    with pytest.raises(DataError, match=r"no folder JPEGImages: its folders are .*'images'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("root", "near"), [(".", "kit/VOC2007"), ("kit/VOC2007/JPEGImages", "kit/VOC2007")]
)
def test_a_folder_beside_the_right_one_names_that(tmp_path: Path, root: str, near: str) -> None:
    write(tmp_path / "kit" / "VOC2007", {"a": SIZE + thing()})
    with pytest.raises(
        DataError, match=rf"no ImageSets/Main.*; there is one in {tmp_path / near}$"
    ):
        read(tmp_path / root)


def test_an_annotation_may_keep_its_image_s_suffix(tmp_path: Path) -> None:
    write(tmp_path, {name: SIZE + thing() for name in ("a", "b", "v1.2")})
    (tmp_path / "Annotations" / "a.xml").rename(tmp_path / "Annotations" / "a.jpg.xml")
    shutil.copy(tmp_path / "Annotations" / "b.xml", tmp_path / "Annotations" / "b.jpg.xml")
    source = read(tmp_path)
    assert [record.file_name for record in source.records] == ["a.jpg", "b.jpg", "v1.2.jpg"]
    assert not source.report.findings


def test_bccd_shows_its_two_zero_size_boxes(bccd: Path) -> None:
    source = read(bccd, "trainval")
    assert source.class_names == ("Platelets", "RBC", "WBC")
    assert len(source.records) == 292
    assert counts(source) == {Reason.ZERO_SIZE: 2}
    assert source.report.examples(Reason.ZERO_SIZE) == (
        "BloodImage_00338.jpg: RBC (504, 337, 504, 337)",
        "BloodImage_00343.jpg: RBC (181, 329, 181, 329)",
    )
    test = read(bccd, "test")
    assert not test.report.findings
    # 4888 objects in the files, less the two.
    assert sum(len(record.boxes) for part in (source, test) for record in part.records) == 4886
