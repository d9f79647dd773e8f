"""Names on a command line -> files; and the folder that is written, which harms no other file."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.inference.detections import ImageDetections
from harmonic_jax.inference.inputs import find_inputs, is_video, listed, unique_names
from harmonic_jax.inference.output import OutputFolder
from harmonic_jax.inference.predictions import map_ahead


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.PNG", "a.jpg", "notes.txt", "clip.mp4", "[1].png", "below/c.webp"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([""], ["[1].png", "a.jpg", "b.PNG", "clip.mp4"]),
        (["**/*"], ["[1].png", "a.jpg", "b.PNG", "c.webp", "clip.mp4"]),
        (["*.jpg", "b.PNG", ""], ["a.jpg", "b.PNG", "[1].png", "clip.mp4"]),
        (["notes.txt"], ["notes.txt"]),  # named itself
        (["[1].png"], ["[1].png"]),  # a name, not a pattern
    ],
)
def test_files_folders_and_globs(folder: Path, patterns: list[str], expected: list[str]) -> None:
    found, _ = find_inputs([f"{folder}/{pattern}" for pattern in patterns])
    assert names(found) == expected
    assert [is_video(path) for path in found] == [name == "clip.mp4" for name in expected]


def test_brackets_in_a_folder_s_name_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "in [1]*"
    (folder / "b[2]").mkdir(parents=True)
    for name in ("a.jpg", "b[2]/b.jpg"):
        (folder / name).touch()
    assert names(find_inputs([f"{folder}/*.jpg"])[0]) == ["a.jpg"]
    assert names(find_inputs([f"{folder}/**/*.jpg"])[0]) == ["a.jpg", "b.jpg"]
    assert names(find_inputs([f"{folder}/b[[]2]/*"])[0]) == ["b.jpg"]


def test_what_is_left_out_is_counted(folder: Path) -> None:
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "photo.heic", "b.heic", "noname", "c.JFIF"):
        (folder / name).touch()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "again.jpg").symlink_to("a.jpg")
    found, left_out = find_inputs([str(folder)])
    assert names(found) == ["[1].png", "a.jpg", "b.PNG", "c.JFIF", "clip.mp4"]
    assert left_out == {
        "hidden": 3, ".heic": 2, "without a suffix": 1, ".txt": 1, "no regular file": 2,
        "folders": 1, "the same file again": 1,
    }  # fmt: skip
    assert listed(left_out).startswith("hidden 3, ")
    assert find_inputs([str(folder / "a.jpg")])[1] == {}
    assert find_inputs([f"{folder}/**"])[1]["folders"] == 0


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("nowhere.jpg", "nowhere.jpg: there is no such file"),
        ("~nobody/here.jpg", "~nobody/here.jpg: there is no such file"),
        ("*.txt", r"nor an image \(.*jpg.*left out: .txt 1"),
        ("deep", r"deep: .* left out: \.heic 1, folders 1"),
        ("deep/pipe.jpg", "left out: no regular file 1"),
    ],
)
def test_nothing_found_is_an_error_that_says_what_is_there(
    folder: Path, pattern: str, words: str
) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "a.heic").touch()
    if "pipe" in pattern:
        os.mkfifo(folder / pattern)
    with pytest.raises(ConfigError, match=words):
        find_inputs([pattern if pattern.startswith("~") else f"{folder}/{pattern}"])


def test_names_never_collide_and_fit_into_a_folder(tmp_path: Path) -> None:
    """Cut where too long, and apart for systems that take two ways of writing é for one."""
    plain = [Path(p) for p in ("a/x.jpg", "b/x.jpg", "x.png", "c/x_2.jpg", "X.jpg")]
    long = [Path(letter * (250 // len(letter.encode())) + ".webp") for letter in ("x", "猫")]
    accents = [Path("caf\u00e9.jpg"), Path("cafe\u0301.jpg")]
    odd = [Path(os.fsdecode(b"\xff.jpg")), Path(" .jpg"), Path("[/b].png"), Path("x" * 300)]
    found = unique_names([*plain, *long, *long, *accents, *odd], ".jpg")
    assert found[0] == "x.jpg"
    assert found[10] == "cafe\u0301_2.jpg"
    assert len({name.casefold() for name in found}) == len(found)
    for name in found:
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == len(found)


def open_folder(folder: Path, inputs: list[Path], **options: bool) -> OutputFolder:
    return OutputFolder(folder, inputs, class_names=["cat", "dog"], category_ids=[3, 7], **options)


def test_only_an_own_or_empty_folder_is_written_to(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="not of an earlier prediction"):
        open_folder(folder, [])
    with pytest.raises(ConfigError, match="is a file"):
        open_folder(folder / "a.jpg", [])
    for _ in range(2):
        opened = open_folder(out, [folder / "a.jpg"])
        assert opened.pictures == {folder / "a.jpg": out / "pictures" / "a.jpg"}
    inside = out / "pictures" / "a.jpg"
    inside.touch()
    with pytest.raises(ConfigError, match=re.escape(f"{inside} is an input")):
        open_folder(out, [inside])
    for content in ("[]", "{}", '{"info": 3}', '{"info": {"made_by": "x"}}', "[" * 10**5, "\xff"):
        (out / "images.json").write_text(content, encoding="latin-1")
        with pytest.raises(ConfigError, match="choose a new folder"):
            open_folder(out, [])


def test_earlier_pictures_go_and_foreign_files_stay(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = open_folder(out, [folder / "a.jpg", folder / "clip.mp4"])
    for picture in first.pictures.values():
        picture.write_text("drawn")
    (out / "pictures" / "mine.jpg").write_text("mine")
    (out / "pictures" / "folder.jpg").mkdir()
    (tmp_path / "precious").write_text("precious")
    content = json.loads((out / "images.json").read_text())
    assert content["info"]["pictures"] == ["a.jpg", "clip.mp4"]
    # A list that somebody else wrote names nothing outside.
    content["info"]["pictures"] += ["../precious", "../../precious", "folder.jpg", 3, "gone.jpg"]
    (out / "images.json").write_text(json.dumps(content))
    second = open_folder(out, [folder / "b.PNG", folder / "mine.png", folder / "[1].png"])
    names = {path.name for path in (out / "pictures").iterdir()}
    assert names == {"mine.jpg", "folder.jpg"}
    assert (out / "pictures" / "mine.jpg").read_text() == "mine"
    assert second.pictures[folder / "mine.png"].name == "mine_2.jpg"  # nobody's file is replaced
    assert (tmp_path / "precious").exists()
    (out / "pictures" / "mine.jpg").unlink()
    (out / "pictures" / "folder.jpg").rmdir()
    assert open_folder(out, [], draws=False).pictures == {}
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "images.json"]


def test_results_in_coco_format(tmp_path: Path) -> None:
    found = ImageDetections(
        np.array([[1, 2, 4, 8]], np.float32), np.array([0.5], np.float32), np.array([1]),
        ("dog",), (10, 20),
    )  # fmt: skip
    none = found.above(0.9)
    assert len(none) == 0
    entry = {"id": 1, "width": 20, "height": 10, "file_name": "a.jpg"}
    out = open_folder(tmp_path, [])
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert json.loads((tmp_path / "images.json").read_text())["images"] == []
    out.save([entry | {"id": 2}, entry], [(2, found), (1, none)])
    assert json.loads((tmp_path / "detections.json").read_text()) == [
        {"image_id": 2, "category_id": 7, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    ]
    images = json.loads((tmp_path / "images.json").read_text())
    assert [image["id"] for image in images["images"]] == [1, 2]
    assert images["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def test_what_is_computed_ahead_keeps_its_order() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    results = map_ahead(lambda n: n * n, numbers(), threads=2, ahead=4)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3, 4]
    assert list(results) == [n * n for n in range(1, 20)]
