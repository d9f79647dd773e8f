"""The commands as a user types them, on a small folder in COCO layout."""

import json
import os
from pathlib import Path

import pytest

import harmonic_jax.__main__
from harmonic_jax.cli import evaluate, train
from tests.cli.conftest import ROOT, SMALL, Command


@pytest.fixture(scope="module")
def training(coco_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that trains two steps."""
    data = ("--data.format", "coco", "--data.root", str(coco_folder))
    data += ("--data.train-split", "pictures", "--data.eval-split", "pictures")
    run = tmp_path_factory.mktemp("commands") / "run"
    more = ("--train.steps", "2", "--model.prior", "0.3", "--run-dir", str(run))
    return ["train", "retinanet_r18_scenes", *SMALL, *data, *more]


@pytest.fixture(scope="module")
def run(command: Command, training: list[str]) -> Path:
    """The run that the installed command made of it, and wrote about."""
    done = command(*training)
    assert done.returncode == 0, done.stderr
    assert "IoU .50" in done.stdout
    run = Path(training[-1])
    for name in ("metrics.json", "metrics.txt", "detections.json", "detections.png", "curves.png"):
        assert str(run / "report" / name) in done.stdout
        assert (run / "report" / name).stat().st_size > 0
    assert f"evaluate it again with: harmonic-jax eval {run}" in done.stdout
    return run


@pytest.fixture
def metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "report" / "metrics.json").read_text())


def test_the_same_command_goes_on(run: Path, training: list[str], metrics, capsys) -> None:
    assert train.main(training[1:]) == 0
    assert "continuing the run" in capsys.readouterr().out
    assert json.loads((run / "report" / "metrics.json").read_text()) == metrics


def test_another_config_is_refused_there(run: Path, training: list[str], capsys) -> None:
    assert train.main([*training[1:], "--train.seed", "5"]) == 1
    error = capsys.readouterr().err
    assert "train.seed: 0 there, 5 now" in error
    assert "--run-dir" in error


def test_evaluation_of_the_run(run: Path, metrics, command: Command, tmp_path) -> None:
    done = command("eval", run, "--json", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run.json").read_text()) == pytest.approx(metrics, abs=1e-9)


def test_evaluation_of_its_files(run: Path, metrics, coco_folder: Path, tmp_path) -> None:
    annotations = coco_folder / "annotations" / "instances_pictures.json"
    files = ("--predictions", run / "report" / "detections.json", "--annotations", annotations)
    words = (*files, "--json", tmp_path / "files.json")
    assert evaluate.main([str(word) for word in words]) == 0
    assert json.loads((tmp_path / "files.json").read_text()) == pytest.approx(metrics, abs=1e-9)


def test_prediction(run: Path, coco_folder: Path, command: Command, tmp_path) -> None:
    pictures = coco_folder / "pictures"
    done = command("predict", pictures, "--run", run, "--out", tmp_path, "--score-threshold", "0")
    assert done.returncode == 0, done.stderr
    assert f"written to {tmp_path}: detections.json, images.json, 6 in pictures/" in done.stdout
    assert json.loads((tmp_path / "detections.json").read_text())


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


def test_the_scripts_of_a_checkout(monkeypatch) -> None:
    """`train.py` alone trains the default."""
    import runpy

    asked = []
    for script, words, expected in (
        ("train.py", [], ["train", "retinanet_r18_scenes"]),
        (
            "train.py",
            ["--train.steps", "3"],
            ["train", "retinanet_r18_scenes", "--train.steps", "3"],
        ),
        ("train.py", ["ssd300_voc"], ["train", "ssd300_voc"]),
        ("eval.py", ["run"], ["eval", "run"]),
    ):
        monkeypatch.setattr("sys.argv", [script, *words])
        monkeypatch.setattr("harmonic_jax.__main__.main", lambda argv: asked.append(argv) or 0)
        with pytest.raises(SystemExit):
            runpy.run_path(os.fspath(ROOT / script), run_name="__main__")
        assert asked.pop() == expected
