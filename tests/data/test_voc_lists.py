"""Lists of images as VOC, scripts, tools and systems write them, and the files that they name."""

import unicodedata
from pathlib import Path

import pytest

from harmonic_jax.__main__ import main
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from harmonic_jax.data.voc import voc_splits
from tests.data.coco_folder import counts
from tests.data.voc_folder import SIZE, read, thing, write

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
CAT = SIZE + thing()


def files(root: Path, data: str | bytes, *images: str) -> list[str]:
    """The images that a list with these contents gives, of those with these names."""
    if images:
        write(root, dict.fromkeys(images, CAT))
    path = root / "ImageSets" / "Main" / "train.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [record.file_name for record in read(root).records]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_of_all_systems(tmp_path: Path, encoding: str, end: str) -> None:
    data = end.join(["a", "", "part 1", "  ", NFC]).encode(encoding)
    assert files(tmp_path, data, "a", "part 1", NFC) == ["a.jpg", "part 1.jpg", f"{NFC}.jpg"]


def test_a_list_may_have_bytes_that_are_no_text(tmp_path: Path) -> None:
    name = "h\udcf6hle"  # Latin-1, as an old disk has it
    assert files(tmp_path, b"a\nh\xf6hle\n", "a", name) == ["a.jpg", f"{name}.jpg"]
    assert main(["check-data", f"voc:{tmp_path}", "--no-decode"]) == 0  # it is printed, and hashed


def test_flags_of_a_list_of_one_class(tmp_path: Path) -> None:
    found = files(tmp_path, "a  1\npart 1 -1\nc  0\nd\t1\n", "a", "part 1", "c", "d")
    assert found == ["a.jpg", "c.jpg", "d.jpg"]
    source = read(tmp_path)
    assert [record.image_id for record in source.records] == [0, 2, 3]
    assert counts(source) == {Reason.NEGATIVE_IMAGE: 1}
    assert source.report.examples(Reason.NEGATIVE_IMAGE) == ("part 1",)
    assert files(tmp_path, '"part 1" 1\n"a"  -1\n') == ["part 1.jpg"]


def test_a_name_is_not_cut_to_one_with_a_flag(tmp_path: Path) -> None:
    """Some lines end in a number: those are names, and no other image is taken in their place."""
    assert files(tmp_path, "part 0\npart 1\npart 2\n", "part", "part 2") == ["part 2.jpg"]
    source = read(tmp_path)
    assert counts(source) == {Reason.MISSING_IMAGE: 2}
    assert source.report.examples(Reason.MISSING_IMAGE)[0] == (
        f"part 0: not in {tmp_path / 'JPEGImages'}"
    )
    # Every line ends in one, but one is an image's whole name.
    assert files(tmp_path, "part 0\npart 1\n", "part 1") == ["part 1.jpg"]


def test_lists_of_one_class_are_no_splits(tmp_path: Path) -> None:
    write(tmp_path, {"a": CAT, "part 1": CAT})
    lists = tmp_path / "ImageSets" / "Main"
    for name, text in {
        "cat_train": "a  1\npart 1 -1\n",
        "big_cat_train": "a  1\npart 1 -1\n",
        "night_train": "a\npart 1\n",
        "flags": "a 1\npart 1 -1\n",
        "none": "",
        "._train": "\0\0",
    }.items():
        (lists / f"{name}.txt").write_text(text)
    (lists / "Upper.TXT").write_text("a\n")
    (lists / "folder.txt").mkdir()
    assert voc_splits(tmp_path) == ("Upper", "flags", "night_train", "none", "train")
    assert [record.file_name for record in read(tmp_path, "cat_train").records] == ["a.jpg"]
    assert len(read(tmp_path, "Upper").records) == 1


def test_a_list_may_have_a_plus_in_its_name(tmp_path: Path) -> None:
    write(tmp_path, {"a": CAT}, split="day+night")
    write(tmp_path, {"b": CAT}, split="day")
    assert len(read(tmp_path, "day+night").records) == 1
    assert len(read(tmp_path, "day + day").records) == 1
    with pytest.raises(DataError, match=r"no split 'night' .*: day, day\+night$"):
        read(tmp_path, "day+day+night")


def test_an_image_that_is_not_clear_is_named_as_written(tmp_path: Path) -> None:
    write(tmp_path, {"good": CAT})
    folder = tmp_path / "JPEGImages"
    for name in ("a.bmp", "a.png"):
        (folder / name).write_bytes(b"")
    assert files(tmp_path, "good\na\na.jpg\n../../etc/passwd\n") == ["good.jpg"]
    source = read(tmp_path)
    assert source.report.examples(Reason.MISSING_IMAGE) == (
        f"a: may mean 2 files of {folder}: 'a.bmp', 'a.png'",
        f"a.jpg: not in {folder}; there is 'a.bmp', 'a.png'",
        f"../../etc/passwd: not in {folder}",
    )


def test_images_and_annotations_in_sub_folders(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a", "b", "c", "d", "e"], CAT))
    images, xml = tmp_path / "JPEGImages", tmp_path / "Annotations"
    for folder, name in (images, "a.jpg"), (xml, "b.xml"), (images, "c.jpg"), (xml, "c.xml"):
        (folder / "sub").mkdir(exist_ok=True)
        (folder / name).rename(folder / "sub" / name)
    (images / "sub" / "e.jpg").write_bytes((images / "e.jpg").read_bytes())
    (images / "loop").symlink_to(images)
    found = files(tmp_path, "a\nsub/c\nb\ne\nsub/e\n")
    assert found == ["sub/a.jpg", "sub/c.jpg", "b.jpg", "e.jpg"]
    source = read(tmp_path)
    # e.xml may be that of e.jpg alone: there are two of the name.
    assert counts(source) == {Reason.MISSING_ANNOTATION: 1}
    (example,) = source.report.examples(Reason.MISSING_ANNOTATION)
    assert example == f"sub/e.xml: not in {xml}; there is 'e.xml'"


def test_annotations_of_a_backup_and_of_systems_are_no_data(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing("zebra"), "sub/a": SIZE + thing("ape")})
    backup = tmp_path / "Annotations" / "old"
    backup.mkdir()
    (backup / "a.xml").write_text("<annotation><object><name>gnu</name></object></annotation>")
    for folder in "ImageSets/Main", "Annotations", "JPEGImages":
        for name in "._a.xml", "._a.jpg", "._train.txt", ".DS_Store", "Thumbs.db":
            (tmp_path / folder / name).write_bytes(b"\0\x05\x16\x07\xff")
    source = read(tmp_path)
    assert source.class_names == ("ape", "zebra")
    assert [record.labels.tolist() for record in source.records] == [[1], [0]]
    assert voc_splits(tmp_path) == ("train",)
    assert not source.report.findings


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.XML"], None),
        (["A.xml"], Reason.MISSING_ANNOTATION),
        (["x/a.xml", "y/a.xml"], Reason.UNREADABLE_ANNOTATION),
    ],
)
def test_annotations_in_another_case_or_twice(
    tmp_path: Path, names: list[str], reason: Reason | None
) -> None:
    write(tmp_path, {"good": CAT, "a": CAT})
    folder = tmp_path / "Annotations"
    (folder / "a.xml").unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "good.xml").read_bytes())
    source = read(tmp_path)
    assert counts(source) == ({reason: 1} if reason else {})
    assert all(names[0] in example for example in source.report.examples(reason or ""))
