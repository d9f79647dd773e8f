"""Pictures on the page of `eval.py --report`: where they come from, and what goes without."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from harmonic_jax.cli import evaluate
from harmonic_jax.cli.consistency import images_of_folder, images_of_source
from harmonic_jax.coco_format.files import coco_file
from harmonic_jax.config import DataConfig
from harmonic_jax.data.decode import decode_image
from harmonic_jax.data.sources import open_source


@pytest.fixture(autouse=True)
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and are tested elsewhere."""
    monkeypatch.setattr("harmonic_jax.report.page.make_charts", lambda *args: {})


@pytest.fixture
def files(coco_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A results file of one sure, wrong box an image, and the annotations."""
    annotations = coco_folder / "annotations" / "instances_pictures.json"
    content = json.loads(annotations.read_text())
    entries = [
        {"image_id": image["id"], "category_id": 3, "bbox": [1, 1, 8, 8], "score": 0.9}
        for image in content["images"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(entries))
    return tmp_path / "found.json", annotations


def report(files: tuple[Path, Path], out: Path, *more: object) -> int:
    found, truth = files
    args = ("--predictions", found, "--annotations", truth, "--report", out, "--resamples", 3)
    return evaluate.main([str(arg) for arg in (*args, *more)])


def test_a_results_file_with_its_images(
    files: tuple[Path, Path], coco_folder: Path, tmp_path, capsys
) -> None:
    assert report(files, tmp_path / "with", "--images", coco_folder / "pictures") == 0
    shown = capsys.readouterr().out
    for name in ("consistency.html", "worst_cases.png"):
        assert f"written: {tmp_path / 'with' / name}" in shown
        assert (tmp_path / "with" / name).stat().st_size > 1000
    page = (tmp_path / "with" / "consistency.html").read_text()
    shots = page.count('class="shot"')
    assert page.count("data:image/jpeg") == shots > 5
    assert "<small>0.png</small>" in page
    assert "<h1>found.json on instances_pictures.json</h1>" in page


def test_a_results_file_alone(files: tuple[Path, Path], tmp_path) -> None:
    assert report(files, tmp_path / "without") == 0
    page = (tmp_path / "without" / "consistency.html").read_text()
    assert "data:image/jpeg" not in page
    assert "<small>0.png</small>" in page
    assert re.search(r"100 % of the pictures are boxes on a blank ground", page)


def test_errors(files: tuple[Path, Path], tmp_path, capsys) -> None:
    assert report(files, tmp_path / "out", "--images", tmp_path) == 1
    message = capsys.readouterr().err
    assert f"--images {tmp_path} holds none of the images that" in message
    assert "(as '0.png')" in message
    assert not (tmp_path / "out").exists()


def test_pixels_of_a_folder(coco_folder: Path, tmp_path) -> None:
    """Names that lead elsewhere are not followed; what cannot be read is None."""
    picture = (coco_folder / "pictures" / "0.png").read_bytes()
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(picture)
    (tmp_path / "images" / "0.png").write_bytes(picture)
    (tmp_path / "images" / "cut.png").write_bytes(picture[:300])
    names = ["0.png", "../secret.png", f"{tmp_path}/secret.png", "cut.png", "absent.png", "0.png"]
    entries = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    entries[5] |= {"height": 61, "width": 64}  # it is 60 x 64: boxes would lie wrong
    entries.append({"id": 6})
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
    images = images_of_folder(coco_file(content, name="a.json"), tmp_path / "images")
    assert images.pixels is not None
    whole = images.pixels(0)
    assert whole is not None
    assert np.array_equal(whole, decode_image(picture, max_pixels=10**6).image)
    assert [i for i in range(7) if images.pixels(i) is not None] == [0]
    assert images.sizes == {5: (61, 64)}
    assert images.names[1] == "../secret.png"


def test_pixels_of_a_source(coco_folder: Path) -> None:
    source = open_source(DataConfig(format="coco", root=str(coco_folder)), "pictures")
    images = images_of_source(source, max_pixels=10**6)
    assert images.pixels is not None
    for i, record in enumerate(source.records):
        pixels = images.pixels(record.image_id)
        assert pixels is not None
        assert np.array_equal(pixels, decode_image(source.image_bytes(i), max_pixels=10**6).image)
        assert images.names[record.image_id] == record.file_name
        assert images.sizes[record.image_id] == pixels.shape[:2]
    assert images_of_source(source, max_pixels=100).pixels(10) is None  # type: ignore[misc]
