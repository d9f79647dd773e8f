"""`data.eval_share`: folders without lists, or with one split, in two parts."""

import shutil
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
from PIL import Image

from harmonic_jax.__main__ import main
from harmonic_jax.checks import ConfigError
from harmonic_jax.config import DataConfig
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from harmonic_jax.data.sources import list_splits, open_source
from harmonic_jax.data.voc import read_voc, voc_splits
from tests.data import coco_folder, voc_folder
from tests.data.coco_folder import counts
from tests.data.voc_folder import SIZE, thing

NAMES = [f"photo{i:02}" for i in range(20)]
# Those whose hash is below 0.3.
EVALUATED = {"photo00", "photo01", "photo06", "photo09", "photo13", "photo15", "photo18"}


def write(root: Path, *, images: str, xml: str, names: list[str] = NAMES) -> Path:
    for folder in (root / images, root / xml):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30)).save(root / images / f"{name}.jpg")
        text = f"<annotation>{SIZE}{thing()}</annotation>"
        (root / xml / f"{name}.xml").write_text(text)
    return root


def parts(root: Path, form: Any = "voc", share: float = 0.3) -> list[set[str]]:
    """The names of the images that are trained on, and of those that are evaluated on."""
    config = DataConfig(format=form, root=str(root), eval_share=share)
    assert list_splits(config) == ("train", "validation")
    found = []
    for split in list_splits(config):
        source = open_source(config, split)
        assert source.name == f"{form}:{root.name}:{split}"
        assert [len(record.boxes) for record in source.records] == [1] * len(source.records)
        found.append({PureWindowsPath(name).stem for name in source.records.file_names})
    return found


@pytest.mark.parametrize(
    ("images", "xml"),
    [("", ""), ("images", "annots"), ("photos/2020", "xmls"), ("images", "images/xml"),
     ("JPEGImages", "Annotations"), ("", "annotations")],
)  # fmt: skip
def test_annotations_without_lists_are_found_wherever_they_lie(
    images: str, xml: str, tmp_path: Path
) -> None:
    write(tmp_path, images=images, xml=xml)
    assert parts(tmp_path) == [set(NAMES) - EVALUATED, EVALUATED]


def test_an_image_added_later_moves_no_other(tmp_path: Path) -> None:
    before = parts(write(tmp_path, images="", xml=""))
    write(tmp_path, images="new", xml="new", names=["a", "b", "photo1", "z"])
    after = parts(tmp_path)
    assert [old & new for old, new in zip(before, after, strict=True)] == before
    assert sum(map(len, after)) == 24
    small, large = parts(tmp_path, share=0.1)[1], parts(tmp_path, share=0.5)[1]
    assert small < after[1] < large


def test_the_same_images_are_chosen_in_every_format(tmp_path: Path) -> None:
    voc, coco, yolo = (tmp_path / name for name in ("voc", "coco", "yolo"))
    voc.mkdir()
    voc_folder.write(voc, dict.fromkeys(NAMES, SIZE + thing()), split="default")
    coco.mkdir()
    files = tuple(f"sub/{name}.png" for name in NAMES)
    images = [coco_folder.image(i, file.replace("/", "\\")) for i, file in enumerate(files)]
    objects = [coco_folder.thing(i, i) for i in range(len(files))]
    coco_folder.write(coco, images, objects, files=files)
    write(yolo, images="images", xml="xml")
    (yolo / "classes.txt").write_text("cat\n")
    for name in NAMES:
        (yolo / "images" / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    for root in (voc, coco, yolo):
        assert parts(root, root.name) == [set(NAMES) - EVALUATED, EVALUATED]


def test_without_a_share_the_error_names_it(tmp_path: Path) -> None:
    write(tmp_path, images="images", xml="annots")
    config = DataConfig(format="voc", root=str(tmp_path))
    told = r"no ImageSets/Main/SPLIT\.txt, .*; --data\.eval-share 0\.2 splits"
    with pytest.raises(DataError, match=told):
        list_splits(config)
    with pytest.raises(DataError, match=told):
        open_source(config, "train")


def test_folders_that_are_called_like_splits_are_some(tmp_path: Path) -> None:
    """Roboflow's VOC: the same name may be in two of them."""
    write(tmp_path, images="train", xml="train", names=["a", "b"])
    write(tmp_path, images="valid/images", xml="valid/xml", names=["a"])
    assert voc_splits(tmp_path) == ("train", "valid")
    for split, names in (("train", ("a.jpg", "b.jpg")), ("valid", ("images/a.jpg",))):
        assert read_voc(tmp_path, split, DataConfig()).records.file_names == names
    with pytest.raises(DataError, match=r"no split 'test' under .*: train, valid$"):
        read_voc(tmp_path, "test", DataConfig())


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", r"^data\.eval_share=0\.2 makes train and validation .* has train, valid$"),
        ("valid", r"asked for is valid, and"),
    ],
)
def test_a_share_is_for_one_split_and_makes_two(split: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, images="train", xml="train")
    config = DataConfig(format="voc", root=str(tmp_path), eval_share=0.2)
    if split == "train":
        write(tmp_path, images="valid", xml="valid")
    with pytest.raises(DataError, match=message):
        open_source(config, split)


def test_images_without_annotations_and_twins_are_named(tmp_path: Path) -> None:
    write(tmp_path, images="images", xml="annots")
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "bare.jpg")
    shutil.copytree(tmp_path / "images", tmp_path / "drawn")
    (tmp_path / "drawn" / "bare.jpg").unlink()
    for name in NAMES[1:]:
        (tmp_path / "drawn" / f"{name}.jpg").unlink()
    config = DataConfig(format="voc", root=str(tmp_path), eval_share=0.3)
    source = open_source(config, "validation")
    assert {Path(name).stem for name in source.records.file_names} == EVALUATED - {"photo00"}
    assert counts(source) == {Reason.MISSING_ANNOTATION: 3}  # found before the images are divided
    assert source.report.examples(Reason.MISSING_ANNOTATION)[0].startswith("drawn/photo00.xml: not")


@pytest.mark.parametrize("options", [{"format": "tfds"}, {"eval_split": "train"}])
def test_where_a_share_means_nothing_it_is_refused(options: dict[str, Any]) -> None:
    given = {"format": "voc", "root": "x", "eval_share": 0.2}
    with pytest.raises(ConfigError, match=r"data\.eval_share is 0\.2; it must be None with tfds"):
        DataConfig(**given | options)
    for share in (0, 1, True):
        with pytest.raises(ConfigError, match=r"data\.eval_share is .*; it must be a number in"):
            DataConfig(**given | {"eval_share": share})


def test_check_data_shows_both_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, images="images", xml="xmls")
    assert main(["check-data", f"voc:{tmp_path}", "--no-decode", "--eval-share", "0.3"]) == 0
    out = capsys.readouterr().out
    assert f"== voc:{tmp_path.name}:train\n13 images, 13 objects" in out
    assert f"== voc:{tmp_path.name}:validation\n7 images, 7 objects" in out
    assert main(["check-data", f"voc:{tmp_path}"]) == 1
    assert "--data.eval-share" in capsys.readouterr().err


def test_names_without_a_suffix_are_divided_too(tmp_path: Path) -> None:
    """As those with one: `photo00` goes where `photo00.jpg` goes."""
    images = [coco_folder.image(i, name) for i, name in enumerate(NAMES)]
    things = [coco_folder.thing(i, i) for i in range(len(NAMES))]
    coco_folder.write(tmp_path, images, things, files=())
    (tmp_path / "train").mkdir()
    for name in NAMES:
        Image.new("RGB", (40, 30)).save(tmp_path / "train" / name, "PNG")
    assert parts(tmp_path, "coco") == [set(NAMES) - EVALUATED, EVALUATED]
