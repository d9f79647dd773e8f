"""COCO's evaluation with other settings: the numbers of pycocotools with the same `Params`."""

import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.checks import ConfigError
from harmonic_jax.metrics import (
    CocoParams,
    DetectionTable,
    GroundTruthTable,
    coco_metrics,
    coco_metrics_of_files,
    format_table,
    load_coco_annotations,
    save_coco_annotations,
    save_coco_results,
)
from tests.metrics.synthetic import (
    awkward_masks,
    awkward_tables,
    coco_dicts,
    detector_output,
    index_for_pycocotools,
)
from tests.metrics.test_coco import Tables, make_found, make_truth, perturbed

pytest.importorskip("pycocotools", reason="pycocotools is the reference of the COCO numbers")

LOW = CocoParams(
    iou_thresholds=(0.1, 0.5, 1.0),
    area_ranges=(("tiny", 0, 500), ("rest", 500, 1e10)),
    max_detections=(2, 7, 250),
)
ONE = CocoParams(iou_thresholds=(0.3,), area_ranges=(), max_detections=(3,))
MANY = CocoParams(  # more combinations than one integer has bits
    iou_thresholds=tuple(np.linspace(0.05, 0.95, 37).tolist()),
    area_ranges=(("all", 100, 5000), ("mid-1", 300, 1024), ("mid-2", 1024, 4000)),
    max_detections=(1, 10, 40, 100),
)


def by_pycocotools(
    truth: GroundTruthTable, found: DetectionTable, params: CocoParams, kind: str
) -> dict[str, float]:
    """From its curves: its summary knows no limits but 1, 10 and 100."""
    from pycocotools.cocoeval import COCOeval

    annotations, results = coco_dicts(truth, found)
    for entry in results:
        if kind == "segm":
            del entry["bbox"]  # else pycocotools takes the box's area for the mask's
    index = index_for_pycocotools(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        empty = {**annotations, "annotations": []}
        evaluation = COCOeval(
            index, index.loadRes(results) if results else index_for_pycocotools(empty), kind
        )
        settings = evaluation.params
        settings.iouThrs = np.array(params.iou_thresholds)
        settings.maxDets = list(params.max_detections)
        settings.areaRngLbl = list(params.ranges)
        settings.areaRng = [list(ends) for ends in params.ranges.values()]
        if params.classes is not None:
            pairs = zip(truth.class_names, truth.category_ids, strict=True)
            settings.catIds = [category for name, category in pairs if name in params.classes]
        if params.image_ids is not None:
            settings.imgIds = sorted(params.image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0

    sizes = list(enumerate(params.ranges))[1:]
    at = {0.5: "AP50", 0.75: "AP75"}
    rows = [(at[t], i) for i, t in enumerate(params.iou_thresholds) if t in at]
    metrics = {"AP": mean(precision[:, :, :, 0, -1])}
    metrics |= {name: mean(precision[i, :, :, 0, -1]) for name, i in rows}
    metrics |= {f"AP_{name}": mean(precision[:, :, :, a, -1]) for a, name in sizes}
    for m, limit in enumerate(params.max_detections):
        metrics[f"AR_{limit}"] = mean(recall[:, :, 0, m])
    metrics |= {f"AR_{name}": mean(recall[:, :, a, -1]) for a, name in sizes}
    for k, category in enumerate(index.loadCats(evaluation.params.catIds)):
        metrics[f"AP/{category['name']}"] = mean(precision[:, :, k, 0, -1])
        if "AP50" in metrics:
            metrics[f"AP50/{category['name']}"] = mean(precision[rows[0][1], :, k, 0, -1])
    return metrics


def check(truth: GroundTruthTable, found: DetectionTable, params: CocoParams, kind: Any) -> None:
    ours = coco_metrics(truth, found, params=params, iou_type=kind)
    expected = by_pycocotools(truth, found, params, kind)
    assert list(ours.items()) == list(expected.items())


@pytest.mark.parametrize("params", [CocoParams(), LOW, ONE, MANY], ids=["coco", "low", "1", "many"])
@pytest.mark.parametrize(("make", "kind"), [(awkward_tables, "bbox"), (awkward_masks, "segm")])
def test_equals_pycocotools_on_awkward_cases(
    make: Callable[[int], Tables], kind: str, params: CocoParams
) -> None:
    """Of all images and classes, then of some."""
    for seed in range(30):
        truth, found = make(seed)
        check(truth, found, params, kind)
        images = frozenset(truth.image_ids[::2].tolist())
        some = dataclasses.replace(params, classes=frozenset(truth.class_names[1:2] or "a"))
        check(truth, found, some, kind)
        check(truth, found, dataclasses.replace(some, image_ids=images), kind)


@pytest.mark.parametrize("params", [LOW, ONE, MANY])
def test_equals_pycocotools_on_a_detectors_output(params: CocoParams) -> None:
    truth, found = detector_output(0, num_images=40, num_classes=6, objects=7, detections=60)
    check(truth, found, params, "bbox")
    assert 0.1 < coco_metrics(truth, found, params=params)["AP"] < 0.9


@pytest.mark.parametrize("params", [LOW, MANY])
def test_equals_pycocotools_on_real_annotations(coco_tiny: Path, params: CocoParams) -> None:
    path = coco_tiny / "annotations" / "instances_val2017.json"
    truth = load_coco_annotations(path, masks=True)
    found = perturbed(truth)
    params = dataclasses.replace(
        params,
        classes=frozenset({"person", "chair", "car"}),
        image_ids=frozenset(truth.image_ids[:50].tolist()),
    )
    for kind in ("bbox", "segm"):
        check(truth, found, params, kind)
    assert 0.1 < coco_metrics(truth, found, params=params)["AP"] < 0.9


def test_files_take_the_same_settings(tmp_path: Path) -> None:
    truth, found = detector_output(1, num_images=20, num_classes=4, objects=7, detections=40)
    paths = tmp_path / "a.json", tmp_path / "p.json"
    save_coco_annotations(paths[0], truth)
    save_coco_results(paths[1], found, truth.category_ids)
    images = frozenset(truth.image_ids[:12].tolist())
    params = dataclasses.replace(LOW, classes=frozenset(truth.class_names[:3]), image_ids=images)
    ours = coco_metrics_of_files(*paths, params=params)
    assert list(ours.items()) == list(by_pycocotools(truth, found, params, "bbox").items())
    assert 0.1 < ours["AP"] < 0.9
    with pytest.raises(ConfigError, match=r"params\.classes"):
        coco_metrics_of_files(*paths, params=CocoParams(classes=frozenset({"x"})))


def test_no_number_is_lost_by_other_limits() -> None:
    """pycocotools' summary says -1 for all that needs a limit of 100."""
    boxes = [[0, 0, 20, 20], [50, 0, 100, 50]]
    truth, found = make_truth(boxes), make_found(boxes, [0.9, 0.8])
    metrics = coco_metrics(truth, found, params=CocoParams(max_detections=(1, 300)))
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AR_1"] == pytest.approx(0.5)
    assert metrics["AR_300"] == metrics["AR_small"] == pytest.approx(1.0)
    assert "AR_100" not in metrics


def test_images_by_the_ids_of_the_file() -> None:
    """Ids that are texts too; a detection of an unknown image is refused all the same."""
    boxes = [[0, 0, 20, 20], [50, 0, 100, 50]]
    truth = make_truth(
        boxes,
        image_ids=[1, 7],
        image_id=[1, 7],
        original_ids={7: "b"},
        image_sizes=[[9, 8], [5, 6]],
    )
    found = make_found(boxes[:1], [0.9])
    chosen, rest = CocoParams(image_ids=frozenset({"b"})).select(truth, found)
    assert chosen.image_ids.tolist() == chosen.image_id.tolist() == [7]
    assert chosen.boxes.tolist() == boxes[1:]
    assert chosen.image_sizes is not None
    assert chosen.image_sizes.tolist() == [[5, 6]]
    assert len(rest.labels) == 0
    both = dataclasses.replace(truth, original_ids={7: "1"})
    for wanted, row in ((1, 1), ("1", 7)):  # a text of digits and a number are two ids
        chosen, _ = CocoParams(image_ids=frozenset({wanted})).select(both, found)
        assert chosen.image_ids.tolist() == [row]
    unknown = dataclasses.replace(found, image_id=[3])
    with pytest.raises(ValueError, match="detection 0 is of image 3"):
        coco_metrics(truth, unknown, params=CocoParams(image_ids=frozenset({1})))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"iou_thresholds": (0.5, 0.0)}, r"params.iou_thresholds is \(0.5, 0.0\); .* in \(0, 1\]"),
        ({"iou_thresholds": ()}, r"params.iou_thresholds is \(\); it must be rising"),
        ({"iou_thresholds": (0.5, 0.5)}, "params.iou_thresholds .* rising"),
        ({"iou_thresholds": [0.5]}, r"params.iou_thresholds is \[0.5\]; it must be a tuple"),
        ({"max_detections": (10, 1)}, r"params.max_detections is \(10, 1\); it must be rising"),
        ({"max_detections": (0,)}, "params.max_detections .* whole number in"),
        ({"area_ranges": (("a", 9, 1),)}, r"params.area_ranges is \(\('a', 9, 1\),\)"),
        ({"area_ranges": (("100", 0, 9),)}, "params.area_ranges"),  # AR_100 is a limit
        ({"area_ranges": (("r", 0, 9),)}, "params.area_ranges .* not r, c, f"),  # LVIS's AP_r
        ({"area_ranges": (("a", 0, 9), ("a", 9, 99))}, "params.area_ranges .* of its own"),
        ({"area_ranges": tuple((f"a{i}", 0, 9) for i in range(20))}, "at most 19"),
        ({"classes": ("cell",)}, r"params.classes is \('cell',\); it must be a frozenset or None"),
        ({"classes": frozenset({"dog"})}, r"params.classes is \['dog'\]; .* some of \['cell'\]"),
        ({"classes": frozenset()}, "params.classes is .* some of"),
        ({"image_ids": frozenset({1, 4})}, r"params.image_ids is \[4\]; .* some of \[1\]"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], told: str) -> None:
    box = [[0.0, 0.0, 5.0, 5.0]]
    with pytest.raises(ConfigError, match=told):
        coco_metrics(make_truth(box), make_found(box, [0.5]), params=CocoParams(**values))


def test_the_table_of_text_follows_the_settings() -> None:
    boxes = [[0, 0, 20, 20]]
    params = CocoParams(
        iou_thresholds=(0.3,), area_ranges=(("very-large", 400, 1e9),), max_detections=(5, 1000)
    )
    metrics = coco_metrics(make_truth(boxes), make_found(boxes, [0.9]), params=params)
    lines = [line.split() for line in format_table(metrics).splitlines()]
    assert lines == [
        ["all", "very-large"], ["AP", "1.000", "1.000"],
        ["best", "5", "best", "1000", "very-large"], ["AR", "1.000", "1.000", "1.000"],
        [], ["class", "AP"], ["cell", "1.000"],
    ]  # fmt: skip
