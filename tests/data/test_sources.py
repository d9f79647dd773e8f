"""`FORMAT:WHERE:SPLIT`, where folders and splits may hold colons too."""

import os
from pathlib import Path
from typing import Any

import pytest

from harmonic_jax.config import DataConfig
from harmonic_jax.data.records import DataError
from harmonic_jax.data.sources import open_source, parse_spec
from tests.data.voc_folder import SIZE, thing, write


@pytest.mark.parametrize(
    ("spec", "where", "split"),
    [
        ("voc:{0}/a:b", "{0}/a:b", None),
        ("coco:{0}/absent:train", "{0}/absent", "train"),
        ("voc:{0}/c", "{0}/c", None),
    ],
)
def test_a_folder_is_taken_as_a_whole(
    spec: str, where: str, split: str | None, tmp_path: Path
) -> None:
    for name in ("a:b", "c"):
        (tmp_path / name).mkdir()
    config, found = parse_spec(spec.format(tmp_path))
    assert (config.root, found) == (where.format(tmp_path), split)
    assert config.format == spec.partition(":")[0]


@pytest.mark.parametrize("split", [None, "train", "train[:10%]", "train[1:2]+test[3:]", "trainval"])
def test_a_slice_keeps_its_colons(split: str | None) -> None:
    config, found = parse_spec(f"tfds:voc/2007:{split}" if split else "tfds:voc/2007")
    assert (config.name, found) == ("voc/2007", split)


@pytest.mark.parametrize("spec", ["", "voc", "voc:", "voc::train", "pets:there", "bccd"])
def test_a_bad_spec_says_what_is_legal(spec: str) -> None:
    with pytest.raises(DataError, match="must be coco:DIR, voc:DIR, yolo:DIR or tfds:NAME"):
        parse_spec(spec)


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_a_folder_that_is_not_there_is_named(form: Any) -> None:
    with pytest.raises(DataError, match=r"data\.root is 'no/such/folder'"):
        open_source(DataConfig(format=form, root="no/such/folder"), "train")


def test_the_folder_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "bees", {"a": SIZE + thing()})
    monkeypatch.chdir(tmp_path / "bees" / "JPEGImages")
    source = open_source(DataConfig(format="voc", root=os.pardir), "train")
    assert source.name == "voc:bees:train"


def test_an_empty_list_is_said_to_be_empty(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing()})
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("\n \n")
    config = DataConfig(format="voc", root=str(tmp_path))
    with pytest.raises(DataError, match=r"val has no usable image: its list of images is empty$"):
        open_source(config, "val")
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"train has no usable image: \nmissing_image  1"):
        open_source(config, "train")
