"""Which file a COCO `file_name` means, and what is said where it means none."""

import os
import unicodedata
from pathlib import Path

import pytest

from harmonic_jax.config import DataConfig
from harmonic_jax.data.coco import read_coco
from harmonic_jax.data.report import Reason
from tests.data.test_coco_json import image, write

NFC, NFD = (unicodedata.normalize(form, "Übung é.png") for form in ("NFC", "NFD"))


def read_names(root: Path, names: list[str], files: list[str]):
    """A split `train` of images with these names, where there are these files."""
    write(root, [image(i, name) for i, name in enumerate(names)], [], files=())
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return read_coco(root, "train", DataConfig())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "train/a.png"),
        ("a.png", "images/train/a.png"),
        ("a.png", "train/images/a.png"),
        ("a.png", "images/a.png"),
        ("a.png", "a.png"),
        ("sub/a.png", "train/sub/a.png"),
        ("sub\\a.png", "train/sub/a.png"),
        ("./a.png", "train/a.png"),
        ("images/a.png", "images/a.png"),
        ("images\\a.png", "images/a.png"),
        ("train/a.png", "train/a.png"),
        ("images/train/a.png", "images/train/a.png"),
        ("../images/a.png", "images/a.png"),
        ("..\\images\\train\\a.png", "images/train/a.png"),
        ("sub/../a.png", "train/a.png"),
        ("a\\b.png", "train/a\\b.png"),  # a name that has one, where there is such a file
        ("a b.png", "train/a b.png"),
        ("a.png ", "train/a.png"),
        ("a.png ", "train/a.png "),
        (NFC, f"train/{NFD}"),
        (NFD, f"train/{NFC}"),
        ("12:30.png", "train/12:30.png"),
        ("a\x1b[31m\n.png", "train/a\x1b[31m\n.png"),
        ("café\udce9.png", os.fsdecode("train/café".encode() + b"\xe9.png")),
    ],
)
def test_names_that_mean_a_file(tmp_path: Path, name: str, file: str) -> None:
    source = read_names(tmp_path, [name], [file])
    assert source.paths == (str(tmp_path / file),)
    assert source.records[0].file_name == name
    source.fingerprint()
    assert "\n" not in source.report.examples(Reason.EMPTY_IMAGE)[0]


def test_an_absolute_name_under_the_root_is_there(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    source = read_names(data, [f"{data}/train/a.png"], ["train/a.png"])
    assert source.paths == (str(data / "train" / "a.png"),)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../../../../../../../secret.png", "is not under"),
        ("..\\..\\..\\..\\..\\..\\..\\secret.png", "is not under"),
        ("/home/someone/images/a.png", "is not under"),
        ("C:\\Users\\a.png", "is not under"),
        ("\\\\server\\share\\a.png", "is not under"),
        ("https://host/a.png", "an address; it must name a file under"),
        ("file:///a.png", "an address"),
        ("data:image/png;base64," + "iVBOR" * 10_000, "an address"),
        ("", "which names no file"),
        (" ", "which names no file"),
        (".", "which names no file"),
        ("train/", "which names no file"),
        ("train/..", "which names no file"),
        ("a.png\0", "which names no file"),
    ],
)
def test_names_that_lead_out_or_nowhere_are_malformed(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    source = read_names(tmp_path / "data", [name], ["train/b.png"])
    (example,) = source.report.examples(Reason.MALFORMED_IMAGE)
    assert reason in example
    assert len(example) < 500
    assert "\n" not in example


@pytest.mark.parametrize(
    ("name", "file", "near"),
    [
        ("a.png", "train/a.jpg", "there is 'train/a.jpg'"),
        ("a.png", "train/A.PNG", "there is 'train/A.PNG'"),
        ("a.png", "photos/a.png", "there is 'photos/a.png'"),
        ("images\\1/a.png", "images/a.png", "there is 'images/a.png'"),
        ("a.png", "train/a.png/b.png", "there is 'train/a.png' (a folder)"),
        ("a\x1b.png", "train/b.png", "'a\\x1b.png': not under"),
        ("x" * 300 + ".png", "train/b.png", "..."),
        ("\ud800/a.png", "train/b.png", "'\\ud800/a.png': not under"),
        ("._a.png", "train/._a.png", "._a.png: not under"),
    ],
)
def test_an_absent_file_is_told_with_where_it_was_looked_for(
    tmp_path: Path, name: str, file: str, near: str
) -> None:
    source = read_names(tmp_path, [name], [file])
    (example,) = source.report.examples(Reason.MISSING_IMAGE)
    assert near in example
    assert (
        f"not under {tmp_path}, in any of train, images/train, train/images, images, ." in example
    )
    assert "\x1b" not in example


def test_all_names_are_of_the_folder_that_has_most_of_them(tmp_path: Path) -> None:
    """A file that is absent there may be another image elsewhere: that is told, and not taken."""
    names = ["1.png", "2.png", "3.png"]
    files = ["images/1.png", "images/2.png", "train/3.png"]
    source = read_names(tmp_path, names, files)
    assert source.paths == tuple(str(tmp_path / file) for file in files[:2])
    (example,) = source.report.examples(Reason.MISSING_IMAGE)
    assert example == f"3.png: not in {tmp_path / 'images'}; there is 'train/3.png'"


def test_what_is_near_is_looked_for_only_where_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(
        "harmonic_jax.data.file_names.Listing.nearby",
        lambda self, name, **_: looked.append(name) or "",
    )
    source = read_names(tmp_path, [f"{i}.png" for i in range(300)], [])
    assert source.report.count(Reason.MISSING_IMAGE) == 300
    assert len(looked) == 5
