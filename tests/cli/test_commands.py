"""The commands as a user types them, on a small folder in COCO layout."""

import json
import os
import runpy
from pathlib import Path

import pytest

import harmonic_jax.__main__
from harmonic_jax.cli import train
from harmonic_jax.metrics.coco import format_table
from harmonic_jax.pretrained import hub
from harmonic_jax.training.run_folder import RunFolder
from tests.cli.conftest import ROOT, SMALL_RUNS, Command


@pytest.fixture(scope="module", params=SMALL_RUNS)
def training(
    request: pytest.FixtureRequest, coco_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A command that trains two steps."""
    data = ("--data.format", "coco", "--data.root", str(coco_folder))
    data += ("--data.train-split", "pictures", "--data.eval-split", "pictures")
    run = tmp_path_factory.mktemp("commands") / "run"
    return ["train", *SMALL_RUNS[request.param], *data, f"--run-dir={run}"]


@pytest.fixture(scope="module")
def run(command: Command, training: list[str]) -> Path:
    """The run that the installed command made of it, and wrote about."""
    done = command(*training)
    assert done.returncode == 0, done.stderr
    assert "IoU .50" in done.stdout
    run = Path(training[-1].partition("=")[2])
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


def test_evaluation_and_prediction(run: Path, metrics, coco_folder: Path, tmp_path, capsys) -> None:
    numbers = tmp_path / "run.json"
    assert harmonic_jax.__main__.main(["eval", str(run), "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text())
    assert found.pop("at_score")[0]["class"] == "all"
    assert found == pytest.approx(metrics, abs=1e-9)
    words = [coco_folder / "pictures", "--run", run, "--out", tmp_path / "out"]
    words = ["predict", *map(str, words), "--score-threshold", "0"]
    assert harmonic_jax.__main__.main(words) == 0
    shown = capsys.readouterr().out
    assert f"written to {tmp_path}/out: detections.json, images.json, 6 in pictures/" in shown
    assert json.loads((tmp_path / "out" / "detections.json").read_text())


def test_a_report_and_a_comparison(run: Path, tmp_path, capsys) -> None:
    """Of a run with itself: nothing differs; of one without NMS, it loses nothing."""
    main, few = harmonic_jax.__main__.main, ("--resamples", "10")
    assert main(["eval", str(run), "--report", str(tmp_path / "a"), *few]) == 0
    assert capsys.readouterr().out.count(" done") == 1  # the images are looked at once
    has_nms = RunFolder(run).read_config().model.postprocess.has_nms
    pair = (str(tmp_path / "a"), str(tmp_path / "a"))
    assert main(["compare", *pair, "--json", str(tmp_path / "b.json"), *few]) == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["overall"]["AP"]["difference"] == 0
    lost = found["overall"]["nms_mean_loss"]["values_a"][0]
    assert lost > 0 if has_nms else lost == 0


def test_the_numbers_of_a_card_come_again(
    run: Path, metrics, coco_folder: Path, tmp_path, monkeypatch, capsys
) -> None:
    """By one command: the card's table is what it prints, of a detector that is named."""
    monkeypatch.setattr(hub, "SHIPPED", tmp_path)
    main = harmonic_jax.__main__.main
    assert main(["export-weights", str(run), "--out", str(tmp_path / "mine"), "--card"]) == 0
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    capsys.readouterr()
    assert main(["eval", "mine", "--json", "m.json", "--data.root", str(coco_folder)]) == 0
    found = json.loads(Path("m.json").read_text())
    del found["at_score"]
    assert found == pytest.approx(metrics, abs=1e-9)
    table = format_table(metrics)
    assert table in capsys.readouterr().out
    assert table in (tmp_path / "mine" / "README.md").read_text()
    assert list(Path().glob("eval_*/metrics.json"))  # beside nothing but what is being done


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("eval", "/nowhere"), "/nowhere holds no run"),
        (("eval", "--predictions", "a.json", "--annotations", "b.json"), "b.json"),
    ],
)
def test_mistakes_are_explained_in_a_line(capsys, args: tuple[str, ...], words: str) -> None:
    assert harmonic_jax.__main__.main(list(args)) == 1
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1


def test_the_scripts_of_a_checkout(monkeypatch) -> None:
    """`train.py` alone trains the default."""
    asked = []
    monkeypatch.setattr("harmonic_jax.__main__.main", lambda argv: asked.append(argv) or 0)
    default = ["train", "retinanet_r18_scenes"]
    for script, words, expected in (
        ("train.py", [], default),
        ("train.py", ["--train.steps", "3"], [*default, "--train.steps", "3"]),
        ("train.py", ["ssd300_voc"], ["train", "ssd300_voc"]),
        ("eval.py", ["run"], ["eval", "run"]),
    ):
        monkeypatch.setattr("sys.argv", [script, *words])
        with pytest.raises(SystemExit):
            runpy.run_path(os.fspath(ROOT / script), run_name="__main__")
        assert asked.pop() == expected
