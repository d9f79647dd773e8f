"""Folders in PASCAL VOC's layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from harmonic_jax.__main__ import main
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from harmonic_jax.data.voc import VOC_CLASSES, voc_splits
from tests.data.coco_folder import counts
from tests.data.voc_folder import SIZE, read, thing, write


def test_one_based_inclusive_corners_become_pixels(tmp_path: Path) -> None:
    hard = thing("dog", (1.5, 1, 40, 30), "<difficult>1</difficult>")
    clipped = thing("cow", (0, 7, 41, 9))
    write(tmp_path, {"b": SIZE + thing() + hard, "a": SIZE + clipped})
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "a.png")
    source = read(tmp_path)
    assert source.class_names == VOC_CLASSES
    assert source.category_ids == tuple(range(1, 21))
    first, second = source.records
    assert (first.image_id, first.file_name, second.file_name) == (0, "b.jpg", "a.png")
    np.testing.assert_array_equal(first.boxes, [[0, 1, 10, 20], [0.5, 0, 40, 30]])
    np.testing.assert_array_equal(second.boxes, [[0, 6, 40, 9]])
    assert first.labels.tolist() == [VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")]
    assert first.is_difficult.tolist() == [False, True]
    assert first.area.tolist() == [190, 39.5 * 30]
    assert source.image_bytes(1) == (tmp_path / "JPEGImages" / "a.png").read_bytes()
    assert counts(source) == {Reason.DIFFICULT: 1, Reason.CLIPPED: 1}
    assert source.report.examples(Reason.CLIPPED) == ("a.png: cow (0, 7, 41, 9)",)


def test_classes_come_from_all_annotations_or_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing("zebra") + thing(" ape ")})
    write(tmp_path, {"b": SIZE + thing("bee")}, split="test")
    names = ("ape", "bee", "zebra")
    assert read(tmp_path).class_names == read(tmp_path, "test").class_names == names
    path = tmp_path / "labels.txt"
    path.write_text("ape\n\nbear\n")
    source = read(tmp_path)
    assert source.class_names == ("ape", "bear")
    assert source.records[0].labels.tolist() == [0]
    assert source.report.examples(Reason.UNKNOWN_CLASS) == ("a.jpg: 'zebra'",)
    path.write_text("ape, zebra\n")
    told = r"no object is of its classes, \('ape, zebra',\), but of \['ape', 'bee', 'zebra'\]$"
    with pytest.raises(DataError, match=told):
        read(tmp_path)
    path.write_text("ape\nape\n")
    with pytest.raises(DataError, match=r"labels\.txt must hold one class name a line"):
        read(tmp_path)


def test_bad_images_are_dropped_and_named(tmp_path: Path) -> None:
    write(tmp_path, {"good": SIZE + thing(), "bare": None, "gone": SIZE, "broken": "<a>"})
    folder = tmp_path / "JPEGImages"
    (folder / "gone.jpg").unlink()
    lists = tmp_path / "ImageSets" / "Main" / "train.txt"
    lists.write_text("good\nbare\n\ngone\nbroken\ngood\n")
    source = read(tmp_path)
    assert [record.image_id for record in source.records] == [0]
    expected = {
        Reason.MISSING_ANNOTATION: "bare.xml",
        Reason.MISSING_IMAGE: f"gone: not in {folder}",
        Reason.UNREADABLE_ANNOTATION: "broken.xml",
        Reason.DUPLICATE_IMAGE: "good",
    }
    assert counts(source) == dict.fromkeys(expected, 1)
    for reason, named in expected.items():
        assert named in source.report.examples(reason)[0]


@pytest.mark.parametrize("side", ["0", "-40", "nan", "1e400", "2147483648", "4e1.", "40.5", ""])
def test_a_size_that_is_none_is_read_from_the_file(tmp_path: Path, side: str) -> None:
    size = f"<size><width>{side}</width><height>30</height></size>" if side else ""
    write(tmp_path, {"a": size + thing(), "b": size + thing()})
    (tmp_path / "JPEGImages" / "b.jpg").write_bytes(b"\xff\xd8")
    source = read(tmp_path)
    assert [(record.height, record.width) for record in source.records] == [(30, 40)]
    assert counts(source) == {Reason.SIZE_FROM_FILE: 1, Reason.UNREADABLE_HEADER: 1}
    stated = f"<size> is {side} x 30" if side else "no <size>"
    assert source.report.examples(Reason.SIZE_FROM_FILE) == (f"a.jpg: {stated}",)


def test_a_devkit_joins_years(tmp_path: Path) -> None:
    write(tmp_path / "VOC2007", {"1": SIZE + thing(), "2": SIZE + thing("dog")}, split="trainval")
    write(tmp_path / "VOC2012", {"1": SIZE + thing("cow")}, split="trainval")
    assert voc_splits(tmp_path) == ("2007_trainval", "2012_trainval")
    source = read(tmp_path, "2007_trainval+2012_trainval")
    assert [record.image_id for record in source.records] == [0, 1, 2]
    labels = [VOC_CLASSES[record.labels[0]] for record in source.records]
    assert labels == ["cat", "dog", "cow"]
    years = [Path(path).parts[-3] for path in source.paths]
    assert years == ["VOC2007", "VOC2007", "VOC2012"]
    (tmp_path / "VOC2007" / "JPEGImages" / "1.jpg").unlink()
    source = read(tmp_path, "2007_trainval+2012_trainval+2007_trainval")
    assert [record.image_id for record in source.records] == [1, 2]  # as where 1.jpg is there
    assert counts(source) == {Reason.MISSING_IMAGE: 2, Reason.DUPLICATE_IMAGE: 1}
    with pytest.raises(DataError, match=r"no split 'trainval'.*: 2007_trainval, 2012_trainval"):
        read(tmp_path, "trainval")


@pytest.mark.parametrize("split", ["val", "../Main/train", "..", "", "/etc/passwd"])
def test_an_absent_split_names_those_there_are(tmp_path: Path, split: str) -> None:
    write(tmp_path, {"a": SIZE + thing()})
    with pytest.raises(DataError, match=r"split.*: train; --data\.eval-share 0\.2 divides it$"):
        read(tmp_path, split)


def test_a_folder_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(DataError, match=words):
            read(tmp_path)

    refused("has no ImageSets/Main")
    write(tmp_path, {"a": None})
    refused(r"Annotations holds no \.xml files$")
    path = tmp_path / "Annotations" / "a.xml"
    path.write_text(f"<annotation>{SIZE}</annotation>")
    refused("no object with a name in any annotation")
    path.write_text("<annotation>")
    refused("no object .*; a file no element found")


def test_with_lists_too_folders_may_have_other_names(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing()})
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    assert read(tmp_path).records.file_names == ("images/a.jpg",)
    (tmp_path / "Annotations").rename(tmp_path / "xmls")
    assert len(read(tmp_path).records[0].boxes) == 1


def test_an_annotation_may_keep_its_image_s_suffix(tmp_path: Path) -> None:
    write(tmp_path, {name: SIZE + thing() for name in ("a", "b", "v1.2")})
    folder = tmp_path / "Annotations"
    (folder / "a.xml").rename(folder / "a.jpg.xml")
    shutil.copy(folder / "b.xml", folder / "b.jpg.xml")
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


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        ("08-voc-names-with-spaces/plain", ["2 images, 2 objects"]),
        ("08-voc-names-with-spaces/quoted", ["2 images, 2 objects"]),
        ("08-voc-names-with-spaces/mixed", ["3 images, 3 objects"]),
        (
            "08-voc-names-with-spaces/copies",
            ["also in test, pixel for pixel", "gear (1).jpg (gear.jpg)"],
        ),
        ("10-macos-dot-underscore/data", ["2 images, 2 objects"]),
        ("11-voc-object-without-name/no_tag", ["car ", "malformed_object  1"]),
        ("11-voc-object-without-name/one_of_own_classes", ["bolt  ", "malformed_object  1"]),
        ("12-voc-several-bndbox/data", ["bolt          3         1", "no rule applied"]),
        (
            "22-voc-xml-encodings-and-shapes/data",
            [
                "18 images, 14 objects",
                "amp.xml: not well-formed (invalid token): line 1",
                "latin1.xml: 'utf-8' codec can't decode byte 0xf6",
                "comma.jpg: bolt: <xmin> is '9,5', not a number",
                "polygon.jpg: bolt: no <bndbox>",
                "diff_true.jpg: bolt (9, 7, 28, 22)",
                "size0.jpg: <size> is 0 x 0",
            ],
        ),
        ("23-voc-lists-and-suffixes/data", ["3 images", "negative_image  1"]),
        ("23-voc-lists-and-suffixes/suf", ["10 images, 10 objects"]),
    ],
)
def test_reported_folders(
    cases: Path, case: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", f"voc:{cases / case}"]) == 0
    out = capsys.readouterr().out
    assert "missing_image" not in out
    for line in lines:
        assert line in out
