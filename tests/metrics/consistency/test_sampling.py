"""Every number against loops or COCO's evaluation, and every resample against copied images."""

import dataclasses

import numpy as np
import pytest

from harmonic_jax.metrics.coco import coco_metrics
from harmonic_jax.metrics.consistency.sampling import (
    Samples,
    affordable_resamples,
    bootstrap_weights,
    sample_metrics,
)
from harmonic_jax.metrics.consistency.study import AREA_NAMES, Study
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from tests.metrics.consistency import brute

PLACES = {"all": ("overall", "")} | {name: ("areas", name) for name in AREA_NAMES}


def samples_of(truth: GroundTruthTable, found: DetectionTable, **options: object) -> Samples:
    return sample_metrics(Study(truth, found), **({"resamples": 0, "seed": 0} | options))


def shown(samples: Samples, area: str, names: dict[str, float]) -> dict[str, float]:
    return {name: float(samples.values[PLACES[area]][name][0]) for name in names}


def test_calibration_equals_loops() -> None:
    for seed in range(12):
        truth, found = brute.case(seed)
        samples = samples_of(truth, found)
        for area in PLACES:
            expected = brute.calibration(truth, found, area)
            assert shown(samples, area, expected) == pytest.approx(expected, nan_ok=True), seed


def test_lrp_equals_loops() -> None:
    """With scores of which no two are equal: at equal ones the authors' code cuts between them."""
    for seed in range(12):
        truth, found = brute.case(seed)
        order = np.random.default_rng(seed).permutation(len(found.scores))
        found = dataclasses.replace(found, scores=order / (len(order) + 1))
        samples = samples_of(truth, found)
        for area in PLACES:
            expected = brute.lrp(truth, found, area)
            assert shown(samples, area, expected) == pytest.approx(expected, nan_ok=True), seed


def test_average_precision_is_cocos() -> None:
    for seed in range(15):
        truth, found = brute.case(seed)
        samples, coco = samples_of(truth, found), coco_metrics(truth, found)
        for area, suffix in zip(PLACES, ("", "_small", "_medium", "_large"), strict=True):
            ours = np.nan_to_num(samples.values[PLACES[area]]["AP"][0], nan=-1.0)
            assert ours == pytest.approx(coco[f"AP{suffix}"]), (seed, area)
            here = {name: column[0] for name, column in samples.values[PLACES[area]].items()}
            gain = here["AP_ranked_by_iou"] - here["AP"]
            assert here["AP_headroom"] == pytest.approx(gain, nan_ok=True), (seed, area)
        for name in ("AP50", "AP75"):
            ours = np.nan_to_num(samples.values["overall", ""][name][0], nan=-1.0)
            assert ours == pytest.approx(coco[name])
        for name in truth.class_names:
            ours = np.nan_to_num(samples.values["classes", name]["AP"][0], nan=-1.0)
            assert ours == pytest.approx(coco[f"AP/{name}"])


def test_a_resample_is_the_data_set_with_copied_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """All metrics at all places, boxes before NMS included; two resamples at a time, or one."""
    monkeypatch.setattr("harmonic_jax.metrics.consistency.measures._AT_ONCE", 300)
    for seed in range(2):
        truth, found = brute.detector_case(seed)
        _, raw = brute.detector_case(seed + 50)
        truth_raw = DetectionTable(raw.image_id, raw.boxes, raw.scores, raw.labels)
        samples = sample_metrics(Study(truth, found, truth_raw), resamples=3, seed=seed)
        weights = bootstrap_weights(len(truth.image_ids), 3, seed=seed)
        for b in range(1, 4):
            new_truth, new_found = brute.copies(truth, found, weights[b])
            _, new_raw = brute.copies(truth, truth_raw, weights[b])
            again = sample_metrics(Study(new_truth, new_found, new_raw), resamples=0, seed=0)
            for place, values in samples.values.items():
                ours = {name: column[b] for name, column in values.items()}
                expected = {name: column[0] for name, column in again.values[place].items()}
                assert ours == pytest.approx(expected, nan_ok=True, abs=1e-9), (seed, b, place)


def test_costly_metrics_take_fewer_resamples() -> None:
    assert affordable_resamples(1_000_000, 1000) == 100
    assert affordable_resamples(1_000_000, 20) == 20
    assert affordable_resamples(100, 1000) == 1000
