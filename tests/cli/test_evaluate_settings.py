"""`eval` with other thresholds, ranges, limits and subsets; annotations that others can read."""

import csv
import json
from pathlib import Path

import pytest

import harmonic_jax.__main__
from harmonic_jax.cli import consistency, evaluate
from harmonic_jax.metrics import (
    CocoParams,
    coco_metrics,
    load_coco_annotations,
    load_coco_results,
    save_coco_annotations,
    save_coco_results,
)
from harmonic_jax.metrics.at_score import class_table
from tests.cli.coco import write_coco
from tests.inference.tiny_run import run_config, write_run
from tests.metrics.consistency import brute

SETTINGS = "--iou-thresholds .3 .5 --area-ranges tiny 0 900 rest 900 1e10 --max-detections 1 200"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Annotations with sizes and file names, results, and boxes before NMS."""
    truth, found = brute.detector_case(0)
    names = {image: f"{image}.jpg" for image in truth.image_ids.tolist()}
    save_coco_annotations(tmp_path / "plain.json", truth, names)
    content = json.loads((tmp_path / "plain.json").read_text())
    content["images"] = [image | {"height": 480, "width": 640} for image in content["images"]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    save_coco_results(tmp_path / "p.json", found, truth.category_ids)
    _, raw = brute.detector_case(0, detections=25)
    save_coco_results(tmp_path / "raw.json", raw, truth.category_ids)
    return tmp_path


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has tests of its own."""
    monkeypatch.setattr(consistency, "write_page", lambda *args, **options: [])


def evaluated(files: Path, *more: object) -> int:
    words = ("--predictions", files / "p.json", "--annotations", files / "a.json", *more)
    return evaluate.main([str(word) for word in words])


def test_settings_of_the_command_are_those_of_the_metrics(files: Path, capsys) -> None:
    """The report is of the same images and classes."""
    truth = load_coco_annotations(files / "a.json")
    found = load_coco_results(files / "p.json", truth)
    name, ids = truth.class_names[0], truth.image_ids[:5].tolist()
    params = CocoParams(
        iou_thresholds=(0.3, 0.5),
        area_ranges=(("tiny", 0, 900), ("rest", 900, 1e10)),
        max_detections=(1, 200),
        classes=frozenset({name}),
        image_ids=frozenset(ids),
    )
    words = [*SETTINGS.split(), "--classes", name, "--image-ids", *ids]
    report = ("--report", files / "report", "--resamples", 0, "--raw-predictions")
    words += ["--json", files / "numbers.json", *report, files / "raw.json"]
    assert evaluated(files, *words) == 0
    numbers = json.loads((files / "numbers.json").read_text())
    chosen = params.select(truth, found)
    assert numbers.pop("at_score") == class_table(*chosen, score=0.5, iou=0.5)
    assert numbers == coco_metrics(truth, found, params=params)
    assert numbers["AP"] > numbers["AP50"] > 0
    assert "best 200" in capsys.readouterr().out
    written = json.loads((files / "report" / "annotations.json").read_text())
    assert [image["id"] for image in written["images"]] == ids
    assert {entry["category_id"] for entry in written["annotations"]} == {truth.category_ids[0]}


@pytest.mark.parametrize("rule", ["size", "folder", "tags.json"])
def test_slices(files: Path, rule: str, monkeypatch, capsys) -> None:
    """The tables at one score are in CSV files; names that no image has are counted."""
    monkeypatch.chdir(files)
    content = json.loads((files / "a.json").read_text())
    first, second, *_ = images = content["images"]
    second |= {"width": 641, "file_name": "night/b.jpg"}
    (files / "a.json").write_text(json.dumps(content))
    tags = {"night/b.jpg": ["night", "rain"], str(first["id"]): ["rain"], "c": ["x"], "d": []}
    (files / "tags.json").write_text(json.dumps(tags))
    options = ("--report", "out", "--resamples", 0, "--score-threshold", 0.2, "--slices", rule)
    assert evaluated(files, *options) == 0
    tables = {
        name: list(csv.DictReader((files / "out" / f"{name}.csv").open()))
        for name in ("at_score", "confusion", "slices")
    }
    expected = {
        "size": {"longer side up to 1024": len(images)},
        "folder": {".": len(images) - 1, "night": 1},
        "tags.json": {"untagged": len(images) - 2, "night": 1, "rain": 2},
    }
    assert {row["slice"]: int(row["images"]) for row in tables["slices"]} == expected[rule]
    ap = [float(row["AP"]) for row in tables["slices"] if row["AP"]]
    assert ap == sorted(ap)
    assert tables["slices"][0]["AP_low"] == ""
    told = "note: 2 names in tags.json are of no image, as 'c'"
    assert (told in capsys.readouterr().out) == (rule == "tags.json")
    pooled, background = tables["at_score"][0], tables["confusion"][-1]
    assert (pooled["class"], pooled["score"]) == ("all", "0.2")
    assert background["(annotated)"] == "(background)"

    (files / "tags.json").write_text('{"b.jpg": "night"}')
    assert evaluated(files, "--report", "out", "--slices", "tags.json") == 1
    assert capsys.readouterr().err.startswith("error: tags.json: b.jpg is 'night'; it must be")


def test_other_evaluators_read_what_the_report_writes(files: Path) -> None:
    """And `compare` reads reports of before, which had no more than ids."""
    coco = pytest.importorskip("pycocotools.coco")
    assert evaluated(files, "--report", files / "new", "--resamples", 0) == 0
    path = files / "new" / "annotations.json"
    content = json.loads(path.read_text())
    assert all(
        image == {"id": image["id"], "height": 480, "width": 640, "file_name": f"{image['id']}.jpg"}
        for image in content["images"]
    )
    loaded = coco.COCO(str(path)).loadRes(str(files / "new" / "detections.json"))
    assert len(loaded.anns) == len(json.loads((files / "p.json").read_text()))

    (files / "old").mkdir()
    del content["info"]
    content["images"] = [{"id": image["id"]} for image in content["images"]]
    (files / "old" / "annotations.json").write_text(json.dumps(content))
    (files / "new" / "detections.json").rename(files / "old" / "detections.json")
    assert evaluated(files, "--report", files / "new", "--resamples", 0) == 0
    words = ["compare", files / "old", files / "new", "--resamples", 10]
    assert harmonic_jax.__main__.main([str(word) for word in words]) == 0


def test_of_a_run(tmp_path: Path, capsys, monkeypatch) -> None:
    """With a folder of its own; what the data do not have is refused before the evaluation."""
    run = write_run(tmp_path / "run", run_config())
    root = write_coco(tmp_path / "data", "valid")
    words = [str(run), "--format", "coco", "--root", str(root), "--split", "valid"]
    assert evaluate.main([*words, "--report", str(tmp_path / "report"), "--resamples", "0"]) == 0
    images = json.loads((tmp_path / "report" / "annotations.json").read_text())["images"]
    assert images[1] == {"id": 1, "height": 40, "width": 60, "file_name": "1.png"}
    assert evaluate.main([*words, "--max-detections", "7", "--classes", "b", "a"]) == 0
    assert evaluate.main([*words, "--classes", "a", "b", "--max-detections", "7"]) == 0
    folders = sorted(path for path in run.iterdir() if path.name.startswith("eval_"))
    assert [path.name.count("_params_") for path in folders] == [0, 1]
    plain, other = (json.loads((path / "metrics.json").read_text()) for path in folders)
    assert "AR_100" in plain
    assert "AP/c" in plain
    assert "AR_7" in other
    assert "AP/c" not in other
    capsys.readouterr()
    monkeypatch.setattr("harmonic_jax.training.evaluation.detect_all", lambda: pytest.fail("ran"))
    assert evaluate.main([*words, "--classes", "dog"]) == 1
    error = capsys.readouterr().err
    assert error == "error: params.classes is ['dog']; it must be some of ['a', 'b', 'c']\n"


def test_lvis_is_evaluated_by_its_own_protocol(tmp_path: Path, capsys) -> None:
    """A run and the files of its report alike; `convert` and the report keep what says so."""
    run = write_run(tmp_path / "run", run_config())
    root = write_coco(tmp_path / "data", "valid")
    path = root / "annotations" / "instances_valid.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [3]}
        image["coco_url"] = f"http://images.org/valid/{image.pop('file_name')}"
    for category, group in zip(content["categories"], "rcf", strict=True):
        category["frequency"] = group
    path.rename(root / "annotations" / "lvis_v1_val.json").write_text(json.dumps(content))
    words = [str(run), "--format", "coco", "--root", str(root), "--split", "lvis_v1_val"]
    report, told = tmp_path / "report", "federated annotations: the protocol is LVIS's"
    options = ["--report", str(report), "--resamples", "0", "--json"]
    assert evaluate.main([*words, *options, str(tmp_path / "of_run.json")]) == 0
    assert told in capsys.readouterr().out
    pair = [
        "--predictions",
        report / "detections.json",
        "--annotations",
        report / "annotations.json",
    ]
    words = [str(word) for word in (*pair, "--json", tmp_path / "of_files.json")]
    assert evaluate.main(words) == 0
    assert told in capsys.readouterr().out
    numbers = json.loads((tmp_path / "of_run.json").read_text())
    assert numbers == json.loads((tmp_path / "of_files.json").read_text())
    assert {"AP_r", "AP_c", "AP_f", "AR_300"} < numbers.keys()
    words = ["convert", f"coco:{root}", "--to", "coco", "--out", str(tmp_path / "new")]
    assert harmonic_jax.__main__.main(words) == 0
    new = json.loads((tmp_path / "new" / "annotations" / "instances_lvis_v1_val.json").read_text())
    assert new["images"][0]["neg_category_ids"] == [2]
    assert [category["frequency"] for category in new["categories"]] == ["r", "c", "f"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--iou-thresholds .9 .5", "params.iou_thresholds is (0.9, 0.5); it must be rising"),
        ("--iou-thresholds 1.5", "params.iou_thresholds is (1.5,); it must be"),
        ("--max-detections 0", "params.max_detections is (0,); it must be"),
        ("--area-ranges tiny 9 1", "params.area_ranges is (('tiny', 9.0, 1.0),); it must be"),
        ("--area-ranges tiny 9", "--area-ranges"),
    ],
)
def test_bad_values_are_told_in_a_line(words: str, told: str, capsys) -> None:
    assert evaluate.main(["RUN", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1


def test_slices_of_images_whose_ids_are_texts(files: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(files)
    for name in ("a.json", "p.json"):
        content = json.loads((files / name).read_text())
        for entry in content if name == "p.json" else content["annotations"]:
            entry["image_id"] = f"i{entry['image_id']}"
        if name == "a.json":
            for number, image in enumerate(content["images"]):
                image |= {"id": f"i{image['id']}", "file_name": f"f{number % 2}\\{number}.jpg"}
            first, second = (image["id"] for image in content["images"][:2])
            number = len(content["images"])
        (files / name).write_text(json.dumps(content))
    (files / "tags.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({first: ["night"], second: ["night"]}).encode()
    )
    for rule, expected in (
        ("tags.json", {"night": 2, "untagged": number - 2}),
        ("folder", {"f0": (number + 1) // 2, "f1": number // 2}),
    ):
        assert evaluated(files, "--report", rule[:3], "--resamples", 0, "--slices", rule) == 0
        rows = csv.DictReader((files / rule[:3] / "slices.csv").open())
        assert {row["slice"]: int(row["images"]) for row in rows} == expected
    assert "are of no image" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "tags.json is []; it must be {image: [tag, ..], ..}"),
        ('{"a": "night"}', "tags.json: a is 'night'; it must be {image: [tag, ..], ..}"),
        ('{"a": [3]}', "tags.json: a is [3]; it must be {image: [tag, ..], ..}"),
        ('{"a": ["x"], "a": ["y"]}', "tags.json: 'a' is there twice in one object"),
        ("{", "tags.json is not JSON"),
    ],
)
def test_a_file_of_slices_is_refused_in_a_line(files, monkeypatch, capsys, content, told) -> None:
    monkeypatch.chdir(files)
    (files / "tags.json").write_text(content)
    assert evaluated(files, "--report", "out", "--slices", "tags.json") == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (files / "out").exists()
