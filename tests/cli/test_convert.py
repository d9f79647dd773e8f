"""`harmonic-jax convert`: boxes, classes and flags in every format, and back."""

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from harmonic_jax.__main__ import main
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sources import list_splits, open_source, parse_spec
from tests.data import coco_folder as coco
from tests.data import voc_folder as voc

NAMES = ("dog", "traffic light", "yes & <no>", "Größe: 齿轮")


def sources(spec: str) -> dict[str, DetectionSource]:
    config, _ = parse_spec(spec)
    return {split: open_source(config, split) for split in list_splits(config)}


def convert(spec: str, to: str, out: Path, *options: str) -> str:
    assert main(["convert", spec, "--to", to, "--out", str(out), *options]) == 0
    return f"{to}:{out}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 images of odd sizes with boxes of all digits, one more than a pixel at least."""
    rng = np.random.default_rng(0)
    images, objects = [], []
    for i in range(40):
        width, height = (int(side) for side in rng.integers(20, 900, 2))
        name = f"{'ab'[i % 2]}/{i // 2}.png"  # every name is there in two folders
        images.append(coco.image(i, name, width=width, height=height))
        (tmp_path / "in" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height)).save(tmp_path / "in" / "train" / name)
        for _ in range(5):
            x, w = np.sort(rng.uniform(0, width - 2, 2).astype(np.float32)).tolist()
            y, h = np.sort(rng.uniform(0, height - 2, 2).astype(np.float32)).tolist()
            box = [x, y, w - x + 1.5, h - y + 1.5]
            label = int(rng.integers(4))
            objects.append(coco.thing(len(objects), i, box, category_id=7 + label))
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(NAMES)]
    coco.write(tmp_path / "in", images, objects, categories=categories, files=())
    return tmp_path


@pytest.mark.parametrize("chain", [("voc", "yolo"), ("yolo", "voc"), ("yolo",), ("voc",), ()])
def test_boxes_and_classes_come_back_to_the_last_bit(chain: tuple[str, ...], folder: Path) -> None:
    spec = f"coco:{folder / 'in'}"
    want = sources(spec)["train"]
    for to in (*chain, "coco"):
        spec = convert(spec, to, folder / f"{len(os.listdir(folder))}_{to}")
    got = sources(spec)["train"]
    assert got.class_names == want.class_names == NAMES
    assert got.report.findings == {}
    assert len(got.records) == len(want.records) == 40
    for a in want.records:
        match = [
            b
            for b in got.records
            if np.array_equal(a.boxes, b.boxes) and list(a.labels) == list(b.labels)
        ]
        assert [(b.height, b.width) for b in match] == [(a.height, a.width)]


def test_other_readers_find_the_same(folder: Path) -> None:
    """pycocotools; an XML parser; and numbers of YOLO's text, in float64."""
    want = sources(f"coco:{folder / 'in'}")["train"].records
    for to in ("coco", "voc", "yolo"):
        convert(f"coco:{folder / 'in'}", to, folder / to)
    by_id = {r.image_id: r for r in want}
    file = COCO(folder / "coco" / "annotations" / "instances_train.json")
    names = {row["file_name"]: row["id"] for row in file.loadImgs(file.getImgIds())}
    assert sorted(names) == sorted(f"{i}{s}.png" for i in range(20) for s in ("", "_2"))
    classes = yaml.safe_load((folder / "yolo" / "data.yaml").read_text())
    assert classes == {"train": "images/train", "names": dict(enumerate(NAMES))}
    assert (folder / "voc" / "labels.txt").read_text().splitlines() == list(NAMES)
    assert set((folder / "voc/ImageSets/Main/train.txt").read_text().split()) == {
        name.removesuffix(".png") for name in names
    }
    for name, identity in names.items():
        record, stem = by_id[identity], name.removesuffix(".png")
        boxes = record.boxes.astype(np.float64)
        xywh = np.array([row["bbox"] for row in file.imgToAnns[identity]])
        np.testing.assert_allclose(xywh, np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]))
        root = ET.parse(folder / "voc" / "Annotations" / f"{stem}.xml").getroot()
        assert root.findtext("filename") == name
        assert [item.findtext("name") for item in root.iter("object")] == [
            NAMES[label] for label in record.labels
        ]
        corners = [[float(value.text) for value in box] for box in root.iter("bndbox")]
        np.testing.assert_allclose(corners, boxes + np.array([1, 1, 0, 0]), atol=1e-4)
        rows = np.loadtxt(folder / "yolo" / "labels" / "train" / f"{stem}.txt", ndmin=2)
        assert rows[:, 0].tolist() == record.labels.tolist()
        size = np.array([record.width, record.height])
        half = np.hstack([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2])
        np.testing.assert_allclose(half * np.tile(size, 2), boxes, atol=1e-9)


def test_what_a_format_cannot_hold_is_counted(tmp_path: Path, capsys) -> None:
    outline = [[1, 2, 9, 2, 9, 12, 1, 12]]
    objects = [
        coco.thing(1, 0, [1, 2, 8, 10], segmentation=outline, area=80),
        coco.thing(2, 0, [5, 5, 20, 20], iscrowd=1),
        coco.thing(3, 0, [1, 2, 8, 9], difficult=1, category_id=2),
        coco.thing(4, 0, [1, 2, 0.5, 9]),
    ]
    categories = [{"id": 2, "name": "c\x07t"}, {"id": 9, "name": "dog"}]
    coco.write(tmp_path / "in", [coco.image(0, "a.png")], objects, categories=categories)
    spec, told = f"coco:{tmp_path / 'in'}", {}
    for to in ("coco", "voc", "yolo"):
        convert(spec, to, tmp_path / to)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "coco:in:train: 1 image, 4 objects, crowd 1, difficult 1"
        told[to] = lines[1:-1]
    assert told["coco"] == []
    assert told["voc"] == [
        "voc holds no boxes of a pixel or less, left out: 1",
        "voc holds no crowd regions, left out: 1",
        "voc holds no masks: 1",
        "voc holds no control characters in class names, written \ufffd: 1",
    ]
    assert told["yolo"] == [
        "yolo holds no difficult flags: 1",
        "yolo holds no crowd regions, left out: 1",
        "yolo holds no masks: 1",
    ]
    entries = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())
    assert [row["iscrowd"] for row in entries["annotations"]] == [0, 1, 0, 0]
    assert [row["difficult"] for row in entries["annotations"]] == [0, 0, 1, 0]
    (record,), (other,) = (
        coco.read(tmp_path / name, masks=True).records for name in ("in", "coco")
    )
    assert list(record.masks) == list(other.masks)
    voc_record = sources(f"voc:{tmp_path / 'voc'}")["train"].records[0]
    assert voc_record.is_difficult.tolist() == [False, True]
    assert sources(f"voc:{tmp_path / 'voc'}")["train"].class_names == ("c\ufffdt", "dog")
    assert sources(f"yolo:{tmp_path / 'yolo'}")["train"].class_names == ("c\x07t", "dog")


def test_lists_of_the_same_images_share_them(tmp_path: Path, capsys) -> None:
    """VOC's trainval: one file and annotation; in YOLO, whose splits are folders, two links."""
    root = tmp_path / "in"
    voc.write(
        root, {"a": voc.SIZE + voc.thing(), "b": voc.SIZE + voc.thing("dog")}, split="trainval"
    )
    (root / "ImageSets/Main/val2012.txt").write_text("b\n")
    assert list(sources(convert(f"voc:{root}", "voc", tmp_path / "voc"))) == ["trainval", "val2012"]
    assert sorted(os.listdir(tmp_path / "voc" / "JPEGImages")) == ["a.jpg", "b.jpg"]
    got = sources(convert(f"voc:{root}", "yolo", tmp_path / "yolo", "--copy"))
    assert {split: len(source.records) for split, source in got.items()} == {
        "val": 1,
        "trainval": 2,
    }
    assert (tmp_path / "voc/JPEGImages/a.jpg").is_symlink()
    copied = tmp_path / "yolo/images/trainval/a.jpg"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (root / "JPEGImages/a.jpg").read_bytes()
    assert main(["convert", f"voc:{root}", "--to", "coco", "--out", str(tmp_path / "yolo")]) == 1
    assert "yolo is not empty; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("orientation", [1, 3])
def test_a_photo_that_only_yolo_turns_is_left_out(orientation: int, tmp_path: Path, capsys) -> None:
    coco.write(tmp_path / "in", [coco.image(0, "a.jpg"), coco.image(1, "b.jpg")],
               [coco.thing(1, 0), coco.thing(2, 1)], files=("a.jpg", "b.jpg"))  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "in/train/a.jpg", exif=exif)
    spec = convert(f"coco:{tmp_path / 'in'}", "yolo", tmp_path / "yolo")
    assert len(sources(spec)["train"].records) == (2 if orientation == 1 else 1)
    assert ("images left out: 1" in capsys.readouterr().out) == (orientation == 3)


def test_names_that_xml_or_a_list_cannot_hold(tmp_path: Path) -> None:
    """Bytes that are no text, and line ends."""
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for stem in (b"a\xff", b"b\nc"):
        image = os.fsencode(folder / "images") + b"/" + stem + b".png"
        with open(image, "wb") as file:
            Image.new("RGB", (60, 40)).save(file, "PNG")
        label = os.fsencode(folder / "labels") + b"/" + stem + b".txt"
        with open(label, "w") as text:
            text.write("0 .5 .5 .2 .2\n")
    (folder / "data.yaml").write_text("names: [cat]\ntrain: images\n")
    for to in ("voc", "coco", "yolo"):
        source = sources(convert(f"yolo:{folder}", to, tmp_path / to))["train"]
        assert source.report.findings == {}
        assert source.records.labels.tolist() == [0, 0]


@pytest.mark.parametrize("what", ["class", "difficult", "crowd"])
def test_one_image_with_two_meanings_is_written_twice(what: str, tmp_path: Path) -> None:
    """Its id is 1 in both splits, of other classes; or it is difficult in one alone."""
    flags = {"difficult": {"difficult": 1}, "crowd": {"iscrowd": 1}}.get(what, {})
    for split, ids, more in (("train", (9, 2), {}), ("val", (2, 9), flags)):
        ids = ids if what == "class" else (9, 2)
        categories = [{"id": i, "name": n} for i, n in zip(ids, ("dog", "cat"), strict=True)]
        objects = [coco.thing(1, 1, **more), coco.thing(2, 1, [5, 5, 9, 9])]
        root = tmp_path / "in" if split == "train" else tmp_path / "other"
        coco.write(root, [coco.image(1, "a.png")], objects, categories=categories)
    (tmp_path / "other/annotations/instances_train.json").rename(
        tmp_path / "in/annotations/instances_val.json"
    )
    (tmp_path / "in" / "train").rename(tmp_path / "in" / "images")
    found = sources(convert(f"coco:{tmp_path / 'in'}", "voc", tmp_path / "voc"))
    names = {"class": [["dog", "dog"], ["cat", "cat"]], "crowd": [["dog"] * 2, ["dog"]]}
    for (_, source), expected in zip(
        sorted(found.items()), names.get(what, [["dog"] * 2] * 2), strict=True
    ):
        assert [source.class_names[i] for i in source.records.labels] == expected
    difficult = [source.records.is_difficult.tolist() for _, source in sorted(found.items())]
    assert (difficult[0] != difficult[1]) == (what != "class")


def test_a_split_may_be_called_as_a_key_of_a_data_file(tmp_path: Path) -> None:
    path = coco.write(tmp_path / "in", [coco.image(1, "a.png")], [coco.thing(1, 1)])
    path.rename(path.with_name("instances_names.json"))
    (tmp_path / "in" / "train").rename(tmp_path / "in" / "images")
    found = sources(convert(f"coco:{tmp_path / 'in'}", "yolo", tmp_path / "yolo"))
    assert list(found) == ["names_split"]
    assert found["names_split"].records.labels.tolist() == [1]
