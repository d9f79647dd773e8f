"""LVIS's federated protocol: the numbers of the `lvis` package, and rules told by hand.

The package needs NumPy alone of what it asks for: `pip install --no-deps lvis`.
"""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.coco_format.federated import Federation
from harmonic_jax.json_file import JsonFileError
from harmonic_jax.metrics import (
    CocoParams,
    DetectionTable,
    GroundTruthTable,
    coco_metrics,
    coco_metrics_of_files,
    concatenate_detections,
    format_table,
    load_coco_annotations,
    load_coco_results,
    save_coco_annotations,
)
from harmonic_jax.metrics.at_score import class_table, confusion_table
from harmonic_jax.metrics.consistency.report import consistency_report
from harmonic_jax.metrics.consistency.study import Study
from tests.metrics.synthetic import awkward_masks, awkward_tables, coco_dicts, detector_output

NAMES = {
    "AP": "AP", "AP50": "AP50", "AP75": "AP75",
    "AP_small": "APs", "AP_medium": "APm", "AP_large": "APl",
    "AP_r": "APr", "AP_c": "APc", "AP_f": "APf",
    "AR_300": "AR@300", "AR_small": "ARs@300", "AR_medium": "ARm@300", "AR_large": "ARl@300",
}  # fmt: skip


@pytest.fixture
def lvis(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(np, "float", float, raising=False)  # it is of the days of NumPy 1.18
    return pytest.importorskip("lvis", reason="the lvis package is the reference of LVIS's numbers")


def by_lvis(
    lvis: Any, path: Path, results: list[dict[str, Any]], kind: str, limit: int = 300
) -> dict[str, float]:
    """Its numbers, and each class's AP, under our names."""
    truth = lvis.LVIS(str(path))
    found = lvis.LVISResults(truth, copy.deepcopy(results), max_dets=limit)
    evaluation = lvis.LVISEval(truth, found, kind)
    evaluation.run()
    numbers = {ours: float(evaluation.results[theirs]) for ours, theirs in NAMES.items()}
    for k, category in enumerate(evaluation.params.cat_ids):
        for name, rows in (("AP", slice(None)), ("AP50", slice(1))):
            values = evaluation.eval["precision"][rows, :, k, 0]
            values = values[values > -1]
            key = f"{name}/{truth.cats[category]['name']}"
            numbers[key] = float(values.mean()) if values.size else -1.0
    return numbers


def federated(content: dict[str, Any], seed: int) -> dict[str, Any]:
    """An annotation dict with lists of some classes of every image, and ignored objects."""
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in content["categories"]]
    there = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    share = rng.choice([0.0, 0.3, 0.9])  # seeds without any list of absent classes, too
    for image in content["images"]:
        absent = [k for k in ids if (image["id"], k) not in there and rng.random() < share]
        image |= {"neg_category_ids": absent}
        image |= {"not_exhaustive_category_ids": [k for k in ids if rng.random() < 0.2]}
    for category in content["categories"]:
        category["frequency"] = str(rng.choice(["r", "c", "f"]))
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
        annotation["area"] = annotation["area"] or 1.0  # the package leaves out those of 0
        if seed % 3 == 0 and rng.random() < 0.2:
            annotation["ignore"] = 1
    return content


def in_text(content: Any) -> Any:
    """With run lengths as texts."""
    return json.loads(json.dumps(content, default=lambda counts: counts.decode()))


def written(folder: Path, content: Any, results: Any) -> tuple[Path, Path]:
    paths = folder / "lvis_v1_val.json", folder / "found.json"
    for path, value in zip(paths, (content, results), strict=True):
        path.write_text(json.dumps(value))
    return paths


@pytest.mark.parametrize("limit", [300, 7])
@pytest.mark.parametrize(("make", "kind"), [(awkward_tables, "bbox"), (awkward_masks, "segm")])
def test_equals_lvis_on_awkward_cases(
    lvis: Any, tmp_path: Path, make: Any, kind: Any, limit: int
) -> None:
    """Ties within a class, between classes and at the limit, borders of areas, classes and images
    without objects, images with lists that are empty."""
    params = CocoParams() if limit == 300 else CocoParams(max_detections=(limit,))
    compared = 0
    for seed in range(30):
        truth, found = make(seed)
        if not len(found.labels) or (kind == "segm" and not len(truth.labels)):
            continue  # the package fails on an empty list, and we ask for masks
        no_crowds = dataclasses.replace(truth, is_crowd=np.zeros(len(truth.labels), bool))
        content, results = in_text(coco_dicts(no_crowds, found))
        content = federated(content, seed)
        for entry in results:
            if kind == "segm":
                del entry["bbox"]  # else the package takes the box's area for the mask's
        paths = written(tmp_path, content, results)
        expected = by_lvis(lvis, paths[0], results, kind, limit)
        expected[f"AR_{limit}"] = expected.pop("AR_300")
        ours = coco_metrics_of_files(*paths, iou_type=kind, params=params)
        assert ours == expected, seed
        compared += 0 < ours["AP"] < 1
        again = load_coco_annotations(paths[0], masks=kind == "segm")
        save_coco_annotations(tmp_path / "again.json", again)
        paths = tmp_path / "again.json", paths[1]
        assert coco_metrics_of_files(*paths, iou_type=kind, params=params) == expected, seed
    assert compared > 12


def test_equals_lvis_on_more_than_300_detections(lvis: Any, tmp_path: Path) -> None:
    """Of all classes, and the same numbers of a class where it alone is evaluated."""
    sizes = {"num_images": 9, "num_classes": 8, "objects": 9, "detections": 99}
    (truth, _), *others = (detector_output(seed, **sizes) for seed in range(5))
    found = concatenate_detections([truth_and_found[1] for truth_and_found in others])
    own = DetectionTable(truth.image_id, truth.boxes, np.ones(len(truth.labels)), truth.labels)
    found = concatenate_detections([found, own])
    scores = np.random.default_rng(0).random(len(found.labels))  # some objects come last
    found = dataclasses.replace(found, scores=scores)
    content, results = in_text(coco_dicts(truth, found))
    paths = written(tmp_path, federated(content, 1), results)
    assert np.bincount(found.image_id).max() > 300
    ours = coco_metrics_of_files(*paths)
    assert ours == by_lvis(lvis, paths[0], results, "bbox")
    assert 0.1 < ours["AP"] < 0.9
    longer = coco_metrics_of_files(*paths, params=CocoParams(max_detections=(100, 450)))
    assert longer["AR_100"] < ours["AR_300"] < longer["AR_450"]
    for name in truth.class_names:
        alone = coco_metrics_of_files(*paths, params=CocoParams(classes=frozenset({name})))
        assert alone[f"AP/{name}"] == ours[f"AP/{name}"], name


def content_of(**fields: Any) -> dict[str, Any]:
    """A dog in the first of two images; no cat in the second."""
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return {
        "images": [{"id": 1} | lists, {"id": 2} | lists | {"neg_category_ids": [9]}],
        "categories": [
            {"id": 4, "name": "dog", "frequency": "f"}, {"id": 9, "name": "cat", "frequency": "r"}
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 4, "bbox": [0, 0, 9, 9], "area": 81}
        ],
    } | fields  # fmt: skip


def found_in(image: int, category: int, score: float, x: int = 50) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [x, 0, 9, 9], "score": score}


def dog_ap(folder: Path, content: Any, *results: dict[str, Any]) -> float:
    """With a right detection of score .5."""
    paths = written(folder, content, [*results, found_in(1, 4, 0.5, x=0)])
    return coco_metrics_of_files(*paths)["AP/dog"]


def test_what_is_a_false_positive(tmp_path: Path) -> None:
    content = content_of()
    first, second = content["images"]
    assert dog_ap(tmp_path, content, found_in(2, 4, 0.9)) == pytest.approx(1)  # in neither list
    second["neg_category_ids"] = [4]
    assert dog_ap(tmp_path, content, found_in(2, 4, 0.9)) == pytest.approx(0.5)
    assert dog_ap(tmp_path, content, found_in(1, 4, 0.9)) == pytest.approx(0.5)
    first["not_exhaustive_category_ids"] = [4]
    assert dog_ap(tmp_path, content, found_in(1, 4, 0.9)) == pytest.approx(1)
    assert dog_ap(tmp_path, content, found_in(1, 4, 0.9, x=0)) == pytest.approx(1)  # a second one
    ranked_last = [found_in(1, 9, 0.9) for _ in range(300)]
    assert dog_ap(tmp_path, content, *ranked_last) == 0  # beyond the limit of all classes


def test_the_tables_of_text_and_at_one_score_follow(tmp_path: Path) -> None:
    """A class that no image has is no part of the means; one that nothing says is left out."""
    results = [
        found_in(1, 9, 0.9),
        found_in(2, 9, 0.9),
        found_in(2, 4, 0.9),
        found_in(1, 4, 0.8, 0),
    ]
    paths = written(tmp_path, content_of(), results)
    truth = load_coco_annotations(paths[0])
    found = load_coco_results(paths[1], truth)
    metrics = coco_metrics(truth, found)
    assert [metrics[f"AP_{group}"] for group in "rcf"] == [-1, -1, pytest.approx(1)]
    assert format_table(metrics).splitlines()[0].split()[-3:] == ["r", "c", "f"]
    rows = {row["class"]: (row["TP"], row["FP"]) for row in class_table(truth, found)}
    assert rows == {"all": (1, 1), "dog": (1, 0), "cat": (0, 1)}
    study = Study(truth, found)
    assert list(confusion_table(study)[-1].values()) == ["(background)", 0, 1, 0]
    assert (len(study.pairs), study.pairs.num_ignored) == (2, 2)


def test_frequencies_may_be_absent(tmp_path: Path) -> None:
    categories = [{"id": 4, "name": "dog"}, {"id": 9, "name": "cat"}]
    paths = written(tmp_path, content_of(categories=categories), [found_in(2, 4, 0.9)])
    metrics = coco_metrics_of_files(*paths)
    assert "AR_300" in metrics
    assert "AP_r" not in metrics


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"neg_category_ids": [4, 5]}, "image 2: neg_category_ids has 5; it must be a list"),
        ({"not_exhaustive_category_ids": ["4"]}, "image 2: not_exhaustive_category_ids has '4'; "),
        ({"neg_category_ids": None}, "image 2: neg_category_ids has None; it must be a list"),
        ({"neg_category_ids": [[]]}, r"image 2: neg_category_ids has \[\]; it must be a list"),
    ],
)
def test_wrong_lists_are_told_by_file_and_field(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    content = content_of()
    content["images"][1] |= change
    path, _ = written(tmp_path, content, [])
    with pytest.raises(JsonFileError, match=f"lvis_v1_val.json: {told}"):
        load_coco_annotations(path)
    del content["images"][1]["neg_category_ids"]
    path, _ = written(tmp_path, content, [])
    with pytest.raises(JsonFileError, match="image 2: neg_category_ids has None; "):
        load_coco_annotations(path)


@pytest.mark.parametrize("value", ["x", None, 1, []])
def test_a_wrong_frequency_is_told(tmp_path: Path, value: Any) -> None:
    content = content_of()
    content["categories"][1]["frequency"] = value
    path, _ = written(tmp_path, content, [])
    with pytest.raises(JsonFileError, match=r"category 9: frequency is .*; it must be r, c or f"):
        load_coco_annotations(path)


def test_the_best_ranking_has_the_limit_of_ap() -> None:
    """300 detections of an image, not COCO's 100 of each class: 150 found objects are all found."""
    corners = 10.0 * np.stack(np.divmod(np.arange(150), 15), axis=1)
    boxes = np.hstack([corners, corners + 8])
    rows = np.zeros(150, np.int64)
    truth = GroundTruthTable(
        image_ids=[0], image_id=rows, boxes=boxes, labels=rows, is_crowd=rows > 0,
        is_difficult=rows > 0, area=np.full(150, 64.0), class_names=("cat",), category_ids=(1,),
        federation=Federation(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64)),
    )  # fmt: skip
    found = DetectionTable(rows, boxes, np.linspace(0.9, 0.1, 150), rows)
    overall = consistency_report(truth, found, resamples=0)["overall"]
    names = ("AP", "AP_ranked_by_iou", "AP_headroom")
    assert [overall[name]["value"] for name in names] == [1.0, 1.0, 0.0]
