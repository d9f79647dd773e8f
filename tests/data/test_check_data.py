"""`harmonic-jax check-data SPEC`."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harmonic_jax.__main__ import main
from harmonic_jax.data.decode import decode_image
from tests.cli.coco import write_coco
from tests.data import coco_folder as coco
from tests.data.fake_source import noise
from tests.data.voc_folder import SIZE, thing, write

Capture = pytest.CaptureFixture[str]


def check(capsys: Capture, *args: str) -> tuple[int, str, str]:
    status = main(["check-data", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A COCO folder: good, gray, 16-bit, truncated, too big for its annotation, and empty files."""
    names = ("good.png", "gray.png", "deep.png", "short.png", "other.png", "empty.png")
    objects = [coco.thing(1, 0, [0, 0, 10, 20]), coco.thing(2, 1, [0, 0, 20, 10])]
    images = [coco.image(i, name) for i, name in enumerate(names)]
    categories = [{"id": 9, "name": "cup"}, {"id": 15, "name": "pen"}]
    coco.write(tmp_path, images, objects, categories=categories, files=names)
    images = tmp_path / "train"
    Image.new("L", (40, 30)).save(images / "gray.png")
    Image.new("I;16", (40, 30)).save(images / "deep.png")
    Image.new("RGB", (41, 30)).save(images / "other.png")
    Image.effect_noise((40, 30), 80).save(images / "short.png")
    (images / "short.png").write_bytes((images / "short.png").read_bytes()[:-200])
    (images / "empty.png").write_bytes(b"")
    return tmp_path


def test_all_splits_of_real_coco_images(coco_tiny: Path, capsys: Capture) -> None:
    status, out, _ = check(capsys, f"coco:{coco_tiny}")
    assert status == 0
    assert re.findall(r"^== (.*)$", out, re.MULTILINE) == [
        "coco:coco_tiny:train2017",
        "coco:coco_tiny:val2017",
    ]
    assert re.findall(r"^crowd +(\d+)", out, re.MULTILINE) == ["6", "11"]
    assert "80 images, 705 objects" in out


def test_awkward_files_are_used_or_refused_with_the_true_reason(
    cases: Path, capsys: Capture
) -> None:
    folder = cases / "14-awkward-image-files" / "data"
    status, out, _ = check(capsys, f"coco:{folder}")
    assert status == 0
    named = re.findall(r"^ +(\S+): (?:not_an_image: the file is (AVIF|HEIC|a web page|JPEG 2000)|"
                       r"(truncated|empty): )", out, re.MULTILINE)  # fmt: skip
    refused = {name for name, *_ in named}
    assert len(refused) == 7
    used = [path for path in sorted((folder / "train").iterdir()) if path.name not in refused]
    assert len(used) == 15
    for path in used:
        image = decode_image(path.read_bytes(), max_pixels=10**6).image
        other = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(image.astype(int) - other[..., ::-1]).max() <= 1, path.name


def test_every_image_is_decoded_and_faults_are_named(folder: Path, capsys: Capture) -> None:
    status, out, _ = check(capsys, f"coco:{folder}")
    assert status == 0
    found = dict(re.findall(r"^(\w+) +(\d+)  ", out[out.index("rules") :], re.MULTILINE))
    assert found == {
        "empty_image": "4",
        "grayscale": "2",  # deep.png is one channel too
        "16bit": "1",
        "truncated": "1",
        "size_mismatch": "1",
        "empty": "1",
    }
    assert re.search(r"size_mismatch .*\n +other\.png: ", out)
    assert re.search(r"^truncated .*\n +short\.png: ", out, re.MULTILINE)


def test_counts_and_quantiles_of_boxes(folder: Path, capsys: Capture) -> None:
    _, out, _ = check(capsys, f"coco:{folder}:train", "--no-decode")
    assert "images not decoded" in out
    assert "6 images, 2 objects, 0.3 an image" in out
    assert re.search(r"^cup +2 +2$", out, re.MULTILINE)
    assert re.search(r"^pen +0 +0$", out, re.MULTILINE)
    rows = {line[:18].strip(): line[18:].split() for line in out.splitlines()}
    assert rows["boxes, quantiles"][0] == "0%"
    # Widths 10 and 20: extremes and the mean of both in the middle.
    assert [rows["width"][i] for i in (0, 4, 8)] == ["10", "15", "20"]
    assert [rows["height / width"][i] for i in (0, 8)] == ["0.5", "2"]
    assert rows["size = sqrt(w h)"][4] == "14.14"
    assert rows["size / short side"][4] == "0.4714"


def test_nothing_usable_is_status_1(folder: Path, capsys: Capture) -> None:
    for path in (folder / "train").iterdir():
        path.write_bytes(b"")
    status, out, _ = check(capsys, f"coco:{folder}")
    assert status == 1
    assert re.search(r"^empty +6", out, re.MULTILINE)
    for path in (folder / "train").iterdir():
        path.unlink()
    status, out, err = check(capsys, f"coco:{folder}")
    assert status == 1
    assert re.search(r"^missing_image +6", out, re.MULTILINE)
    assert "0 images, 0 objects" in out
    assert err.endswith("error: no usable image in 'train'\n")


def test_images_that_are_there_twice_are_named(tmp_path: Path, capsys: Capture) -> None:
    names = [f"a{i}" for i in range(5)]
    write(tmp_path, {name: SIZE + thing() for name in (*names, "twin")})
    write(tmp_path, {"b": SIZE + thing(), **{name: SIZE + thing() for name in names}}, split="val")
    images = tmp_path / "JPEGImages"
    for seed, name in enumerate((*names, "b")):
        cv2.imwrite(str(images / f"{name}.jpg"), noise(30, 40, seed=seed))
    shutil.copy(images / "b.jpg", images / "twin.jpg")
    shutil.copy(images / "a0.jpg", images / "a1.jpg")
    _, out, _ = check(capsys, f"voc:{tmp_path}")
    leak = "AP there says little about new images; keep them in one split"
    assert out.split("fingerprint")[-1].splitlines()[2:] == [
        "findings:",
        "train: 1 image with a twin, pixel for pixel, counted twice: a1.jpg (a0.jpg)",
        f"val: 6 images also in train, pixel for pixel: {leak}: "
        "b.jpg (twin.jpg), a0.jpg, a1.jpg (a0.jpg), ..",
        "val: 1 image with a twin, pixel for pixel, counted twice: a1.jpg (a0.jpg)",
    ]
    _, out, _ = check(capsys, f"voc:{tmp_path}", "--no-decode")
    assert "pixel for pixel" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pets:x"], "must be coco:DIR, voc:DIR, yolo:DIR or tfds:NAME"),
        (["voc:~nobody-of-this-name/data"], "data.root is '~nobody-of-this-name/data'"),
        (["tfds:fashion_scenes", "--max-objects", "0"], "data.max_objects is 0"),
    ],
)
def test_errors_are_one_line_and_status_1(args: list[str], message: str, capsys: Capture) -> None:
    status, out, err = check(capsys, *args)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_empty_folder_has_no_split(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path, {"a": SIZE + thing()})
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "val.txt")
    (lists / "val.txt").write_text("\n")
    status, out, err = check(capsys, f"voc:{tmp_path}", "--no-decode")
    assert status == 1
    assert "list of images is empty" in out
    assert err.endswith("error: no usable image in 'val'\n")
    (lists / "val.txt").unlink()
    for spec in f"coco:{tmp_path}", f"voc:{tmp_path}", f"voc:{tmp_path}:train":
        status, out, err = check(capsys, spec)
        assert (status, out) == (1, "")
        assert "no split found under" in err


def test_names_are_printed_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    """None is read as markup, none steers the terminal, and a long one moves no other."""
    names = ("[/red]", "\x1b[31mred", "x" * 300)
    files = ("[/b].png", "\x1b[2J.png", "[link=x]y.png")
    write_coco(tmp_path / "data", "[odd]", names=names, files=files, broken=(0, 1))
    status, out, err = check(capsys, f"coco:{tmp_path / 'data'}")
    assert status == 0
    assert "\x1b" not in out + err
    assert "\n[/red]   " in out
    assert "\n\\x1b[31mred" in out
    assert "[/b].png: truncated" in out
    assert "\\x1b[2J.png: truncated" in out
    assert "== coco:data:[odd]" in out
    assert max(len(line) for line in out.splitlines() if "xxx" not in line) < 150
