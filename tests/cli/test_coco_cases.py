"""Files in COCO's format that people had trouble with, by the commands that they would type."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.cli import check_data, evaluate
from tests.metrics.synthetic import pycocotools_metrics

Capture = pytest.CaptureFixture[str]

KINDS = "16-results-of-other-kinds"
MASKS = "17-mask-results-and-partly-masked-annotations"
HASHES = "21-image-ids-that-are-hashes"


def evaluated(
    predictions: Path, annotations: Path, capsys: Capture, tmp_path: Path, *more: object
) -> tuple[dict[str, float] | str, str]:
    """The numbers and all that was printed; of a command that fails its one line."""
    numbers = tmp_path / "numbers.json"
    args = ["--predictions", predictions, "--annotations", annotations, "--json", numbers, *more]
    status = evaluate.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    if status == 0:
        found = json.loads(numbers.read_text())
        del found["at_score"]
        return found, out + err
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


def test_every_folder_in_coco_s_layout_is_checked(cases: Path, capsys) -> None:
    """What is said of each is a matter of tests/data."""
    folders = sorted(path.parent for path in cases.rglob("annotations") if path.is_dir())
    assert len(folders) > 20
    for folder in folders:
        status, shown = checked(folder, capsys)
        assert status == ("error: " in shown), folder


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
    assert (status, "1 image, 2 objects" in shown) == (0, True)
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
    assert "--iou-type goes with --predictions, or with --report" in capsys.readouterr().err


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
