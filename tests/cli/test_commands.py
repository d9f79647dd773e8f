"""The commands as a user types them, on a small folder in COCO layout."""

import json
from pathlib import Path

import pytest

import harmonic_jax.__main__
from tests.cli.conftest import ROOT, SMALL


def test_train_continue_evaluate(command, coco_folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    data = ("--data.format", "coco", "--data.root", coco_folder)
    data += ("--data.train-split", "pictures", "--data.eval-split", "pictures")
    training = ("train.py", *SMALL, *data, "--run-dir", run_dir)

    first = command(*training)
    assert first.returncode == 0, first.stderr
    assert "IoU .50" in first.stdout
    report = run_dir / "report"
    names = ("metrics.json", "metrics.txt", "detections.json", "detections.png", "curves.png")
    for name in names:
        assert str(report / name) in first.stdout
        assert (report / name).stat().st_size > 0
    metrics = json.loads((report / "metrics.json").read_text())

    again = command(*training)
    assert again.returncode == 0, again.stderr
    assert "continuing the run" in again.stdout
    assert json.loads((report / "metrics.json").read_text()) == metrics

    other = command(*training, "--train.seed", "5")
    assert other.returncode == 1
    assert "train.seed: 0 there, 5 now" in other.stderr
    assert "--run-dir" in other.stderr

    evaluated = command("eval.py", run_dir, "--json", tmp_path / "run.json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((tmp_path / "run.json").read_text()) == pytest.approx(metrics, abs=1e-9)

    files = command(
        "eval.py",
        "--predictions",
        report / "detections.json",
        "--annotations",
        coco_folder / "annotations" / "instances_pictures.json",
        "--json",
        tmp_path / "files.json",
    )
    assert files.returncode == 0, files.stderr
    assert json.loads((tmp_path / "files.json").read_text()) == pytest.approx(metrics, abs=1e-9)


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("train", "configs/nowhere.py"), 1, "there is no config file configs/nowhere.py"),
        (("train", "ssd300_voc", "--optim.learning-rate", "-1"), 2, "optim.learning_rate is -1.0"),
        (("train", "ssd300_vox"), 1, "there is no config 'ssd300_vox'; near it: ssd300_voc"),
        (("train", "--train.steps", "3"), 2, "the config comes first: a name that `harmonic-jax t"),
        (
            ("train", "configs/retinanet_r18_bccd.py", "--data.root", "/nowhere"),
            1,
            "data.root is '/nowhere'",
        ),
        (("eval", "/nowhere"), 1, "/nowhere holds no run"),
        (("eval",), 2, "--predictions P.json and --annotations A.json"),
        (("eval", "--predictions", "a.json", "--annotations", "b.json"), 1, "b.json"),
    ],
)
def test_mistakes_are_explained_in_a_line(
    monkeypatch, capsys, args, status: int, words: str
) -> None:
    """Called as the scripts call them; a process each would spend its time on imports."""
    monkeypatch.chdir(ROOT)
    assert harmonic_jax.__main__.main(list(args)) == status
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
