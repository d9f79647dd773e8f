"""What `check-data` and `train` find in the data before the first step; and what they do not."""

import dataclasses
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harmonic_jax.__main__ import main
from harmonic_jax.cli import train
from harmonic_jax.cli.configs import load_config
from harmonic_jax.cli.doctor import _best_iou, near_copies, network_findings
from harmonic_jax.config import (
    AnchorConfig,
    Config,
    DataConfig,
    FasterRCNNConfig,
    RefineDetConfig,
    RetinaNetConfig,
    SSDConfig,
)
from harmonic_jax.data.folders import FolderSource
from harmonic_jax.detectors import refinedet, ssd
from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.ops.boxes import pairwise_iou
from harmonic_jax.terminal import Terminal
from tests.data import coco_folder as coco
from tests.data import test_yolo as yolo

NOTHING = "no finding in box formats, class ids, classes of splits"


def folder(root: Path, boxes: np.ndarray, *, side: int = 200, categories=(9,)) -> FolderSource:
    """A square image with objects, x y width height."""
    objects = [
        coco.thing(i, 0, box, category_id=categories[i % len(categories)])
        for i, box in enumerate(np.asarray(boxes, float).tolist())
    ]
    coco.write(root, [coco.image(0, "a.png", width=side, height=side)], objects, files=())
    (root / "train").mkdir()
    Image.new("RGB", (side, side)).save(root / "train" / "a.png")
    return coco.read(root)


def random_boxes(number: int, side: int = 200) -> np.ndarray:
    """x y width height, inside the image."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, side * 0.8, (number, 2))
    return np.hstack([low, rng.uniform(side * 0.05, side - low)])


def findings(root: Path, capsys, *options: str) -> list[str]:
    assert main(["check-data", f"coco:{root}", "--no-decode", *options]) == 0
    first, *lines = capsys.readouterr().out.rpartition("fingerprint")[2].splitlines()[2:]
    assert first == "findings:" if lines else first.startswith(NOTHING)
    return lines


def test_corners_in_place_of_sides(tmp_path: Path, capsys) -> None:
    boxes = random_boxes(100)
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    folder(tmp_path / "a", corners)
    (line,) = findings(tmp_path / "a", capsys)
    assert "100% are inside as x1 y1 x2 y2" in line
    assert folder(tmp_path / "few", corners[:19]).report.doubts == []
    sloppy = boxes.copy()
    sloppy[:40, 2] = 220  # outside, and no corners in 60 of 100
    assert folder(tmp_path / "b", sloppy).report.doubts == []
    large = boxes * [0.1, 0.1, 0, 0] + [0, 0, 150, 150]  # might be corners, but all are inside
    assert folder(tmp_path / "c", large).report.doubts == []


def test_fractions_in_place_of_pixels(tmp_path: Path, capsys) -> None:
    boxes = random_boxes(100)
    folder(tmp_path / "a", boxes / 200)
    (line,) = findings(tmp_path / "a", capsys)
    assert "the boxes are fractions of the image, not pixels" in line
    boxes[:, 2:] = 1
    assert folder(tmp_path / "b", boxes).report.doubts == []


@pytest.mark.parametrize(
    ("ids", "is_shifted"), [((1, 2), True), ((0, 1, 2), False), ((1, 3), False), ((1,), False)]
)
def test_ids_of_yolo_that_count_from_one(ids: tuple[int, ...], is_shifted, tmp_path: Path) -> None:
    rows = "".join(f"{key} 0.5 0.5 0.25 0.4\n" for key in ids)
    yolo.write(tmp_path, {"a": rows})
    doubts = yolo.read(tmp_path).report.doubts
    assert len(doubts) == is_shifted
    assert all("class id 2 has no name, and 0 (cat) no object" in doubt for doubt in doubts)


@pytest.mark.parametrize(("ids", "number"), [((1, 2), 1), ((1, 9), 0), ((2, 10), 0), ((9, 10), 1)])
def test_ids_of_coco_that_are_off_by_one(ids: tuple[int, ...], number, tmp_path: Path) -> None:
    """The categories are 2 and 9."""
    assert len(folder(tmp_path, random_boxes(4), categories=ids).report.doubts) == number


def write_splits(root: Path, **images: np.ndarray) -> None:
    """A COCO folder with an image a split, an object of class 9 in each."""
    for split, image in images.items():
        content = [coco.image(0, "a.png", width=image.shape[1], height=image.shape[0])]
        (root / split).mkdir(parents=True)
        path = coco.write(root / split, content, [coco.thing(1, 0)], files=())
        (root / "annotations").mkdir(exist_ok=True)
        path.rename(root / "annotations" / f"instances_{split}.json")
        cv2.imwrite(str(root / split / "a.png"), image)


def photo(seed: int) -> np.ndarray:
    """Smooth random colours, 120 x 160."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC)


def test_copies_in_two_splits(tmp_path: Path, capsys) -> None:
    original = photo(0)
    cv2.imwrite(str(tmp_path / "a.jpg"), original, [cv2.IMWRITE_JPEG_QUALITY, 40])
    changed = cv2.resize(cv2.imread(str(tmp_path / "a.jpg")), (200, 150)) // 2 + original.mean() / 2
    near = cv2.resize(original, (100, 75))
    for name, image, told in (
        ("same", original, "also in train, pixel for pixel"),
        ("scaled", near, "near copies of some in train"),
        ("compressed", cv2.imread(str(tmp_path / "a.jpg")), "near copies of some in train"),
        ("pale", changed.astype(np.uint8), ""),
        ("other", photo(1), ""),
    ):
        write_splits(tmp_path / name, train=original, val=image)
        assert main(["check-data", f"coco:{tmp_path / name}"]) == 0
        out = capsys.readouterr().out
        assert (f"val: 1 image {told}" in out) if told else (f"{NOTHING}, copies" in out)


def test_skies_are_no_copies_of_each_other() -> None:
    """They have one difference hash, of gray levels that only fall."""
    skies = np.tile(np.linspace(200, 100, 9), (2, 8, 1)) - np.array([0, 60]).reshape(2, 1, 1)
    assert near_copies(skies[:1].astype(np.uint8), skies[1:].astype(np.uint8)) == {}
    assert near_copies(skies[:1].astype(np.uint8), skies[::-1].astype(np.uint8)) == {0: 1}


def test_classes_of_one_split_only(tmp_path: Path, capsys) -> None:
    write_splits(tmp_path, train=photo(0), val=photo(1))
    assert findings(tmp_path, capsys) == []
    path = tmp_path / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"category_id": 9', '"category_id": 2'))
    name = f"coco:{tmp_path.name}"
    for line, there, here, thing in zip(
        findings(tmp_path, capsys), ("val", "train"), ("train", "val"), ("dog", "cat"), strict=True
    ):
        assert line.startswith(f"{name}:{there} has no object of {thing!r}, {name}:{here} has: ")


MODELS = [
    RetinaNetConfig(anchors=AnchorConfig(rounding="torchvision")),
    RetinaNetConfig(anchors=AnchorConfig(scales=(0.3, 1.1), ratios=(0.2, 3.0))),
    FasterRCNNConfig(),
    SSDConfig(),
    RefineDetConfig(),
]


@pytest.mark.parametrize("model", MODELS)
def test_the_best_anchor_is_that_of_all(model) -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 250, (200, 2))
    boxes = np.hstack([low, low + rng.exponential(50, (200, 2)) + 1])
    shape, part = (256, 320), getattr(model, "rpn", model)
    if isinstance(model, SSDConfig | RefineDetConfig):
        shape = (320, 320)
        room = ssd if isinstance(model, SSDConfig) else refinedet
        levels = room.default_boxes(model, shape)
    else:
        levels = make_anchors(shape, model.levels, part.anchors)
    anchors = np.concatenate(levels)
    config = Config("test", model=model)
    got, side = _best_iou(boxes, np.tile(shape, (200, 1)), config, getattr(part, "anchors", None))
    np.testing.assert_allclose(got, pairwise_iou(boxes, anchors).max(axis=1), atol=1e-5)
    areas = (anchors[:, 2:] - anchors[:, :2]).astype(float).prod(axis=1)
    assert side == pytest.approx(areas.min() ** 0.5)


DATA = DataConfig(short_sides=(256,), max_side=256)
CONFIG = Config("test", data=DATA, model=RetinaNetConfig())


def grid_boxes(number: int, width: float, height: float) -> np.ndarray:
    low = np.random.default_rng(0).uniform(0, 256 - max(width, height), (number, 2))
    return np.hstack([low, np.tile([width, height], (number, 1))])


def test_objects_that_are_too_small(tmp_path: Path) -> None:
    """An anchor of 32 pixels has an IoU of .5 with 22.6 pixels at least."""
    small, large = grid_boxes(40, 20, 20), grid_boxes(60, 32, 32)
    source = folder(tmp_path / "a", np.vstack([small, large]), side=256)
    line, fit = network_findings(source, CONFIG)
    assert "; 0% with anchors=" in fit
    assert "40% of the objects of coco:a:train are smaller than 23 pixels" in line
    twice = dataclasses.replace(CONFIG, data=DataConfig(short_sides=(512,), max_side=512))
    assert list(network_findings(source, twice)) == []
    source = folder(tmp_path / "b", np.vstack([small[:25], large, large[:15]]), side=256)
    assert list(network_findings(source, CONFIG)) == []


def test_objects_that_no_anchor_fits(tmp_path: Path) -> None:
    """Of eight times the width's height; k-means finds the ratio, with which nothing is left."""
    long = grid_boxes(40, 16, 128)
    source = folder(tmp_path / "a", np.vstack([long, grid_boxes(60, 40, 40)]), side=256)
    (line,) = network_findings(source, CONFIG)
    assert "40% of the objects of coco:a:train have no anchor of IoU 0.5" in line
    assert "; 0% with anchors=AnchorConfig(" in line
    fitted = eval(line.partition("anchors=")[2])
    assert any(abs(ratio - 8) < 0.1 for ratio in fitted.ratios)
    better = dataclasses.replace(CONFIG, model=RetinaNetConfig(anchors=fitted))
    assert list(network_findings(source, better)) == []
    source = folder(tmp_path / "b", np.vstack([long[:9], grid_boxes(91, 40, 40)]), side=256)
    assert list(network_findings(source, CONFIG)) == []


def test_train_says_it_first(tmp_path: Path, monkeypatch, capsys) -> None:
    boxes = random_boxes(100)
    source = folder(tmp_path / "a", np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))
    result = types.SimpleNamespace(evaluation=None)
    monkeypatch.setattr(train, "train", lambda *_: result)
    config = dataclasses.replace(load_config("retinanet_r18_scenes"), run_dir=str(tmp_path / "run"))
    train._train_and_report(config, None, source, source, Terminal())
    out = capsys.readouterr().out
    assert out.count("100% are inside as x1 y1 x2 y2") == 2
