"""Folders with YOLO's text labels."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harmonic_jax.__main__ import main
from harmonic_jax.config import DataConfig
from harmonic_jax.data.decode import decode_record
from harmonic_jax.data.folders import FolderSource
from harmonic_jax.data.loader import eval_batches
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from harmonic_jax.data.sources import open_source
from harmonic_jax.data.yolo import read_yolo, yolo_splits
from tests.data.coco_folder import counts

NAMES = "names: [cat, dog]\n"
BOX = "1 0.5 0.5 0.25 0.4\n"  # of 40 x 30 pixels: 15, 9, 25, 21


def write(root: Path, labels: dict[str, str | None], *, yaml: str = "train: images\n") -> None:
    """Images of 40 x 30 pixels under images/ with their labels; None: no label file."""
    for name, text in labels.items():
        image, label = root / "images" / f"{name}.jpg", root / "labels" / f"{name}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(image)
        if text is not None:
            label.write_text(text)
    (root / "data.yaml").write_text(yaml if "names" in yaml else yaml + NAMES)


def read(root: Path, split: str = "train", *, masks: bool = False) -> FolderSource:
    return read_yolo(root, split, DataConfig(masks=masks))


def files(source: FolderSource) -> tuple[str, ...]:
    return source.records.file_names


def test_boxes_are_fractions_of_the_image(tmp_path: Path) -> None:
    write(tmp_path, {"b": BOX + "\n0.0  0.1 0.2\t0.2 0.2 \r\n", "a": BOX})
    source = read(tmp_path)
    assert source.name == f"yolo:{tmp_path.name}:train"
    assert (source.class_names, source.category_ids) == (("cat", "dog"), (0, 1))
    assert files(source) == ("images/a.jpg", "images/b.jpg")
    record = source.records[1]
    assert (record.image_id, record.height, record.width) == (1, 30, 40)
    np.testing.assert_allclose(record.boxes, [[15, 9, 25, 21], [0, 3, 8, 9]], atol=1e-5)
    assert record.labels.tolist() == [1, 0]
    assert counts(source) == {}


def test_a_polygon_gives_its_bounding_box_and_its_mask(tmp_path: Path) -> None:
    write(tmp_path, {"a": "0 0.25 0.5 0.5 0.5 0.5 1 0.25 1\n" + BOX})
    assert read(tmp_path).records[0].boxes[0].tolist() == [10, 15, 20, 30]
    source = read(tmp_path, masks=True)
    masks = source.records[0].masks
    assert masks is not None
    assert masks.areas().tolist() == [150, 0]
    assert counts(source) == {Reason.NO_MASK: 1}


def test_no_label_file_and_an_empty_one_mean_no_objects(tmp_path: Path) -> None:
    write(tmp_path, {"a": BOX, "b": "", "c": None})
    source = read(tmp_path)
    assert [len(record.boxes) for record in source.records] == [1, 0, 0]
    assert counts(source) == {Reason.NO_LABEL_FILE: 1, Reason.EMPTY_IMAGE: 2}
    assert source.report.examples(Reason.NO_LABEL_FILE) == ("labels/c.txt",)


def test_values_outside_of_0_to_1_are_boxes_outside_of_the_image(tmp_path: Path) -> None:
    rows = "0 0 0 0.5 0.5\n0 1.2 0.5 0.2 0.2\n0 0.5 0.5 -0.1 0.2\n0 nan 0.5 0.1 0.1\n"
    write(tmp_path, {"a": rows + "0 20 15 10 12\n0 0.75 0.5 1.25 0.5 1.25 1 0.75 1\n"})
    source = read(tmp_path)
    assert source.records[0].boxes.tolist() == [[0, 0, 10, 7.5], [30, 15, 40, 30]]
    assert counts(source) == {
        Reason.CLIPPED: 2, Reason.OUTSIDE: 2, Reason.INVERTED: 1, Reason.NOT_FINITE: 1,
    }  # fmt: skip


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    rows = ("2 0 0 1 1", "-1 0 0 1 1", "0.5 0 0 1 1", "cat 0 0 1 1", "0 0.5 0.5 1", "0 1 1 1 1 1")
    write(tmp_path, {"a": BOX + "\n" + "\n".join(rows)})
    source = read(tmp_path)
    assert len(source.records[0].boxes) == 1
    assert source.report.examples(Reason.UNKNOWN_CLASS) == (
        "labels/a.txt, line 3: class 2 has no name",
        "labels/a.txt, line 4: class -1 has no name",
        "labels/a.txt, line 5: class 0.5 has no name",
    )
    assert source.report.examples(Reason.MALFORMED_OBJECT) == (
        "labels/a.txt, line 6: could not convert string to float: 'cat'",
        "labels/a.txt, line 7: it has 4 columns; a box has 5, a polygon 7, 9, 11, ..",
        "labels/a.txt, line 8: it has 6 columns; a box has 5, a polygon 7, 9, 11, ..",
    )


def test_keypoints_behind_a_box_are_no_polygon(tmp_path: Path) -> None:
    write(
        tmp_path, {"a": BOX.strip() + " 0 0 2 0.9 0.9 2"}, yaml="train: images\nkpt_shape: [2, 3]\n"
    )
    np.testing.assert_allclose(read(tmp_path).records[0].boxes, [[15, 9, 25, 21]], atol=1e-5)


def test_bad_files_are_dropped_and_named(tmp_path: Path) -> None:
    write(tmp_path, {"a": BOX, "b": BOX, "c": BOX, "._d": BOX})
    (tmp_path / "images" / "b.jpg").write_bytes(b"no image")
    (tmp_path / "labels" / "c.txt").write_bytes(b"0 0.5 0.5 \xff")
    (tmp_path / "images" / "labels.cache").write_bytes(b"\x80\x04")
    source = read(tmp_path)
    assert files(source) == ("images/a.jpg",)
    assert source.report.examples(Reason.UNREADABLE_HEADER) == ("images/b.jpg",)
    (told,) = source.report.examples(Reason.UNREADABLE_ANNOTATION)
    assert told.startswith("labels/c.txt: ")
    assert told.endswith("in line 1")


def test_class_ids_may_have_gaps(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a": BOX + BOX.replace("1", "7", 1)},
        yaml="{train: images, names: {7: 3, '1': ape}}",
    )
    source = read(tmp_path)
    assert (source.class_names, source.category_ids) == (("ape", "3"), (1, 7))
    assert source.records[0].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "names", ["", "names: 3", "names: []", "names: [a, a]", "names: [a, yes]", "names: {x: a}",
              "names: {-1: a}", "names: [a, '']"],
)  # fmt: skip
def test_bad_names_are_refused(names: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"train: images\n{names}\n")
    told = (
        r"data\.yaml: (names is .*; it must be a list of class names or a map|no names; its keys)"
    )
    with pytest.raises(DataError, match=told):
        yolo_splits(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [a\nnames: b", r"data\.yaml, line 2 cannot be read as YAML: expected"),
        ("train: !!python/name:os.system\n", "line 1 cannot be read as YAML: could not determine"),
        ("names: {0: a, 1: b, 0: c}", r"line 1 cannot be read as YAML: '0' is there twice in one"),
        ("names: {1: a, '1': b}", "line 1 cannot be read as YAML: '1' is there twice in one map"),
        ("names: [a]\ntrain: x\ntrain: y", "line 3 cannot be read as YAML: 'train' is there twice"),
        ("train: 2024-99-99\n", "cannot be read as YAML: month must be in"),
        ("", "data.yaml: None must be an object with names"),
        (NAMES, r"no split 'train' in .*data\.yaml: $"),
        (NAMES + "train: 3", "train is 3; it must be a folder of images, a .txt file of"),
        (NAMES + "train: [a, 3]", r"train is \['a', 3\]; it must be"),
        (NAMES + "train: absent", "train is 'absent'; .*absent is no folder and no .txt"),
        (NAMES + "train: data.yaml", "train is 'data.yaml'; .*data.yaml is no folder and no"),
        (NAMES + "val: .", r"data\.yaml: val; --data\.eval-share 0\.2 divides it$"),
    ],
)  # fmt: skip
def test_a_data_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "data.yaml") in str(caught.value)


@pytest.mark.parametrize(
    "stated", ["path: ..", "path: {0}", "path: /no/such/place", "path: datasets/x"]
)
def test_paths_start_from_path_or_the_file(stated: str, tmp_path: Path) -> None:
    write(tmp_path, {"a": BOX})
    folder = tmp_path if "/" in stated and "{" not in stated else tmp_path / "inner"
    folder.mkdir(exist_ok=True)
    (folder / "data.yaml").write_text(stated.format(tmp_path) + "\ntrain: images\n" + NAMES)
    assert files(read(folder)) == ("images/a.jpg",)


def test_a_split_may_have_several_folders(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"x/b": BOX, "y/a": BOX, "z/c": BOX},
        yaml="train: [images/y, images/x]\nval: images/z\ntest:\n",
    )
    assert yolo_splits(tmp_path) == ("train", "val")
    source = read(tmp_path)
    assert files(source) == ("images/y/a.jpg", "images/x/b.jpg")
    assert [len(record.boxes) for record in source.records] == [1, 1]


def test_roboflows_paths_lead_out_of_the_folder_and_mean_it(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train", {"a": BOX})
    (tmp_path / "data" / "data.yaml").write_text("train: ../train/images\n" + NAMES)
    assert files(read(tmp_path / "data")) == ("train/images/a.jpg",)


def test_a_list_names_images_in_many_ways(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "in/e")
    write(tmp_path / "data", dict.fromkeys(names, BOX), yaml="train: lists/train.txt\n")
    images = tmp_path / "data" / "images"
    lines = ("./images/a.jpg", "../images/b.jpg ", f"{images}/c.jpg", "E:\\x\\images\\d.jpg", "",
             "/other/machine/images/in/e.jpg", "images/a.jpg", "images/none.jpg")  # fmt: skip
    (tmp_path / "data" / "lists").mkdir()
    (tmp_path / "data" / "lists" / "train.txt").write_text("\n".join(lines))
    source = read(tmp_path / "data")
    assert files(source) == tuple(f"images/{name}.jpg" for name in names)
    assert sum(len(record.boxes) for record in source.records) == 5
    assert counts(source) == {Reason.DUPLICATE_IMAGE: 1, Reason.MISSING_IMAGE: 1}
    (told,) = source.report.examples(Reason.MISSING_IMAGE)
    assert told == f"images/none.jpg: not in {tmp_path / 'data'}"


def test_the_last_images_folder_is_replaced_else_labels_lie_beside(tmp_path: Path) -> None:
    root = tmp_path / "images" / "set"
    write(root, {"images/a": BOX, "images/b": None, "c": None}, yaml="train: .\n")
    (root / "images" / "labels").mkdir()
    shutil.move(root / "labels" / "images" / "a.txt", root / "images" / "labels" / "a.txt")
    (root / "images" / "images" / "b.txt").write_text(BOX)
    shutil.move(root / "images" / "c.jpg", root / "c.jpg")
    (root / "c.txt").write_text(BOX)
    source = read(root)
    assert files(source) == ("c.jpg", "images/images/a.jpg", "images/images/b.jpg")
    assert [len(record.boxes) for record in source.records] == [1, 1, 1]


def test_images_are_turned_as_viewers_do(tmp_path: Path) -> None:
    """Both by a quarter and by a half; the labels were drawn on what a viewer shows."""
    write(tmp_path, {"a": BOX, "b": BOX})
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[0, 0] = 255
    for name, orientation in (("a", 3), ("b", 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.jpg", "PNG", exif=exif)
    source = read(tmp_path)
    assert [(record.height, record.width) for record in source.records] == [(30, 40), (40, 30)]
    config = DataConfig(short_sides=(60,), max_side=80, stride=1)
    with eval_batches(source, config, batch_size=1) as batches:
        half, quarter = (batch.images[0] for batch in batches)
        assert batches.report.count("exif_rotated") == 2
    assert half[-1, -1].min() > 100
    assert quarter[0, -1].min() > 100


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_ultralytics_does(tmp_path: Path, kind: str) -> None:
    """It reads files by OpenCV, which turns them by their EXIF, all eight ways and in all formats;
    labels are fractions of what that gives."""
    write(tmp_path, {str(orientation): BOX for orientation in range(1, 9)})
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3)), np.ones((10, 10, 1)))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "images" / f"{orientation}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(path, kind, exif=exif, quality=95)
    source = read(tmp_path)
    for index, record in enumerate(source.records):
        expected = cv2.imdecode(
            np.frombuffer(source.image_bytes(index), np.uint8), cv2.IMREAD_COLOR
        )
        height, width, _ = expected.shape
        assert (record.height, record.width) == (height, width)
        fractions = np.array([0.375, 0.3, 0.625, 0.7])
        np.testing.assert_allclose(record.boxes[0], fractions * ([width, height] * 2), atol=1e-4)
        image = decode_record(source, index, max_pixels=10**6).image
        assert np.abs(image[..., ::-1].astype(int) - expected).mean() < 5, index + 1


def test_without_a_data_file_classes_stand_in_a_text(tmp_path: Path) -> None:
    write(tmp_path, {"a": BOX})
    (tmp_path / "data.yaml").rename(tmp_path / "a.yml")
    assert yolo_splits(tmp_path) == ("train",)
    (tmp_path / "b.yaml").write_text("")
    with pytest.raises(DataError, match=r"one data\.yaml; it has 'a\.yml', 'b\.yaml'$"):
        read(tmp_path)
    (tmp_path / "a.yml").unlink()
    (tmp_path / "b.yaml").unlink()
    with pytest.raises(DataError, match=r"data\.yaml; it has neither that nor classes\.txt$"):
        read(tmp_path)
    (tmp_path / "classes.txt").write_text("ape\nbee\n")
    source = read(tmp_path)
    assert source.class_names == ("ape", "bee")
    assert source.records[0].labels.tolist() == [1]


def test_the_folder_one_is_in_has_labels_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a": BOX})
    monkeypatch.chdir(tmp_path)
    source = read(Path("."))
    assert source.name == f"yolo:{tmp_path.name}:train"
    assert [len(record.boxes) for record in source.records] == [1]


def test_check_data_and_the_file_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"a": BOX}, yaml="train: images\nval: images\n")
    assert main(["check-data", f"yolo:{tmp_path}:val"]) == 0
    out = capsys.readouterr().out
    assert f"== yolo:{tmp_path.name}:val\n1 image, 1 object" in out
    config = DataConfig(format="yolo", root=str(tmp_path / "data.yaml"))
    assert len(open_source(config, "train").records) == 1
    with pytest.raises(DataError, match="it must be an existing folder"):
        open_source(DataConfig(format="yolo", root="no/such"), "train")


def test_keys_that_are_no_text_are_no_splits(tmp_path: Path) -> None:
    keys = "2012: images/2012\ntrue: images\nnull: images\n2024-01-02: images\n"
    write(tmp_path, {"a": BOX}, yaml=f"train: images\n{keys}fold1: images/\n")
    assert yolo_splits(tmp_path) == ("train", "fold1")


def test_python_writes_numbers_otherwise(tmp_path: Path) -> None:
    write(tmp_path, {"a": "0 .5 .5 .1_0 .2\n" + BOX})
    source = read(tmp_path)
    assert source.report.examples(Reason.MALFORMED_OBJECT) == (
        "labels/a.txt, line 1: '0 .5 .5 .1_0 .2' is not all numbers",
    )
    assert len(source.records.labels) == 1


def test_a_few_aliases_that_stand_for_a_billion_nodes_cost_nothing(tmp_path: Path) -> None:
    levels = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 25)
    )
    write(tmp_path, {"a": BOX}, yaml=levels + "train: images\n")
    assert yolo_splits(tmp_path) == ("train",)
