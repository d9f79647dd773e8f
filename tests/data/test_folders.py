"""What a folder holds, whatever a system, a zip or a link has put there."""

import unicodedata
from pathlib import Path

import pytest

from harmonic_jax.data.file_names import list_folder

ACCENTED = "ré.jpg"


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_what_systems_leave_behind_is_no_data(tmp_path: Path) -> None:
    names = ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "a.jpg", "__MACOSX/b.jpg")
    fill(tmp_path, *names)
    assert set(list_folder(tmp_path, depth=0).files) == {"a.jpg"}
    assert list_folder(tmp_path).files == ("a.jpg",)
    assert (
        set(list_folder(tmp_path / "absent", depth=0).files)
        == set(list_folder(tmp_path / "a.jpg", depth=0).files)
        == frozenset()
    )


def test_links_that_lead_in_circles_or_nowhere_are_left(tmp_path: Path) -> None:
    fill(tmp_path, "sub/a.jpg")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "sub")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "sub" / "a.jpg")
    (tmp_path / "c.jpg").mkdir()
    listing = list_folder(tmp_path)
    assert listing.files == ("b.jpg", "sub/a.jpg")
    assert listing.others == ("alias", "c.jpg", "gone.jpg", "self.jpg", "sub", "sub/up")
    assert list_folder(tmp_path, depth=0).files == ("b.jpg",)
    assert "'c.jpg' (a folder)" in listing.nearby("c")
    assert "'self.jpg' (a link that leads nowhere" in listing.nearby("self.jpg")


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("a.png", "a.jpg"),
        ("a.JPG", "a.jpg"),
        ("A.jpg", "a"),
        ("sub/a.jpg", "images/a.jpg"),
        ("a.jpg", "C:\\photos\\a.jpg"),
        ("a .jpg", "a.jpg"),
        ("a.jpg", "a.jpg "),
        (unicodedata.normalize("NFD", ACCENTED), unicodedata.normalize("NFC", ACCENTED)),
    ],
)
def test_what_is_near_an_absent_file_is_named(tmp_path: Path, there: str, wanted: str) -> None:
    told = list_folder(fill(tmp_path, there, "other.jpg")).nearby(wanted)
    assert told.startswith(f"; there is {there!r}")
    assert ("normal form" in told) == (not there.isascii())
    assert list_folder(tmp_path).nearby("b.jpg") == ""


def test_of_many_near_ones_a_few_are_named(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{sub}/a.jpg" for sub in range(9)))
    told = list_folder(tmp_path).nearby("a")
    assert told == "; there is '0/a.jpg', '1/a.jpg', '2/a.jpg', 6 more"
