"""Which file a name means, what is said where it means none, and what a folder holds."""

import os
import unicodedata
from pathlib import Path

import pytest

from harmonic_jax.data.decode import SUFFIXES
from harmonic_jax.data.file_names import NamedFiles, list_files, nearby
from harmonic_jax.data.folders import FolderSource, read_class_names
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from tests.data.coco_folder import image, read, write

NFC, NFD = (unicodedata.normalize(form, "Übung é.png") for form in ("NFC", "NFD"))


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


# Folders


def test_what_systems_leave_behind_is_no_data(tmp_path: Path) -> None:
    names = ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "a.jpg", "__MACOSX/b.jpg")
    fill(tmp_path, *names)
    assert list_files(tmp_path) == list_files(tmp_path, depth=0) == ("a.jpg",)
    assert list_files(tmp_path / "absent") == list_files(tmp_path / "a.jpg") == ()


def test_links_to_folders_and_to_nowhere_are_left(tmp_path: Path) -> None:
    fill(tmp_path, "sub/a.jpg")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "sub")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "sub" / "a.jpg")
    (tmp_path / "c.jpg").mkdir()
    assert list_files(tmp_path) == ("b.jpg", "sub/a.jpg")
    assert list_files(tmp_path, depth=0) == ("b.jpg",)
    assert list_files(tmp_path / "alias") == ("a.jpg",)  # which is asked for


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("a.png", "a.jpg"),
        ("A.jpg", "a"),
        ("sub/a.jpg", "C:\\photos\\a.jpg "),
        (NFD, NFC),
    ],
)
def test_what_is_near_an_absent_file_is_named(there: str, wanted: str) -> None:
    assert nearby([there, "other.jpg"], wanted) == f"; there is {there!r}"
    assert nearby([there, "other.jpg"], "b.jpg") == ""
    many = [f"{sub}/{there}" for sub in range(9)]
    assert nearby(many, wanted) == f"; there is {', '.join(map(repr, many[:3]))}, .."


# Names that people write


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *((name, "sub/a.png") for name in ("sub/a.png", "sub\\a.png", "./sub/a.png")),
        *((name, "a b.png") for name in ("a b.png", " a b.png\t", '"a b.png"', "'a b.png'")),
        *((name, name) for name in ("a.png ", "'a'.png", "a\\b.png", "12:30.png", "a\x1b[31m.png")),
        *((name, "a.png") for name in ("{root}/a.png", "x/../a.png")),
        *zip((NFC, NFD), (NFD, NFC), strict=True),
        ("café\udce9.png", os.fsdecode("café".encode() + b"\xe9.png")),
    ],
)
def test_whole_names(tmp_path: Path, name: str, file: str) -> None:
    name = name.replace("{root}", str(tmp_path))
    folder = fill(tmp_path, file, "b.png", "b/a.jpg")
    assert NamedFiles(folder).find(name) == (file,)


@pytest.mark.parametrize(
    "name",
    [
        "../../../../../../../../etc/passwd",
        "..\\..\\..\\..\\..\\..\\..\\data2\\b.png",
        "/home/someone/images/b.png",
        "C:\\Users\\b.png",
        "{root}//{root}2/b.png",
        "https://host/b.png",
        "data:image/png;base64," + "iVBOR" * 10_000,
        *("", " ", ".", "train/", "train/..", "a\0/b.png", "\ud800/a.png", "a\x1b.png", "._b.png"),
        *("b.png", "train/b", "train/B.png", "../train/b.png"),
    ],
)
def test_no_other_name_means_a_file(tmp_path: Path, name: str) -> None:
    """What leads out of the folder is not found in it, and nothing else is looked at."""
    fill(tmp_path, "data2/b.png", "data/train/b.png", "data/train/._b.png")
    files = NamedFiles(tmp_path / "data")
    name = name.replace("{root}", str(files.folder))
    assert files.find(name) == ()
    told = files.absence(name)
    assert f"not in {files.folder}" in told
    assert len(told) < 500
    assert not {"\n", "\x1b"} & set(told)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *((name, "a.jpg") for name in (
            "a", "a ", "\ta", '"a"', "a.jpg", "images/a.jpg", "images\\a.jpg",
            "VOC2007/images/a", "../images/a.jpg", "/x/a.jpg", "C:\\Ann\\a.jpg",
        )),
        ("/home/ann/VOC2007/images/part 1.jpg", "part 1.jpg"),
        *((name, f"{name}.jpg") for name in ("gear (1)", "'a", '"quoted"', "a ", "v.2020", "#1")),
        ("photo.2020.jpg", "photo.2020.jpg"),
        ("c", "sub/c.jpg"),
        ("sub/c", "sub/c.jpg"),
        (NFC.removesuffix(".png"), NFD),
    ],
)  # fmt: skip
def test_names_without_folder_or_suffix(tmp_path: Path, name: str, file: str) -> None:
    folder = fill(tmp_path / "images", file, "other.jpg", "1.jpg", "part.jpg", "a.txt")
    assert NamedFiles(folder, SUFFIXES).find(name) == (file,)


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ("a.JPG a.jpg", "a.JPG a.jpg"),
        ("x/a.jpg y/a.jpg", "x/a.jpg y/a.jpg"),
        ("a.bmp a.png", "a.bmp a.png"),
        ("a.bmp a.jpg", "a.jpg"),
        ("a.heic A.jpg", ""),
    ],
)
def test_a_name_may_mean_several_files_or_none(tmp_path: Path, there: str, found: str) -> None:
    files = NamedFiles(fill(tmp_path, *there.split()), SUFFIXES)
    assert files.find("a") == tuple(found.split())
    assert found or files.absence("a").endswith("; there is 'A.jpg', 'a.heic'")


# The folder of COCO's images


def read_names(root: Path, names: list[str], files: list[str]) -> FolderSource:
    """A split `train` of images with these names, where there are these files."""
    write(root, [image(i, name) for i, name in enumerate(names)], [], files=())
    fill(root, *files)
    return read(root)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "train/a.png"),
        ("a.png", "images/train/a.png"),
        ("a.png", "train/images/a.png"),
        ("a.png", "images/a.png"),
        ("a.png", "a.png"),
        ("images\\a.png", "images/a.png"),
        ("train/a.png", "train/a.png"),
        ("{root}/train/a.png", "train/a.png"),
        ("a\x1b[31m\n.png", "train/a\x1b[31m\n.png"),
    ],
)
def test_the_folders_of_a_split(tmp_path: Path, name: str, file: str) -> None:
    name = name.replace("{root}", str(tmp_path))
    source = read_names(tmp_path, [name], [file])
    assert source.paths == (str(tmp_path / file),)
    assert source.records[0].file_name == name
    assert "\n" not in source.report.examples(Reason.EMPTY_IMAGE)[0]


def test_all_names_are_of_the_folder_that_has_most_of_them(tmp_path: Path) -> None:
    """A file that is absent there may be another image elsewhere: that is told, and not taken."""
    names = ["1.png", "2.png", "3.png"]
    files = ["images/1.png", "images/2.png", "train/3.png"]
    source = read_names(tmp_path, names, files)
    assert source.paths == tuple(str(tmp_path / file) for file in files[:2])
    (example,) = source.report.examples(Reason.MISSING_IMAGE)
    assert example == f"3.png: not in {tmp_path / 'images'}"


def test_what_is_near_is_looked_for_only_where_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(
        "harmonic_jax.data.file_names.nearby", lambda _, name: looked.append(name) or ""
    )
    source = read_names(tmp_path, [f"{i}.png" for i in range(300)], [])
    assert source.report.count(Reason.MISSING_IMAGE) == 300
    assert len(looked) == 5


# Files of class names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_line_ends_and_spaces_are_no_part_of_a_name(
    tmp_path: Path, encoding: str, end: str
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(end.join(["cat", "", " traffic  light\t", "猫"]).encode(encoding))
    assert read_class_names(path) == ("cat", "traffic light", "猫")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has none"),
        (b"cat\ndog\n cat\n", "each once; 'cat' is there twice"),
        ("é\ne\u0301".encode(), "is there twice"),
        (b"cat\nh\xf6hle", "is not UTF-8 text: .* in line 2"),
        (b"\xff\xfe\xff", "is not UTF-16 text"),
        ("cat\ndog".encode("utf-16-le"), "is no text: it has a zero byte in line 1"),
        (b"N/A\ncat\nN/A\ncat\n", "'cat' is there twice"),  # N/A may be there more than once
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{path}.*{message}"):
        read_class_names(path, repeatable="N/A")
    path.write_text("cat\nN/A\ndog\nN/A\n")
    assert read_class_names(path, repeatable="N/A") == ("cat", "N/A", "dog", "N/A")


def test_of_two_normal_forms_the_one_that_is_written_counts(tmp_path: Path) -> None:
    files = NamedFiles(fill(tmp_path, NFC, NFD))
    if len(files.files) < 2:
        pytest.skip("the file system takes both for one")
    assert files.find(NFC) == (NFC,)
    assert files.find(NFD) == (NFD,)
