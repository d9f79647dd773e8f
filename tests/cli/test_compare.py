"""`eval.py --report` and `compare` on files, as a user types them."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

import harmonic_jax.__main__
from harmonic_jax.cli import consistency, evaluate
from harmonic_jax.cli.consistency import MOST_RAW_BOXES, RawPredictions
from harmonic_jax.metrics.coco import coco_metrics, mask_metrics
from harmonic_jax.metrics.files import (
    load_coco_annotations,
    save_coco_annotations,
    save_coco_results,
    save_raw,
)
from harmonic_jax.metrics.tables import DetectionTable
from harmonic_jax.ops import Suppression, suppress
from tests.metrics.consistency import brute
from tests.metrics.synthetic import awkward_masks

WRITTEN = ("consistency.json", "consistency.txt", "annotations.json", "detections.json")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations, a results file, one whose scores know less, and boxes before NMS."""
    folder = tmp_path_factory.mktemp("files")
    truth, found = brute.detector_case(0)
    _, raw = brute.detector_case(0, detections=25)
    save_coco_annotations(folder / "annotations.json", truth)
    save_coco_results(folder / "good.json", found, truth.category_ids)
    noise = np.random.default_rng(0).random(len(found.scores))
    worse = dataclasses.replace(found, scores=noise)
    save_coco_results(folder / "bad.json", worse, truth.category_ids)
    save_coco_results(folder / "raw.json", raw, truth.category_ids)
    save_raw(folder / "raw.npz", raw, truth.category_ids)
    return folder


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has tests of its own."""
    monkeypatch.setattr(consistency, "write_page", lambda *args, **options: [])


def report_on(files: Path, name: str, out: Path, *more: object) -> int:
    args = ["--predictions", files / f"{name}.json", "--annotations", files / "annotations.json"]
    return evaluate.main([str(a) for a in (*args, "--report", out, "--resamples", 20, *more)])


def compare(*args: object) -> int:
    return harmonic_jax.__main__.main(["compare", *map(str, args)])


def test_report_of_results_files(files: Path, tmp_path, capsys) -> None:
    assert report_on(files, "good", tmp_path / "good") == 0
    shown = capsys.readouterr().out
    assert "mean |score - IoU|" in shown
    assert "note: boxes before NMS were not given" in shown
    for name in WRITTEN:
        assert f"written: {tmp_path / 'good' / name}" in shown
        assert (tmp_path / "good" / name).stat().st_size > 0
    report = json.loads((tmp_path / "good" / "consistency.json").read_text())
    assert report["settings"]["num_raw"] is None
    assert "nms_mean_loss" not in report["overall"]


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_report_with_boxes_before_nms(files: Path, tmp_path, suffix: str) -> None:
    raw = files / f"raw.{suffix}"
    assert report_on(files, "good", tmp_path, "--raw-predictions", raw) == 0
    report = json.loads((tmp_path / "consistency.json").read_text())
    assert report["overall"]["nms_mean_loss"]["value"] > 0
    assert (tmp_path / "raw_boxes.npz").exists()
    # Without them, the file of an earlier report must not stay.
    assert report_on(files, "good", tmp_path) == 0
    assert not (tmp_path / "raw_boxes.npz").exists()


def test_compare_two_results_files(files: Path, tmp_path, capsys) -> None:
    out = tmp_path / "numbers.json"
    annotations = ("--annotations", files / "annotations.json", "--resamples", 40)
    assert compare(files / "bad.json", files / "good.json", *annotations, "--json", out) == 0
    shown = capsys.readouterr().out
    assert "B is better in: AP (+0." in shown
    assert "would by chance" in shown
    result = json.loads(out.read_text())
    assert result["overall"]["pearson"]["better"] == "b"
    assert result["classes"]["class 0"]["AP"]["difference"] > 0


def test_compare_two_reports_with_boxes_before_nms(files: Path, tmp_path, capsys) -> None:
    for name in ("good", "bad"):
        assert report_on(files, name, tmp_path / name, "--raw-predictions", files / "raw.npz") == 0
    capsys.readouterr()
    assert compare(tmp_path / "bad", tmp_path / "good", "--resamples", 10) == 0
    shown = capsys.readouterr().out
    assert "lost in NMS" in shown
    assert "is not compared" not in shown
    several = (
        "--a",
        tmp_path / "bad",
        tmp_path / "bad",
        "--b",
        tmp_path / "good",
        files / "good.json",
    )
    assert compare(*several, "--resamples", 10) == 0
    shown = capsys.readouterr().out
    assert "2 runs, mean ± standard deviation" in shown
    assert "is not compared" in shown  # a results file has no boxes before NMS


def test_compare_reads_runs_as_they_lie_on_the_disk(
    files: Path, coco_folder: Path, tmp_path, capsys
) -> None:
    """A run's own detections and data, without a network."""
    from harmonic_jax.config import DataConfig
    from harmonic_jax.training.run_folder import RunFolder
    from tests.inference.tiny_run import run_config

    for name, score in (("a", 0.9), ("b", 0.4)):
        config = dataclasses.replace(
            run_config(),
            data=DataConfig(
                format="coco", root=str(coco_folder), train_split="pictures", eval_split="pictures"
            ),
        )
        run = RunFolder(tmp_path / name)
        run.open(config)
        run.report.mkdir()
        entry = {"image_id": 10, "category_id": 3, "bbox": [2, 2, 30, 30], "score": score}
        (run.report / "detections.json").write_text(json.dumps([entry]))
    assert compare(tmp_path / "a", tmp_path / "b", "--resamples", 5, "--report", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "6 images" in shown
    assert "not both sides have boxes before NMS" in shown
    page = (tmp_path / "comparison.html").read_text()
    assert "There are none." in page  # one box at the same place
    truth = load_coco_annotations(coco_folder / "annotations" / "instances_pictures.json")
    (entry,) = truth.boxes[truth.image_id == 10]
    raw = DetectionTable([10], [entry], [0.1], [0])
    for name in "ab":  # what `eval RUN --report RUN/report` puts there
        save_raw(tmp_path / name / "report" / "raw_boxes.npz", raw, truth.category_ids)
    numbers = tmp_path / "numbers.json"
    assert compare(tmp_path / "a", tmp_path / "b", "--resamples", 5, "--json", numbers) == 0
    assert json.loads(numbers.read_text())["overall"]["nms_mean_loss"]["a"] > 0
    assert compare(tmp_path / "a", files / "good.json", "--resamples", 5) == 1
    assert "not in the ground truth" in capsys.readouterr().err


def test_report_and_comparison_by_masks(tmp_path, capsys) -> None:
    truth, found = awkward_masks(1)
    files = tmp_path / "files"
    files.mkdir()
    save_coco_annotations(files / "annotations.json", truth)
    save_coco_results(files / "found.json", found, truth.category_ids)
    out = tmp_path / "report"
    assert report_on(files, "found", out, "--iou-type", "segm") == 0
    assert "note: every IoU is of masks" in capsys.readouterr().out
    report = json.loads((out / "consistency.json").read_text())
    expected = mask_metrics(truth, found)
    assert report["overall"]["AP"]["value"] == pytest.approx(expected["mask_AP"])
    assert expected["mask_AP"] != pytest.approx(coco_metrics(truth, found)["AP"])
    assert compare(out, out, "--iou-type", "segm", "--resamples", 5) == 0
    shown = capsys.readouterr().out
    assert f"{expected['mask_AP']:.3f}" in shown
    assert "What NMS loses is not compared: it is lost in boxes" in shown
    raw = ("--iou-type", "segm", "--raw-predictions", files / "found.json")
    assert report_on(files, "found", out, *raw) == 2
    assert "they go with --iou-type bbox" in capsys.readouterr().err
    plain = dataclasses.replace(found, masks=None)
    save_coco_results(files / "found.json", plain, truth.category_ids)
    assert compare(out, files / "found.json", "--iou-type", "segm", "--resamples", 5) == 1
    assert "segmentation is None" in capsys.readouterr().err


def test_mistakes_are_explained_in_a_line(files: Path, tmp_path, capsys) -> None:
    good = files / "good.json"
    (tmp_path / "empty").mkdir()
    cases = [
        ((good,), "give two runs, or several a side"),
        ((good, good), "two results files need --annotations"),
        ((good, tmp_path / "nowhere", "--annotations", good), "nor a results file"),
        ((good, tmp_path / "empty"), "is no run, nor a results file, nor a folder that"),
        (
            (good, good, "--annotations", files / "annotations.json", "--resamples", 0),
            "must be a whole number in [1, 100000]",
        ),
    ]
    for args, words in cases:
        assert compare(*args) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert words in error


def test_the_page_has_the_pictures_of_a_folder(files: Path, tmp_path, capsys) -> None:
    truth, _ = brute.detector_case(0)
    names = {i: f"{i}.png" for i in truth.image_ids.tolist()}
    save_coco_annotations(tmp_path / "truth.json", truth, names)
    for name in names.values():
        cv2.imwrite(str(tmp_path / name), np.full((640, 640, 3), 90, np.uint8))
    pair = (files / "bad.json", files / "good.json", "--annotations", tmp_path / "truth.json")
    report = ("--resamples", 5, "--report", tmp_path / "new")
    pages = []
    for more in ((), ("--images", tmp_path)):
        assert compare(*pair, *report, *more) == 0
        shown = capsys.readouterr().out
        assert f"written: {tmp_path / 'new' / 'comparison.html'}" in shown
        assert "B is better in: AP (+0." in shown
        pages.append((tmp_path / "new" / "comparison.html").read_text())
    shots = [page.count('class="shot"') for page in pages]
    assert shots[0] == shots[1] > 5
    assert [page.count("data:image/jpeg") for page in pages] == [0, shots[0]]
    assert f"A: {files / 'bad.json'}; B: {files / 'good.json'}" in pages[0]
    assert compare(*pair, "--images", tmp_path) == 2
    assert "--images goes with --report" in capsys.readouterr().err
    assert compare(*pair, *report, "--images", files) == 1
    assert "holds none of the images" in capsys.readouterr().err


def test_reports_of_different_images_are_refused(files: Path, tmp_path, capsys) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        truth, found = brute.detector_case(seed)
        folder = tmp_path / name
        folder.mkdir()
        save_coco_annotations(folder / "annotations.json", truth)
        save_coco_results(folder / "detections.json", found, truth.category_ids)
    assert compare(tmp_path / "one", tmp_path / "other") == 1
    assert "different images or objects" in capsys.readouterr().err


def test_raw_boxes_are_all_candidates_of_the_detector(tmp_path) -> None:
    """Suppression of them gives the detector's own detections."""
    from harmonic_jax.training.evaluation import MatchedPredictions
    from harmonic_jax.training.evaluation import evaluate as run_evaluation
    from harmonic_jax.training.run_folder import RunFolder
    from harmonic_jax.training.saved_run import read_run
    from harmonic_jax.training.sharding import data_mesh, replicated
    from tests.inference.tiny_run import images_of_shapes, run_config, write_run

    config, mesh = run_config(), data_mesh(jax.devices()[:1])
    folder = RunFolder(write_run(tmp_path / "run", config))
    run = read_run(folder, sharding=replicated(mesh))
    source = images_of_shapes(1, number=2)
    labels_there = np.array([2, 0, 1])  # of the detector's classes in the data
    step = RawPredictions(run, labels_there, source, mesh)
    matched = MatchedPredictions(step, labels_there)
    kept = run_evaluation(matched, run.variables, source, config, mesh).detections
    raw, num_full = step.found()
    settings = config.model.postprocess
    for image in np.unique(kept.image_id):
        mine, own = raw.image_id == image, kept.image_id == image
        boxes, scores, labels = raw.boxes[mine], raw.scores[mine], raw.labels[mine]
        rule = Suppression("class", iou=settings.nms_iou, max_outputs=settings.max_detections)
        chosen = jax.jit(partial(suppress, settings=rule))(boxes, scores, labels)
        chosen = np.asarray(chosen.indices)[np.asarray(chosen.valid)]
        assert mine.sum() > len(chosen) == own.sum()
        assert labels[chosen].tolist() == kept.labels[own].tolist()
        assert scores[chosen] == pytest.approx(kept.scores[own])
        assert boxes[chosen] == pytest.approx(kept.boxes[own], abs=1e-3)
    assert len(np.unique(kept.image_id)) == 2
    assert num_full == sum(np.bincount(raw.image_id) == MOST_RAW_BOXES)


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_boxes_before_nms_cost_no_second_network(name: str, tmp_path: Path) -> None:
    """Nor masks."""
    from harmonic_jax.data.loader import eval_batches
    from harmonic_jax.training.run_folder import RunFolder
    from harmonic_jax.training.saved_run import read_run
    from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
    from harmonic_jax.training.step import make_predict_step
    from tests.detectors import tiny
    from tests.inference.tiny_run import images_of_shapes, run_config, write_run

    config, mesh = dataclasses.replace(run_config(), model=tiny.MODELS[name]), data_mesh()
    folder = RunFolder(write_run(tmp_path / "run", config))
    run, source = read_run(folder, sharding=replicated(mesh)), images_of_shapes(1, number=2)
    with eval_batches(
        source, config.data, batch_size=mesh.size, process_index=0, process_count=1
    ) as batches:
        batch = put_batch(next(iter(batches)), mesh)

    def flops(step: Any) -> float:
        return jax.jit(step).lower(run.variables, batch).compile().cost_analysis()["flops"]

    alone = flops(make_predict_step(run.detector, mesh))
    assert alone < flops(RawPredictions(run, np.arange(3), source, mesh).step) < 1.05 * alone
