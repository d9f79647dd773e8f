"""Classes at one score, confusions and slices, against loops in float64 and pycocotools."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest

from harmonic_jax.metrics import GroundTruthTable, coco_metrics
from harmonic_jax.metrics.at_score import (
    class_table,
    confusion_table,
    largest_confusions,
    slice_table,
)
from harmonic_jax.metrics.consistency.sampling import bootstrap_weights
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.params import CocoParams
from tests.metrics.consistency import brute
from tests.metrics.synthetic import coco_dicts, index_for_pycocotools
from tests.metrics.test_coco import make_found, make_truth


def expected_row(
    scores: np.ndarray, is_true: np.ndarray, n: int, least: float
) -> tuple[int, int, float | None, float]:
    """TP, FP, best score and best F1, every threshold tried."""
    kept = scores >= least
    best = (0.0, None)
    for s in sorted(set(scores.tolist()), reverse=True):
        tp, fp = is_true[scores >= s].sum(), (~is_true)[scores >= s].sum()
        f1 = 2 * tp / (2 * tp + fp + n - tp)
        best = (f1, s) if f1 > best[0] else best
    return int(is_true[kept].sum()), int((~is_true)[kept].sum()), best[1], best[0]


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(12))
def test_the_class_table_is_its_definition(seed: int, iou: float) -> None:
    truth, found = brute.case(seed)
    true, false = brute.greedy(truth, found, iou, "all")
    rows = {row["class"]: row for row in class_table(truth, found, score=0.5, iou=iou)}
    counted = brute.is_counted(truth, "all")
    for k, name in enumerate(("all", *truth.class_names), start=-1):
        boxes = [d for d in [*true, *false] if k < 0 or found.labels[d] == k]
        n = int((counted & ((truth.labels == k) | (k < 0))).sum())
        assert (name in rows) == bool(boxes or n or k < 0)
        if name not in rows:
            continue
        is_true = np.array([d in true for d in boxes], bool)
        tp, fp, best, f1 = expected_row(found.scores[boxes], is_true, n, 0.5)
        row = rows[name]
        assert (row["objects"], row["TP"], row["FP"], row["FN"]) == (n, tp, fp, n - tp)
        assert row["best_score"] == best
        assert (row["best_F1"] or 0.0) == pytest.approx(f1, abs=1e-15)
        assert row["precision"] == (tp / (tp + fp) if tp + fp else None)
        assert row["recall"] == (tp / n if n else None)
        assert row["F1"] == (2 * tp / (2 * tp + fp + n - tp) if n + fp else None)


def test_recall_and_precision_are_on_pycocotools_curves() -> None:
    """It keeps the score at which a recall is reached: there, and not above, it is."""
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth, found = brute.detector_case(3)
    annotations, results = coco_dicts(truth, found)
    index = index_for_pycocotools(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = cocoeval.COCOeval(index, index.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    curves = {key: evaluation.eval[key][0, ..., 0, 2] for key in ("precision", "recall", "scores")}
    for k, row in enumerate(class_table(truth, found, score=0.0)[1:]):
        assert row["recall"] == curves["recall"][k]
        for r in range(0, int(100 * row["recall"]), 7):
            least = curves["scores"][r, k]
            at, above = (
                class_table(truth, found, score=s)[1 + k] for s in (least, np.nextafter(least, 2.0))
            )
            assert at["recall"] >= r / 100 > (above["recall"] if r else -1)
            assert at["precision"] <= curves["precision"][r, k] + 1e-12


def pairs_by_iou(truth: GroundTruthTable, found: brute.DetectionTable, score: float) -> np.ndarray:
    """The confusion matrix by loops."""
    k = len(truth.class_names)
    counts = np.zeros((k + 1, k + 1), int)
    ignored = truth.is_crowd | truth.is_difficult
    for image in truth.image_ids:
        kept = [
            d
            for label in range(k)
            for d in brute.ranked(found, image, label)[:100]
            if found.scores[d] >= score
        ]
        objects = np.flatnonzero(truth.image_id == image).tolist()
        ious = {(d, g): brute.overlap(truth, found, g, d) for d in kept for g in objects}
        near = [pair for pair, iou in ious.items() if iou >= 0.5]
        used: set[tuple[str, int]] = set()
        for d, g in sorted(near, key=lambda p: (-ious[p], -found.scores[p[0]], p)):
            if not ignored[g] and not {("d", d), ("g", g)} & used:
                used |= {("d", d), ("g", g)}
                counts[truth.labels[g], found.labels[d]] += 1
        for d in kept:
            on_ignored = any(p[0] == d and ignored[p[1]] for p in near)
            counts[k, found.labels[d]] += ("d", d) not in used and not on_ignored
        for g in objects:
            counts[truth.labels[g], k] += ("g", g) not in used and not ignored[g]
    return counts


@pytest.mark.parametrize("seed", range(12))
def test_confusions_are_pairs_by_iou(seed: int) -> None:
    truth, found = brute.case(seed)
    rows = confusion_table(Study(truth, found), score=0.25)
    counts = np.array([[*row.values()][1:] for row in rows])
    assert np.array_equal(counts, pairs_by_iou(truth, found, 0.25))
    assert [row["(annotated)"] for row in rows] == [*truth.class_names, "(background)"]


def test_of_two_equal_boxes_the_surer_one_is_the_pair() -> None:
    names = {"class_names": ("cat", "dog"), "category_ids": (1, 2)}
    truth = make_truth([[0, 0, 10, 10]], labels=[1], **names)
    found = make_found([[0, 0, 10, 10]] * 2, [0.6, 0.7])
    found = dataclasses.replace(found, labels=[1, 0])
    rows = confusion_table(Study(truth, found))
    assert [[*row.values()][1:] for row in rows] == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert largest_confusions(rows) == ["1 of 1 dog detected as cat"]


def test_slices_are_evaluations_of_some_images() -> None:
    """With a resample, whose interval is one point: that of a data set with so many copies."""
    truth, found = brute.detector_case(1)
    slices = {"first": truth.image_ids[:9].tolist(), "rest": truth.image_ids[9:].tolist(), "": [-1]}
    rows = slice_table(Study(truth, found), slices, score=0.4, resamples=1)
    assert {row["slice"] for row in rows} == {"first", "rest"}
    assert rows[0]["AP"] < rows[1]["AP"]
    for row in rows:
        ids = slices[row["slice"]]
        part = CocoParams(image_ids=frozenset(ids)).select(truth, found)
        drawn = brute.copies(*part, bootstrap_weights(len(ids), 1, seed=0)[1])
        for end, tables in (("", part), ("_low", drawn), ("_high", drawn)):
            pooled, numbers = class_table(*tables, score=0.4)[0], coco_metrics(*tables)
            numbers |= {key: pooled[key] for key in ("recall", "F1")}
            for key in ("AP", "AP50", "AP75", "recall", "F1"):
                assert row[key + end] == pytest.approx(numbers[key], abs=1e-12), key
        assert row["images"] == len(ids)
        assert row["objects"] == int(brute.is_counted(part[0], "all").sum())
