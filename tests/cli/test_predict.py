"""`predict` on files as users have them: two folders, one name, a broken file, a video."""

import errno
import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import harmonic_jax.__main__
from harmonic_jax.cli import predict as predict_command
from harmonic_jax.cli.options import parse_options
from harmonic_jax.files import write_bytes
from harmonic_jax.inference import TTA, ImageDetections, predictions
from harmonic_jax.inference.detector import NonFiniteOutputError
from harmonic_jax.inference.images import read_image
from harmonic_jax.inference.output import OutputFolder
from harmonic_jax.inference.predictions import Predictor
from harmonic_jax.metrics.files import load_coco_annotations, load_coco_results
from tests.data.fake_source import noise
from tests.inference.tiny_run import run_config
from tests.training.tiny import tiny_config

FRAMES = 3


class OneBox:
    """A loaded detector without a network: a box around each image, less its border."""

    class_names, category_ids, config = ("a", "b", "c"), (3, 5, 7), tiny_config()

    def __init__(self, **options: object) -> None:
        self.batch_size = options["batch_size"]
        self.upright = options["upright"]
        self.sizes: list[int] = []

    def read(self, image: Path) -> np.ndarray:
        return read_image(image, max_pixels=self.config.data.max_pixels, upright=self.upright)

    def bucket_of(self, image: np.ndarray) -> tuple[int, int]:
        return self.config.data.bucket_of(*image.shape[:2])

    def detect_batch(self, images: list[np.ndarray], *, tta: TTA | None) -> list[ImageDetections]:
        assert 1 <= len(images) <= self.batch_size
        self.sizes.append(len(images))
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> ImageDetections:
        height, width = image.shape[:2]
        boxes = np.array([[10, 5, width - 10, height - 5], [0, 0, 9, 9]], np.float32)
        scores, labels = np.array([0.8, 0.1], np.float32), np.array([2, 0])
        return ImageDetections(boxes, scores, labels, ("c", "a"), (height, width))


@pytest.fixture
def detectors(monkeypatch: pytest.MonkeyPatch) -> list[OneBox]:
    """What the command loads takes their place; `tests/inference` has the real thing."""
    loaded: list[OneBox] = []

    def load(run: Path, **options: object) -> OneBox:
        loaded.append(OneBox(**options))
        return loaded[-1]

    monkeypatch.setattr(predict_command, "load", load)
    return loaded


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for name, seed in (("a.png", 0), ("b/a.png", 1), ("b/c.jpg", 2)):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(60, 80, seed=seed)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), codec, 10, (80, 60))
    for seed in range(FRAMES):
        writer.write(noise(60, 80, seed=seed))
    writer.release()
    return folder


def predict(*args: object) -> int:
    return harmonic_jax.__main__.main(["predict", *map(str, args)])


def test_pictures_results_and_a_video(
    detectors: list[OneBox], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in inputs.rglob("*.*")}
    options = ("--run", "RUN", "--out", out, "--batch-size", "2")
    assert predict(inputs, f"{inputs}/b/*", *options) == 0
    assert detectors[0].sizes == [2, 1, 2, 1]  # three images, three frames
    shown = capsys.readouterr().out
    assert f"skipped: {inputs / 'broken.jpg'}: corrupt: the header is damaged\n" in shown
    assert "left out: folders 1\n" in shown
    assert "6 images, 6 objects (6 c); 1 files skipped" in shown
    assert "images/s" in shown

    content = json.loads((out / "images.json").read_text())
    entries = content["images"]
    assert [entry["id"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [Path(entry["file_name"]).name for entry in entries] == [
        "a.png", "a.png", "c.jpg", *["clip.mp4"] * FRAMES,
    ]  # fmt: skip
    assert [entry.get("frame") for entry in entries] == [None] * 3 + [0, 1, 2]
    assert {(entry["height"], entry["width"]) for entry in entries} == {(60, 80)}
    truth = load_coco_annotations(out / "images.json")
    found = load_coco_results(out / "detections.json", truth)
    assert truth.category_ids == (3, 5, 7)
    assert found.image_id.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.labels.tolist() == [2] * 6  # the other scores too little
    assert found.boxes.tolist() == [[10, 5, 70, 55]] * 6

    pictures = {path.name: path for path in (out / "pictures").iterdir()}
    assert set(pictures) == {"a.jpg", "a_2.jpg", "c.jpg", "clip.mp4"}
    drawn = np.asarray(Image.open(pictures["a_2.jpg"])).astype(int)
    plain = cv2.resize(noise(60, 80, seed=1), (640, 480), interpolation=cv2.INTER_CUBIC)
    changed = np.abs(drawn - plain).max(axis=2) > 60
    assert changed[40, 100:500].mean() > 0.5  # the upper edge of the box, eight times as large
    assert not changed[:10].any()
    assert not changed[60:430, 100:540].any()
    video = cv2.VideoCapture(str(pictures["clip.mp4"]))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == FRAMES
    assert {path: path.read_bytes() for path in before} == before

    first = (out / "detections.json").read_bytes()
    assert predict(out / "pictures", *options) == 1
    assert "lies where pictures are written" in capsys.readouterr().err
    assert (out / "detections.json").read_bytes() == first


def test_results_alone(detectors: list[OneBox], inputs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    options = ("--no-pictures", "--score-threshold", "0", "--stored-pixels")
    assert predict(inputs / "b", "--run", "RUN", "--out", bare, *options) == 0
    assert sorted(path.name for path in bare.iterdir()) == ["detections.json", "images.json"]
    assert len(json.loads((bare / "detections.json").read_text())) == 4
    assert detectors[0].batch_size == 2  # not more than there are images
    assert not detectors[0].upright


def test_nothing_that_can_be_read(
    detectors: list[OneBox], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(inputs / "broken.jpg", "--run", "RUN", "--out", tmp_path / "out") == 1
    assert "0 images, 0 objects; 1 files skipped" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None])
def test_stopped_in_the_middle(
    detectors: list[OneBox],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals | None,
) -> None:
    """In a long video: what was found until then is kept. None: a second Ctrl-C."""

    def detect(self: OneBox, images: list[np.ndarray], *, tta: TTA | None) -> list[ImageDetections]:
        if len(self.sizes) == 1 and number is not None:
            signal.raise_signal(number)
        if len(self.sizes) == 2:
            assert number is None, "it went on after the signal"
            raise KeyboardInterrupt
        self.sizes.append(len(images))
        return [self._detect(image) for image in images]

    monkeypatch.setattr(OneBox, "detect_batch", detect)
    out = tmp_path / "out"
    clip = inputs / "clip.mp4"
    assert predict(clip, "--run", "RUN", "--out", out, "--batch-size", "1") == 3
    assert f"stopped by {(number or signal.SIGINT).name}" in capsys.readouterr().err
    assert len(json.loads((out / "detections.json").read_text())) == 2
    assert len(json.loads((out / "images.json").read_text())["images"]) == 2
    video = cv2.VideoCapture(str(out / "pictures" / "clip.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 2


def test_a_stop_while_images_wait_for_their_batch(
    detectors: list[OneBox], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """images.json lists what was looked at: the others would count as without objects."""

    def read(self: OneBox, path: Path) -> np.ndarray:
        return noise(*((60, 80) if path.parent.name == "b" else (80, 60)))  # two shapes

    def detect(self: OneBox, images: list[np.ndarray], *, tta: TTA | None) -> list[ImageDetections]:
        signal.raise_signal(signal.SIGTERM)
        return [self._detect(image) for image in images]

    monkeypatch.setattr(OneBox, "config", run_config())
    monkeypatch.setattr(OneBox, "read", read)
    monkeypatch.setattr(OneBox, "detect_batch", detect)
    out = tmp_path / "out"
    options = ("--run", "RUN", "--out", out, "--batch-size", "2")
    assert predict(inputs / "a.png", inputs / "b", *options) == 3
    entries = json.loads((out / "images.json").read_text())["images"]
    assert [Path(entry["file_name"]).parent.name for entry in entries] == ["b", "b"]


def test_what_was_found_outlives_any_failure(
    detectors: list[OneBox], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(self: OneBox, images: list[np.ndarray], *, tta: TTA | None) -> list[ImageDetections]:
        self.sizes.append(len(images))
        if len(self.sizes) == 2:
            raise ZeroDivisionError  # a fault of ours, or memory that ran out
        return [self._detect(image) for image in images]

    monkeypatch.setattr(OneBox, "detect_batch", detect)
    with pytest.raises(ZeroDivisionError):
        predict(inputs / "b", "--run", "RUN", "--out", tmp_path / "out", "--batch-size", "1")
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 1


def test_broken_weights_are_told_with_the_image(
    detectors: list[OneBox],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def detect(self: OneBox, images: list[np.ndarray], *, tta: TTA | None) -> list[ImageDetections]:
        self.sizes.append(len(images))
        if len(self.sizes) == 2:
            raise NonFiniteOutputError(0, len(images), 7)
        return [self._detect(image) for image in images]

    monkeypatch.setattr(OneBox, "detect_batch", detect)
    out = tmp_path / "out"
    assert predict(inputs / "b", "--run", "RUN", "--out", out, "--batch-size", "1") == 1
    error = capsys.readouterr().err
    assert "the network says NaN or inf for image 1 of 1: its weights, of step 7" in error
    assert str(inputs / "b") in error
    assert error.count("\n") == 1
    assert len(json.loads((out / "detections.json").read_text())) == 1  # of the image before


def test_pictures_that_cannot_be_written_cost_no_detection(
    detectors: list[OneBox],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write(path: Path, data: bytes) -> None:
        if path.name == "a.jpg":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_bytes(path, data)

    monkeypatch.setattr(predictions, "write_bytes", write)
    monkeypatch.setattr(cv2.VideoWriter, "fourcc", lambda *letters: 0)  # no such codec
    out = tmp_path / "out"
    assert predict(inputs, inputs / "b", "--run", "RUN", "--out", out) == 1
    shown = capsys.readouterr().out
    assert f"not written: {out}/pictures/a.jpg: No space left on device, " in shown
    assert f"not written: {out}/pictures/clip.mp4: OpenCV wrote no whole video" in shown
    assert "; 2 not written\n" in shown
    assert "2 in pictures/" in shown
    assert len(json.loads((out / "detections.json").read_text())) == 6
    assert {path.name for path in (out / "pictures").iterdir()} == {"a_2.jpg", "c.jpg"}


def test_a_long_run_is_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        Image.fromarray(noise(60, 80)).save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.glob("*.png"))
    detector = OneBox(batch_size=1, upright=True)
    folder = OutputFolder(
        tmp_path / "out", paths, class_names=detector.class_names,
        category_ids=detector.category_ids, draws=False,
    )  # fmt: skip
    seconds, saved = 0.0, []
    monkeypatch.setattr(predictions.time, "monotonic", lambda: seconds)

    def track(items: Iterable[object], total: int, words: str) -> Iterator[object]:
        nonlocal seconds
        for item in items:
            seconds += 200.0
            yield item
            saved.append(len(json.loads((tmp_path / "out" / "detections.json").read_text())))

    Predictor(detector, folder=folder, score_threshold=0.5, tta=None, track=track).run(paths)
    assert saved == [0, 1, 1, 3]  # not after 200 seconds, but after 400; the caller saves the rest


def test_of_a_video_that_is_cut_short_it_is_said(
    detectors: list[OneBox],
    inputs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = (inputs / "clip.mp4").read_bytes()
    frames, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
    middle = (frames + end) // 2
    (tmp_path / "hole.mp4").write_bytes(whole[:middle] + bytes(end - middle) + whole[end:])
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.mp4").write_bytes(b"<html>")
    assert predict(tmp_path, "--run", "RUN", "--out", tmp_path / "out") == 0
    shown = capfd.readouterr()
    assert f"cut short: {tmp_path}/hole.mp4: 2 of {FRAMES} frames could be read\n" in shown.out
    for name in ("half", "page"):
        line = f"skipped: {tmp_path}/{name}.mp4: not_an_image: OpenCV reads no video from it\n"
        assert line in shown.out
    assert not shown.err  # not a line for every block that the codec cannot read


def test_awkward_files_are_read_or_named(
    detectors: list[OneBox], cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = cases / "14-awkward-image-files" / "data" / "train"
    assert predict(photos, "--run", "RUN", "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "left out: .jp2 1\n" in shown
    refused = {
        "avif_as.jpg": "not_an_image", "heic_as.jpg": "not_an_image", "html.jpg": "not_an_image",
        "cut.png": "truncated", "cut_progressive.jpg": "truncated", "zero.jpg": "empty",
    }  # fmt: skip
    for name, reason in refused.items():
        assert f"skipped: {photos / name}: {reason}: " in shown
    assert "15 images, 15 objects (15 c); 6 files skipped\n" in shown
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 15


NAMES = (
    "[bold]a.png", "[green]b.png", "e\x1b[31m.png", "$x_{2}$.png", "<b>&'\".png", "caf\u00e9.png",
)  # fmt: skip


def test_names_of_files_are_printed_and_saved_as_they_are(
    detectors: list[OneBox], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    names = [*NAMES, os.fsdecode(b"\xff.png")]  # the last is no UTF-8
    for name in names:
        Image.fromarray(noise(60, 80)).save(photos / name)
    (photos / "[").mkdir()
    (photos / "[" / "b]\x1b]0;.jpg").touch()  # as a path: [/b]
    out = tmp_path / "[/out]"
    assert predict(photos, photos / "[" / "b]\x1b]0;.jpg", "--run", "RUN", "--out", out) == 0
    shown = capsys.readouterr().out
    assert f"skipped: {photos}/[/b]\\x1b]0;.jpg: empty: the file has no bytes\n" in shown
    assert f"written to {out}: " in shown
    assert "\x1b" not in shown
    entries = json.loads((out / "images.json").read_text(encoding="utf-8"))["images"]
    assert sorted(Path(entry["file_name"]).name for entry in entries) == sorted(names)
    pictures = {path.name for path in (out / "pictures").iterdir()}
    assert pictures == {Path(name).stem + ".jpg" for name in names}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nowhere.jpg", "--run", "nowhere"), "there is no file or folder nowhere.jpg"),
        ((".", "--run", "nowhere", "--score-threshold", "30"), "--score-threshold is 30.0"),
        ((".", "--run", "nowhere", "--tta", "--tta-iou", "2"), "tta.merge_iou is 2.0"),
        (("a.png", "--run", "nowhere"), "nowhere holds no run"),
        (("a.png", "--run", "nowhere", "--batch-size", "0"), "--batch-size is 0"),
    ],
)
def test_mistakes(
    inputs: Path, monkeypatch, capsys: pytest.CaptureFixture[str], args: tuple, words: str
) -> None:
    monkeypatch.chdir(inputs)
    assert predict(*args) in (1, 2)
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert not (inputs / "predictions").exists()


def test_options_of_evaluation() -> None:
    default = predict_command.InferenceOptions()
    assert default.augmentation() is None
    assert default.suffix == ""
    words = "--tta --tta-scales 1 1.5 --tta-no-flip --tta-merge wbf --nms soft_gaussian"
    options = parse_options(predict_command.InferenceOptions, words.split(), prog="x")
    assert options.augmentation() == TTA(scales=(1.0, 1.5), flip=False, merge="wbf")
    assert options.suffix == "_soft_gaussian_tta_wbf_1_1.5_unflipped"
