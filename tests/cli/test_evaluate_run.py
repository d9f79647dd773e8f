"""`eval.py RUN`: where its report goes, what is refused before the evaluation, what it says."""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harmonic_jax.cli import evaluate
from harmonic_jax.cli.evaluate import data_slug
from harmonic_jax.config import DataConfig
from tests.cli.coco import write_coco
from tests.inference.tiny_run import run_config, write_run

WRITTEN = {
    "metrics.json", "metrics.txt", "detections.json", "images.txt", "detections.png",
    "at_score.csv",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the classes a, b, c; without a checkpoint of its training."""
    return write_run(tmp_path_factory.mktemp("evaluated") / "my run", run_config())


@pytest.fixture
def evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Evaluates the run on a folder; the status, and all that was printed."""

    def start(root: Path, *more: object) -> tuple[int, str]:
        words = [run, "--format", "coco", "--root", root, "--split", "valid", *more]
        status = evaluate.main([str(word) for word in words])
        shown = capsys.readouterr()
        return status, shown.out + shown.err

    return start


def test_no_two_evaluations_share_a_folder(run: Path, evaluation, tmp_path) -> None:
    """Neither of two data sets with the same name and annotations, nor of two splits."""
    roots = [write_coco(tmp_path / name / "data", "valid", seed=i) for i, name in enumerate("xy")]
    write_coco(roots[0], "te st[:10%]")
    assert evaluation(roots[0])[0] == 0
    assert evaluation(roots[0], "--split", "te st[:10%]")[0] == 0
    assert evaluation(roots[1])[0] == 0
    folders = [path for path in run.iterdir() if path.name.startswith("eval_")]
    assert len(folders) == 3
    assert all({path.name for path in folder.iterdir()} == WRITTEN for folder in folders)
    assert sum(folder.name.startswith("eval_coco_data_valid_") for folder in folders) == 2
    assert evaluation(roots[0])[0] == 0  # the same again replaces its report
    assert evaluation(roots[0], "--out", tmp_path / "new" / "report")[0] == 0
    assert {path.name for path in (tmp_path / "new" / "report").iterdir()} == WRITTEN
    assert len([path for path in run.iterdir() if path.name.startswith("eval_")]) == 3


def test_splits_that_differ_by_signs_only_have_different_names() -> None:
    config = DataConfig(name="coco/2017")
    splits = ("train[:10%]", "train[10%:]", "train_10_")
    names = {data_slug(f"tfds:coco/2017:{split}", config, split) for split in splits}
    assert len(names) == 3
    assert all(name.isascii() and "/" not in name for name in names)
    assert len(data_slug("coco:" + "\N{SNOWMAN}x" * 200, config, "valid")) < 100


def test_what_cannot_be_written_is_found_before_the_evaluation(
    run: Path, evaluation, tmp_path, monkeypatch
) -> None:
    root = write_coco(tmp_path / "data", "valid")
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    monkeypatch.setattr(evaluate, "evaluate", lambda *args, **more: pytest.fail("evaluated"))
    for option in ("--out", "--report", "--json"):
        status, shown = evaluation(root, option, below)
        assert status == 1
        assert shown.startswith(f"error: {below}")
        assert shown.count("\n") == 1
    assert evaluation(root, "--json", tmp_path / "data") == (
        1, f"error: {tmp_path / 'data'}: Is a directory\n",
    )  # fmt: skip


def test_a_report_by_masks_needs_masks(evaluation, tmp_path) -> None:
    root, out = write_coco(tmp_path / "data", "valid"), tmp_path / "out"
    status, shown = evaluation(root, "--out", out, "--report", out, "--iou-type", "segm")
    assert status == 1
    assert "error: the detection table has no masks; 'segm' metrics need them" in shown
    assert {path.name for path in out.iterdir()} == WRITTEN  # the numbers of boxes are there


def test_numbers_are_saved_before_pictures(evaluation, tmp_path, monkeypatch) -> None:
    root = write_coco(tmp_path / "data", "valid")

    def fail(path: Path, image: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("harmonic_jax.training.results.save_png", fail)
    out = tmp_path / "out"
    status, shown = evaluation(root, "--out", out, "--json", tmp_path / "numbers.json")
    assert status == 1
    assert "IoU .50" in shown
    assert shown.splitlines()[-1].startswith(f"error: {out / 'detections.png'}: No space left")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert json.loads((out / "metrics.json").read_text()) == numbers
    assert json.loads((out / "detections.json").read_text())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_report_is_written_whatever_becomes_of_the_output(
    evaluation, tmp_path, monkeypatch
) -> None:
    root = write_coco(tmp_path / "data", "valid")
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        status, shown = evaluation(root, "--out", tmp_path / "out")
    assert status == 1
    assert shown.count("standard output: No space left on device; the work goes on") >= 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN


def test_images_that_cannot_be_decoded_are_said(evaluation, tmp_path) -> None:
    half = write_coco(tmp_path / "half", "valid", number=4, broken=(1, 3))
    status, shown = evaluation(half, "--out", tmp_path / "out")
    assert status == 0
    words = "2 of 4 images could not be decoded: nothing is detected in them"
    assert words in shown
    report = (tmp_path / "out" / "images.txt").read_text()
    assert words in report
    assert "1.png: truncated" in report
    none = write_coco(tmp_path / "none", "valid", number=2, broken=(0, 1))
    status, shown = evaluation(none)
    assert status == 0
    assert "none of the 2 images could be decoded: these numbers say nothing of the dete" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "give the folder of a run, or both --predictions P.json and --annotations A.json"),
        ("--predictions p", "or both --predictions P.json and --annotations A.json"),
        (
            "RUN --annotations a",
            "--annotations goes with --predictions and --annotations, not with a",
        ),
        ("--predictions p --annotations a --images x", "--images goes with --report DIR"),
        ("--predictions p --annotations a --last", "--last goes with a run"),
        ("--predictions p --annotations a --tta", "--tta goes with a run"),
        ("RUN --slices size", "--slices goes with --report DIR"),
        ("RUN --score-threshold nan", "--score-threshold is nan; it must be a number in [-1e30"),
        ("RUN --score-threshold inf", "--score-threshold is inf; it must be a number in [-1e30"),
        ("RUN --match-iou 0", "--match-iou is 0.0; it must be a number in (0, 1]"),
        ("RUN --batch-size 0", "--batch-size is 0; it must be"),
        ("RUN --resamples -1", "--resamples is -1; it must be"),
        ("RUN --tta-iou 0.5", "--tta-iou goes with --tta"),
        ("RUN --tta --tta-scales nan", "tta.scales is (nan,)"),
        ("RUN --nms nothing", "invalid choice 'nothing' for argument '--nms'"),
        ("RUN OTHER", "Unrecognized options: OTHER"),
    ],
)
def test_options_that_do_not_go_together(words: str, told: str, capsys) -> None:
    assert evaluate.main(words.split()) in (1, 2)
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--nms-sigma nan", "nms_sigma is nan"),
        ("--name coco/2017", "--name coco/2017 goes with --format tfds"),
        ("--format coco", "data.root is None; it must be"),
    ],
)
def test_values_that_are_not_legal(run: Path, words: str, told: str, capsys) -> None:
    if words.startswith("--name"):
        words += " --format voc --root x"
    assert evaluate.main([str(run), *words.split()]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_results_have_the_image_ids_of_the_data_set(evaluation, tmp_path) -> None:
    """Also those that are texts, or longer than 64 bits."""
    root = write_coco(tmp_path / "data", "valid")
    path = root / "annotations" / "instances_valid.json"
    content = json.loads(path.read_text())
    ids = ["0000001_d", 2**100]
    for entry, key in zip(content["images"], ids, strict=True):
        entry["id"] = key
    for entry in content["annotations"]:
        entry["image_id"] = ids[entry["image_id"]]
    path.write_text(json.dumps(content))
    status, _ = evaluation(root, "--out", tmp_path / "out")
    assert status == 0
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {entry["image_id"] for entry in written} == set(ids)


def test_what_the_rules_dropped_is_said(evaluation, tmp_path) -> None:
    """The numbers are those of what is left."""
    root = write_coco(tmp_path / "data", "valid", number=3)
    (root / "valid" / "1.png").unlink()
    status, shown = evaluation(root)
    assert status == 0
    assert f"1.png: not in {root / 'valid'}" in shown
    assert "dropped_with_image  1" in shown
