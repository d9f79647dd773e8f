"""Files in COCO's format that people had trouble with, by the commands that they would type."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.cli import check_data, compare, evaluate
from tests.metrics.synthetic import pycocotools_metrics

Capture = pytest.CaptureFixture[str]

BY_BOX = "01-results-empty-segmentation"
ONE_NAME = "02-two-categories-one-name"
STUDIO = "04-label-studio-file-names"
FLAGS = "07-iscrowd-text-nan-float"
KINDS = "16-results-of-other-kinds"
MASKS = "17-mask-results-and-partly-masked-annotations"
HASHES = "21-image-ids-that-are-hashes"
NOT_THERE = ("there is 'images/ab12-part.jpg'", "dropped_with_image  1")
NAN = "annotations[0]: iscrowd is nan; it must be 0 or 1"
SAME_NAME = "2 categories are called 'helmet': here 'helmet (id 0)', 'helmet (id 1)'"
ZEROS = ("int", "float", "text", "null")


def evaluated(
    predictions: Path, annotations: Path, capsys: Capture, tmp_path: Path, *more: object
) -> tuple[dict[str, float] | str, str]:
    """The numbers and all that was printed; of a command that fails its one line."""
    numbers = tmp_path / "numbers.json"
    args = ["--predictions", predictions, "--annotations", annotations, "--json", numbers, *more]
    status = evaluate.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    if status == 0:
        return json.loads(numbers.read_text()), out + err
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    return err, err


def checked(folder: Path, capsys: Capture, *more: str) -> tuple[int, str]:
    status = check_data.main([f"coco:{folder}", *more])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out + err


def same_as_pycocotools(numbers: Any, truth: Path, found: Path, iou_type: str = "bbox") -> bool:
    expected = pycocotools_metrics(str(truth), json.loads(found.read_bytes()), iou_type)
    totals = {name: value for name, value in expected.items() if "/" not in name}
    return {name: numbers[name] for name in totals} == totals


@pytest.mark.parametrize(
    ("folder", "status", "said"),
    [
        ("03-cvat-images-subset-folder/data", 0, ("3 images, 3 objects", "no rule applied")),
        (f"{STUDIO}/images_prefix", 0, ("1 images, 1 objects",)),
        (f"{STUDIO}/windows", 0, ("1 images, 1 objects",)),
        (f"{STUDIO}/relative", 1, NOT_THERE),
        (f"{STUDIO}/project_id", 1, NOT_THERE),
        (f"{STUDIO}/absolute", 1, NOT_THERE),
        (f"{FLAGS}/data_int", 0, ("1 images, 2 objects", "no rule applied")),
        (f"{FLAGS}/data_float", 0, ("1 images, 2 objects", "no rule applied")),
        (f"{FLAGS}/data_text", 0, ("1 images, 2 objects", "no rule applied")),
        (f"{FLAGS}/data_null", 0, ("1 images, 2 objects", "no rule applied")),
        (f"{FLAGS}/data_nan", None, ("malformed_object  2", f"a.jpg: {NAN}")),
        (
            f"{FLAGS}/pylabel",
            None,
            ("unknown_class  2", "a.jpg: annotations[0]: category_id is '1'"),
        ),
        ("10-macos-dot-underscore/coco", 0, ("== coco:coco:train", "no rule applied")),
        (f"{HASHES}/data", 0, ("4 images, 4 objects",)),
        (f"{ONE_NAME}/data", 0, (SAME_NAME,)),
    ],
)
def test_data_are_checked(
    cases: Path, folder: str, status: int | None, said: tuple[str, ...], capsys
) -> None:
    found, shown = checked(cases / folder, capsys)
    assert status is None or found == status
    for words in said:
        assert words in shown


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        (f"{BY_BOX}/plain.json", f"{BY_BOX}/gt.json", None),
        (f"{BY_BOX}/sahi.json", f"{BY_BOX}/gt.json", None),
        (f"{BY_BOX}/null.json", f"{BY_BOX}/gt.json", None),
        (
            f"{ONE_NAME}/res.json",
            f"{ONE_NAME}/data/annotations/instances_valid.json",
            {"AP/helmet (id 0)": -1, "AP/helmet (id 1)": 1},
        ),
        *(
            (f"{FLAGS}/res.json", f"{FLAGS}/{place}", {"AP": 1})
            for place in (
                *(f"data_{kind}/annotations/instances_train.json" for kind in ZEROS),
                "pylabel2.json",
            )
        ),
    ],
)
def test_results_are_evaluated(
    cases: Path, found: str, truth: str, expected: dict[str, float] | None, capsys, tmp_path
) -> None:
    numbers, shown = evaluated(cases / found, cases / truth, capsys, tmp_path)
    assert "mask" not in shown
    if expected is None or ONE_NAME in found:  # an empty segmentation is none
        oracle = cases / (found if expected else f"{BY_BOX}/plain.json")
        assert same_as_pycocotools(numbers, cases / truth, oracle)
    for name, value in (expected or {}).items():
        assert numbers[name] == pytest.approx(value)


def test_flags_that_say_nothing_are_named(cases: Path, capsys, tmp_path) -> None:
    annotations = cases / FLAGS / "data_nan" / "annotations" / "instances_train.json"
    line, _ = evaluated(cases / FLAGS / "res.json", annotations, capsys, tmp_path)
    assert NAN in line


READ = {"ok", "bom", "utf16", "float_ids", "mask_only", "mask_only_bbox_empty"}


def test_results_of_other_kinds_are_read_or_named(cases: Path, capsys, tmp_path) -> None:
    folder = cases / KINDS
    for path in sorted((folder / "results").iterdir()):
        numbers, shown = evaluated(path, folder / "gt.json", capsys, tmp_path)
        assert isinstance(numbers, dict) == (path.stem in READ), path
        assert ("mask_AP" in numbers) == (path.stem.startswith("mask_only")), path
        if path.stem not in READ:
            assert str(path) in shown
    expected = evaluated(folder / "results" / "ok.json", folder / "gt.json", capsys, tmp_path)
    for name in ("bom", "utf16"):
        path = folder / "results" / f"{name}.json"
        assert evaluated(path, folder / "gt.json", capsys, tmp_path)[0] == expected[0]


def test_annotations_of_other_kinds_are_read_or_named(cases: Path, capsys, tmp_path) -> None:
    """By both readers: what one takes for an annotation file, the other does as well."""
    results = cases / KINDS / "results" / "ok.json"
    root = tmp_path / "data"
    (root / "annotations").mkdir(parents=True)
    for path in sorted((cases / KINDS / "ann").iterdir()):
        numbers, shown = evaluated(results, path, capsys, tmp_path)
        shutil.copy(path, root / "annotations" / "instances_train.json")
        status, said = checked(root, capsys)
        assert status == 1
        if isinstance(numbers, str) and f"{path}: annotations" not in shown:
            structural = "categor" in shown or "must hold" in shown or "nested" in shown
            refused = said.replace("error: no usable image", "")
            assert ("error: " in refused) == structural, path


@pytest.mark.parametrize(
    "name",
    ["empty_list", "flat", "four_numbers", "one_point", "pairs", "rle_wrong_size"],
)
def test_an_annotation_without_a_mask_does_not_cost_the_boxes(
    cases: Path, name: str, capsys, tmp_path
) -> None:
    folder = cases / MASKS
    truth = folder / f"{name}.json"
    said = f"{truth}: annotations[1] has no usable mask"
    for results in ("res.json", "res_nobox.json"):
        numbers, shown = evaluated(folder / results, truth, capsys, tmp_path)
        assert numbers["AP"] == pytest.approx(0.95)
        assert "mask_AP" not in numbers
        assert f"masks are left out: {said}" in shown
    assert same_as_pycocotools(
        evaluated(folder / "res.json", truth, capsys, tmp_path)[0], truth, folder / "res.json"
    )
    more = ["--iou-type", "bbox"]
    boxes, shown = evaluated(folder / "res.json", truth, capsys, tmp_path, *more)
    assert boxes["AP"] == pytest.approx(0.95)
    assert "mask" not in shown
    line, _ = evaluated(folder / "res.json", truth, capsys, tmp_path, "--iou-type", "segm")
    assert said in line
    status, shown = checked(folder / f"data_{name}", capsys, "--masks", "--no-decode")
    assert (status, "1 images, 2 objects" in shown) == (0, True)
    assert "mask unknown, box kept" in shown


@pytest.mark.parametrize("name", ["all_good", "rle_list", "crowd_polygon"])
def test_masks_alone(cases: Path, name: str, capsys, tmp_path) -> None:
    folder = cases / MASKS
    truth, found = folder / f"{name}.json", folder / "res_nobox.json"
    both, _ = evaluated(found, truth, capsys, tmp_path)
    alone, shown = evaluated(found, truth, capsys, tmp_path, "--iou-type", "segm")
    assert alone == {key: value for key, value in both.items() if key.startswith("mask_")}
    assert shown.startswith("masks\n")
    plain = {key.removeprefix("mask_"): value for key, value in alone.items()}
    assert same_as_pycocotools(plain, truth, found, "segm")


@pytest.mark.parametrize("iou_type", [None, "bbox", "segm"])
def test_no_results_at_all(cases: Path, iou_type: str | None, capsys, tmp_path) -> None:
    (tmp_path / "none.json").write_text("[]")
    more = [] if iou_type is None else ["--iou-type", iou_type]
    truth = cases / KINDS / "gt.json"
    numbers, _ = evaluated(tmp_path / "none.json", truth, capsys, tmp_path, *more)
    name = "mask_AP" if iou_type == "segm" else "AP"
    assert {key: numbers[key] for key in numbers if key in ("AP", "mask_AP")} == {name: 0}


def test_iou_type_names_what_it_lacks(cases: Path, capsys, tmp_path) -> None:
    folder = cases / KINDS
    more = ["--iou-type", "segm"]
    ok = folder / "results" / "ok.json"
    line, _ = evaluated(ok, folder / "gt.json", capsys, tmp_path, *more)
    assert f"{ok}[0]: segmentation is None; it must be compressed run lengths" in line
    masks = folder / "results" / "masks_polygon.json"
    line, _ = evaluated(masks, folder / "gt.json", capsys, tmp_path)
    assert line.endswith("; --iou-type bbox evaluates the boxes alone\n")
    numbers, _ = evaluated(masks, folder / "gt.json", capsys, tmp_path, "--iou-type", "bbox")
    assert same_as_pycocotools(numbers, folder / "gt.json", masks)
    plain = tmp_path / "plain.json"
    content = json.loads((folder / "gt.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    plain.write_text(json.dumps(content))
    alone = folder / "results" / "mask_only.json"
    line, _ = evaluated(alone, plain, capsys, tmp_path, *more)
    assert f"{plain}: no annotation has a segmentation" in line
    assert evaluate.main(["runs/none", "--iou-type", "bbox"]) == 2
    assert "--iou-type goes with --predictions" in capsys.readouterr().err


def renumbered(truth: Path, found: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same files with the image ids 1, 2, ..: pycocotools puts others through a float64."""
    content, entries = json.loads(truth.read_text()), json.loads(found.read_text())
    ids = {image["id"]: i for i, image in enumerate(content["images"], start=1)}
    for image in content["images"]:
        image["id"] = ids[image["id"]]
    for entry in [*content["annotations"], *entries]:
        entry["image_id"] = ids[entry["image_id"]]
    for name, value in (("truth.json", content), ("found.json", entries)):
        (tmp_path / name).write_text(json.dumps(value))
    return tmp_path / "truth.json", tmp_path / "found.json"


def test_image_ids_that_are_hashes(cases: Path, capsys, tmp_path) -> None:
    folder = cases / HASHES
    train = folder / "data" / "annotations" / "instances_train.json"
    for results, truth in (
        ("res.json", train),
        ("res128.json", folder / "gt128.json"),
        ("res_text.json", folder / "gt_text.json"),
    ):
        numbers, _ = evaluated(folder / results, truth, capsys, tmp_path)
        assert numbers["AP"] == pytest.approx(1)
        assert same_as_pycocotools(numbers, *renumbered(truth, folder / results, tmp_path))
    line, _ = evaluated(folder / "res_text.json", folder / "gt128.json", capsys, tmp_path)
    assert "res_text.json[0]: image_id '0000000_02999_d_0000005' is not in the ground" in line


def test_a_report_holds_the_ids_of_the_data_set(cases: Path, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("harmonic_jax.cli.consistency.write_page", lambda *args, **more: [])
    folder = cases / HASHES
    more = ["--report", tmp_path / "report", "--resamples", 1]
    found, truth = folder / "res_text.json", folder / "gt_text.json"
    evaluated(found, truth, capsys, tmp_path, *more, "--raw-predictions", found)
    written = json.loads((tmp_path / "report" / "detections.json").read_text())
    assert {e["image_id"] for e in written} == {
        e["image_id"] for e in json.loads(found.read_text())
    }
    with np.load(tmp_path / "report" / "raw_boxes.npz") as columns:
        assert columns["image_id"].dtype == np.int64
    args = [tmp_path / "report", tmp_path / "report", "--resamples", 2]
    assert compare.main([str(arg) for arg in args]) == 0
    args = [found, tmp_path / "report" / "detections.json", "--annotations", truth]
    assert compare.main([str(arg) for arg in [*args, "--resamples", 2]]) == 0
