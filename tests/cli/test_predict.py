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
        self.before(len(self.sizes))
        self.sizes.append(len(images))
        return [self._detect(image) for image in images]

    @staticmethod
    def before(number: int) -> None:
        """Called before each batch; tests put there what happens to them."""

    def _detect(self, image: np.ndarray) -> ImageDetections:
        height, width = image.shape[:2]
        boxes = np.array([[10, 5, width - 10, height - 5], [0, 0, 9, 9]], np.float32)
        scores, labels = np.array([0.8, 0.1], np.float32), np.array([2, 0])
        return ImageDetections(boxes, scores, labels, ("c", "a"), (height, width))


class Predict:
    """Runs the command with detectors of one box; keeps what it printed and wrote."""

    def __init__(self, out: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.out, self._capture = out, capture
        self.detectors: list[OneBox] = []
        self.shown, self.error = "", ""

    def __call__(self, *args: object, out: Path | None = None) -> int:
        self.out = out or self.out
        words = ("predict", *args, "--out", self.out)
        try:
            return harmonic_jax.__main__.main([str(word) for word in words])
        finally:
            self.shown, self.error = self._capture.readouterr()

    @property
    def detections(self) -> list[dict]:
        return json.loads((self.out / "detections.json").read_text())

    @property
    def images(self) -> list[dict]:
        return json.loads((self.out / "images.json").read_text(encoding="utf-8"))["images"]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Predict:
    """What the command loads takes their place; `tests/inference` has the real thing."""
    run = Predict(tmp_path / "out", capfd)

    def load(path: Path, **options: object) -> OneBox:
        assert path == Path("retinanet_lite0_voc")  # which --run is by default
        run.detectors.append(OneBox(**options))
        return run.detectors[-1]

    monkeypatch.setattr(predict_command, "load", load)
    return run


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


def test_pictures_results_and_a_video(predict: Predict, inputs: Path) -> None:
    before = {path: path.read_bytes() for path in inputs.rglob("*.*")}
    assert predict(inputs, f"{inputs}/b/*", "--batch-size", "2") == 0
    assert predict.detectors[0].sizes == [2, 1, 2, 1]  # three images, three frames
    assert f"skipped: {inputs / 'broken.jpg'}: corrupt: " in predict.shown
    assert "left out: folders 1\n" in predict.shown
    assert "6 images, 6 objects (6 c); 1 file skipped" in predict.shown

    entries = predict.images
    assert [entry["id"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [Path(entry["file_name"]).name for entry in entries] == [
        "a.png", "a.png", "c.jpg", *["clip.mp4"] * FRAMES,
    ]  # fmt: skip
    assert [entry.get("frame") for entry in entries] == [None] * 3 + [0, 1, 2]
    assert {(entry["height"], entry["width"]) for entry in entries} == {(60, 80)}
    truth = load_coco_annotations(predict.out / "images.json")
    found = load_coco_results(predict.out / "detections.json", truth)
    assert truth.category_ids == (3, 5, 7)
    assert found.image_id.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.labels.tolist() == [2] * 6  # the other scores too little
    assert found.boxes.tolist() == [[10, 5, 70, 55]] * 6

    pictures = {path.name: path for path in (predict.out / "pictures").iterdir()}
    assert set(pictures) == {"a.jpg", "a_2.jpg", "c.jpg", "clip.mp4"}
    drawn = np.asarray(Image.open(pictures["a_2.jpg"])).astype(int)
    plain = cv2.resize(noise(60, 80, seed=1), (640, 480), interpolation=cv2.INTER_CUBIC)
    changed = np.abs(drawn - plain).max(axis=2) > 60
    assert changed[40, 100:500].mean() > 0.5  # the upper edge of the box, eight times as large
    assert not changed[:10].any()
    assert not changed[60:430, 100:540].any()
    assert num_frames(pictures["clip.mp4"]) == FRAMES
    assert {path: path.read_bytes() for path in before} == before

    first = predict.detections
    assert predict(predict.out / "pictures") == 1
    assert "lies where pictures are written" in predict.error
    assert predict.detections == first


def test_the_best_score_is_that_of_the_newest_evaluation(
    predict: Predict, inputs: Path, tmp_path: Path, monkeypatch
) -> None:
    """Of the same step and options; the folder of a published detector is the one at hand."""
    monkeypatch.setattr(OneBox, "step", 4, raising=False)
    monkeypatch.chdir(tmp_path)
    words = (inputs / "a.png", "--no-pictures", "--score-threshold")
    assert predict(*words, "best") == 1
    assert "run `harmonic-jax eval retinanet_lite0_voc` first" in predict.error
    assert predict.error.count("\n") == 1
    for time, (name, best) in enumerate(
        {"x_step4": 0.7, "y_step4": 0.05, "z_step4_class": 0.9, "z_step5": 0.9}.items()
    ):
        file = tmp_path / f"eval_{name}" / "metrics.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"AP": 0.5, "at_score": [{"best_score": best}]}))
        os.utime(file, (time, time))
    assert predict(*words, "best") == 0
    assert "score threshold: 0.050" in predict.shown
    assert len(predict.detections) == 2
    assert predict(*words, 0.5) == 0
    assert len(predict.detections) == 1
    assert predict(*words, 2) == 2
    assert "--score-threshold is 2.0; it must be a number in [0, 1]" in predict.error


def num_frames(path: Path) -> int:
    return int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT))


def test_results_alone(predict: Predict, inputs: Path) -> None:
    options = ("--no-pictures", "--score-threshold", "0", "--stored-pixels")
    assert predict(*options, inputs / "b") == 0
    assert sorted(path.name for path in predict.out.iterdir()) == ["detections.json", "images.json"]
    assert len(predict.detections) == 4
    assert predict.detectors[0].batch_size == 2  # not more than there are images
    assert not predict.detectors[0].upright


def test_nothing_that_can_be_read(predict: Predict, inputs: Path) -> None:
    assert predict(inputs / "broken.jpg") == 1
    assert "0 images, 0 objects; 1 file skipped" in predict.shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None])
def test_stopped_in_the_middle(
    predict: Predict, inputs: Path, monkeypatch, number: signal.Signals | None
) -> None:
    """In a long video: what was found until then is kept. None: a second Ctrl-C."""

    def before(batch: int) -> None:
        if batch == 1 and number is not None:
            signal.raise_signal(number)
        if batch == 2:
            assert number is None, "it went on after the signal"
            raise KeyboardInterrupt

    monkeypatch.setattr(OneBox, "before", staticmethod(before))
    assert predict(inputs / "clip.mp4", "--batch-size", "1") == 3
    assert f"stopped by {(number or signal.SIGINT).name}" in predict.error
    assert len(predict.detections) == len(predict.images) == 2
    assert num_frames(predict.out / "pictures" / "clip.mp4") == 2


def test_a_stop_while_images_wait_for_their_batch(predict: Predict, inputs, monkeypatch) -> None:
    """images.json lists what was looked at: the others would count as without objects."""

    def read(self: OneBox, path: Path) -> np.ndarray:
        return noise(*((60, 80) if path.parent.name == "b" else (80, 60)))  # two shapes

    stop = staticmethod(lambda batch: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(OneBox, "config", run_config())
    monkeypatch.setattr(OneBox, "read", read)
    monkeypatch.setattr(OneBox, "before", stop)
    assert predict(inputs / "a.png", inputs / "b", "--batch-size", "2") == 3
    assert [Path(entry["file_name"]).parent.name for entry in predict.images] == ["b", "b"]


@pytest.mark.parametrize("error", [ZeroDivisionError(), NonFiniteOutputError(0, 1, 7)])
def test_what_was_found_outlives_any_failure(
    predict: Predict, inputs: Path, monkeypatch, error: Exception
) -> None:
    """A fault of ours, or weights that say NaN: those are told with the image."""

    def before(batch: int) -> None:
        if batch == 1:
            raise error

    monkeypatch.setattr(OneBox, "before", staticmethod(before))
    if isinstance(error, ZeroDivisionError):
        with pytest.raises(ZeroDivisionError):
            predict(inputs / "b", "--batch-size", "1")
    else:
        assert predict(inputs / "b", "--batch-size", "1") == 1
        words = "the network says NaN or inf for image 1 of 1: its weights, of step 7"
        assert words in predict.error
        assert str(inputs / "b") in predict.error
        assert predict.error.count("\n") == 1
    assert len(predict.detections) == 1  # of the image before


def test_pictures_that_cannot_be_written_cost_no_detection(
    predict: Predict, inputs: Path, monkeypatch
) -> None:
    def write(path: Path, data: bytes) -> None:
        if path.name == "a.jpg":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_bytes(path, data)

    monkeypatch.setattr(predictions, "write_bytes", write)
    monkeypatch.setattr(cv2.VideoWriter, "fourcc", lambda *letters: 0)  # no such codec
    assert predict(inputs, inputs / "b") == 1
    out = predict.out / "pictures"
    assert f"not written: {out}/a.jpg: No space left on device, " in predict.shown
    assert f"not written: {out}/clip.mp4: OpenCV wrote no whole video" in predict.shown
    assert "; 2 not written\n" in predict.shown
    assert "2 in pictures/" in predict.shown
    assert len(predict.detections) == 6
    assert {path.name for path in out.iterdir()} == {"a_2.jpg", "c.jpg"}


def test_a_long_run_is_saved_now_and_then(tmp_path, monkeypatch) -> None:
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


def test_of_a_video_that_is_cut_short_it_is_said(predict: Predict, inputs: Path, tmp_path) -> None:
    whole = (inputs / "clip.mp4").read_bytes()
    frames, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
    middle = (frames + end) // 2
    (tmp_path / "hole.mp4").write_bytes(whole[:middle] + bytes(end - middle) + whole[end:])
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.mp4").write_bytes(b"<html>")
    assert predict(tmp_path) == 0
    shown = predict.shown
    assert f"cut short: {tmp_path}/hole.mp4: 2 of {FRAMES} frames could be read\n" in shown
    for name in ("half", "page"):
        line = f"skipped: {tmp_path}/{name}.mp4: not_an_image: OpenCV reads no video from it\n"
        assert line in shown
    assert not predict.error  # not a line for every block that the codec cannot read


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nowhere.jpg", "--run", "nowhere"), "nowhere.jpg: there is no such file"),
        (("--run", "nowhere"), "INPUTS must be given"),
        ((".", "--run", "nowhere", "--score-threshold", "30"), "--score-threshold is 30.0"),
        ((".", "--run", "nowhere", "--tta", "--tta-iou", "2"), "tta.merge_iou is 2.0"),
        (("a.png", "--run", "nowhere"), "nowhere holds no run"),
        (("a.png", "--run", "nowhere", "--batch-size", "0"), "--batch-size is 0"),
    ],
)
def test_mistakes(inputs: Path, monkeypatch, capsys, args: tuple, words: str) -> None:
    monkeypatch.chdir(inputs)
    assert harmonic_jax.__main__.main(["predict", *args]) in (1, 2)
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert not (inputs / "predictions").exists()


def test_options_of_evaluation() -> None:
    default = predict_command.InferenceOptions()
    assert default.augmentation() is None
    assert default.suffix == ""
    words = "--tta --tta-scales 1 1.5 --tta-no-flip --tta-merge wbf --nms soft_gaussian"
    options = parse_options(predict_command.InferenceOptions, words.split(), prog="x")
    assert options.augmentation() == TTA(scales=(1.0, 1.5), flip=False, merge="wbf")
    assert options.suffix == "_soft_gaussian_tta_wbf_1_1.5_unflipped"


def test_a_video_may_have_any_name(predict: Predict, inputs: Path, tmp_path: Path) -> None:
    """OpenCV ends the process at a text that is not UTF-8."""
    name = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes((inputs / "clip.mp4").read_bytes())
    assert predict(tmp_path / "in") == 0
    assert len(predict.images) == FRAMES
    (picture,) = (predict.out / "pictures").iterdir()
    assert cv2.VideoCapture(os.fsencode(picture)).isOpened()


def test_what_was_found_in_images_is_written_before_the_first_video(
    predict: Predict, inputs: Path, tmp_path: Path, monkeypatch
) -> None:
    """A codec that crashes takes the process with it."""
    seen = []

    def crash(path: Path, **options: object) -> None:
        seen.append(len(predict.detections))
        raise SystemExit(139)

    monkeypatch.setattr(predictions, "VideoReader", crash)
    with pytest.raises(SystemExit):
        predict(inputs, inputs / "b")
    assert seen == [3]


@pytest.mark.parametrize(
    "content",
    ["[]", '{"at_score": 5}', '{"at_score": {"a": 1}}', '{"at_score": [{"best_score": [1]}]}',
     '{"at_score": [{"best_score": "x"}]}', '{"at_score": [{"best_score": 7}]}', "{"],
)  # fmt: skip
def test_metrics_that_are_not_ours_give_no_best_score(
    predict: Predict, inputs: Path, tmp_path: Path, monkeypatch, content: str
) -> None:
    monkeypatch.setattr(OneBox, "step", 4, raising=False)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "eval_x_step4" / "metrics.json"
    file.parent.mkdir()
    file.write_text(content)
    assert predict(inputs / "a.png", "--no-pictures", "--score-threshold", "best") == 1
    assert str(file.relative_to(tmp_path)) in predict.error
    assert predict.error.count("\n") == 1
