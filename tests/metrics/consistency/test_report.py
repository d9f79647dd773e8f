"""The report is JSON of what it says, tells why a number is missing, and reads well."""

import dataclasses
import json

import numpy as np
import pytest

from harmonic_jax.metrics.consistency import METRICS
from harmonic_jax.metrics.consistency.compare import compare_samples, format_comparison, sentence
from harmonic_jax.metrics.consistency.report import consistency_report, format_report
from harmonic_jax.metrics.consistency.sampling import Samples, sample_metrics
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from tests.metrics.consistency import brute
from tests.metrics.test_coco import make_found, make_truth

NONE = make_found([], [])


def noisy(found: DetectionTable, seed: int, sigma: float) -> DetectionTable:
    """The same boxes with scores that know less."""
    noise = np.random.default_rng(seed).normal(0, sigma, len(found.scores))
    return dataclasses.replace(found, scores=np.clip(found.scores + noise, 0, 1))


def samples_of(truth: GroundTruthTable, found: DetectionTable, resamples: int = 30) -> Samples:
    return sample_metrics(Study(truth, found), resamples=resamples, seed=3)


def test_every_number_is_there_with_its_interval() -> None:
    truth, found = brute.detector_case(0)
    report = consistency_report(truth, found, found, resamples=40, notes=["a word"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report["overall"]) == set(METRICS)
    samples = sample_metrics(Study(truth, found, found), resamples=40, seed=0)
    for name, entry in report["overall"].items():
        drawn = samples.values["overall", ""][name][1:]
        assert entry["interval"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
        assert entry["resamples"] == 40
    assert set(report["areas"]) == {"small", "medium", "large"}
    assert set(report["classes"]) == set(truth.class_names)
    assert set(report["classes"]["class 0"]) == set(METRICS)
    counts = report["counts"]
    total = counts["overall"][""]
    for section in ("areas", "classes"):
        for column in ("objects", "detections"):
            assert sum(n[column] for n in counts[section].values()) == total[column]
    assert report["settings"]["notes"] == ["a word"]


def test_lists_agree_with_the_numbers() -> None:
    """LaECE and D-ECE can be read off the reliability lists, AP off the precision curves."""
    truth, found = brute.detector_case(1)
    report = consistency_report(truth, found, resamples=0)
    for name in truth.class_names:
        bins, entries = report["reliability"][name], report["classes"][name]
        rows = [
            (n, s, u)
            for n, s, u in zip(bins["count"], bins["mean_score"], bins["mean_iou"], strict=True)
            if n
        ]
        laece = sum(n * abs(s - u) for n, s, u in rows) / sum(bins["count"])
        assert laece == pytest.approx(entries["LaECE"]["value"])
        for metric, key in (("AP50", "0.50"), ("AP75", "0.75")):
            curve = report["curves"]["precision"][name][key]
            assert np.mean(curve) == pytest.approx(entries[metric]["value"])
    counts = [report["reliability"][name]["count"] for name in ("all", *truth.class_names)]
    assert (np.array(counts[0]) == np.sum(counts[1:], axis=0)).all()
    curves = report["curves"]["precision"]["all"]
    assert np.mean(curves["0.50"]) == pytest.approx(report["overall"]["AP50"]["value"])
    assert np.mean(curves["0.75"]) == pytest.approx(report["overall"]["AP75"]["value"])


def test_a_class_called_all_does_not_replace_all_classes() -> None:
    truth, found = brute.detector_case(1)
    renamed = dataclasses.replace(truth, class_names=("x", "all", "y", "z"))
    reports = [consistency_report(t, found, resamples=0) for t in (truth, renamed)]
    for lists in (
        [r["reliability"]["all"] for r in reports],
        [r["curves"]["precision"]["all"] for r in reports],
    ):
        assert lists[0] == lists[1]
    assert reports[0]["classes"]["class 1"] == reports[1]["classes"]["all"]


ONE, NO_OBJECTS = make_truth([[0, 0, 9, 9]]), make_truth([])
TWO_BOXES = [[0, 0, 9, 9], [0, 0, 9, 5]]


@pytest.mark.parametrize(
    ("truth", "found", "reasons"),
    [
        (NO_OBJECTS, NONE, {"AP": "no object", "pearson": "no detections", "D_ECE": "no det"}),
        (make_truth([], image_ids=[]), NONE, {"AP": "no object", "mean_gap": "no detections"}),
        (ONE, NONE, {"oLRP_loc": "no true positive", "mean_gap": "no detections"}),
        (
            ONE,
            make_found(TWO_BOXES, [0.4, 0.4]),
            {"pearson": "do not vary", "spearman": "do not vary", "high_score_low_iou": "no box"},
        ),
        (
            NO_OBJECTS,
            make_found([[0, 0, 9, 9]], [0.5]),
            {"oLRP": "no object", "dAP_class": "no object", "LaECE": "no class has both"},
        ),
        (
            ONE,
            make_found(TWO_BOXES, [4.0, -2.0]),
            {"mean_gap": "not all in [0, 1]", "LaECE": "not all in [0, 1]"},
        ),
    ],
)
def test_what_is_missing_says_why(
    truth: GroundTruthTable, found: DetectionTable, reasons: dict[str, str]
) -> None:
    report = consistency_report(truth, found, resamples=5)
    json.dumps(report, allow_nan=False)
    for name, words in reasons.items():
        entry = report["overall"][name]
        assert entry["value"] is entry["interval"] is None
        assert words in entry["reason"], name
    for here in (report["overall"], *report["areas"].values(), *report["classes"].values()):
        for name, entry in here.items():
            assert (entry["value"] is None) == ("reason" in entry), name
    text = format_report(report)
    assert "nan" not in text
    assert next(iter(reasons.values())) in text


def test_the_text_shows_every_metric_and_class() -> None:
    truth, found = brute.detector_case(0)
    text = format_report(consistency_report(truth, found, found, resamples=20, notes=["a word"]))
    for metric in METRICS.values():
        assert metric.title in text
    for name in (*truth.class_names, "small", "note: a word", "95 % interval"):
        assert name in text
    report = consistency_report(truth, found, resamples=5)
    assert "95 % interval over images, 5 resamples\n" in format_report(report)
    report["overall"]["AP"]["resamples"] = 3
    assert "5 resamples (3 for AP, Spearman" in format_report(report)
    assert "no intervals" in format_report(consistency_report(truth, found, resamples=0))


def test_better_scores_win_and_pairing_pays() -> None:
    truth, found = brute.detector_case(0, num_images=60)
    worse = noisy(found, 0, 0.3)
    a, b = samples_of(truth, worse, 100), samples_of(truth, found, 100)
    same = compare_samples([a], [a])
    assert all(row["difference"] in (0.0, None) for row in same["overall"].values())
    assert same["summary"]["compared"] > 15
    assert "0 differ significantly" in sentence(same)
    result = compare_samples([a], [b])
    row = result["overall"]["AP"]
    assert row["better"] == "b"
    assert row["difference"] == pytest.approx(row["b"] - row["a"])
    assert {"pearson", "AP", "mean_gap"} <= set(result["summary"]["better_b"])
    assert "AP" not in result["summary"]["better_a"]
    # The images that are hard for one are hard for the other.
    paired = row["interval"][1] - row["interval"][0]
    column = [side.values["overall", ""]["AP"][1:] for side in (a, b)]
    unpaired = np.percentile(column[1] - np.roll(column[0], 1), [2.5, 97.5])
    assert paired < 0.8 * (unpaired[1] - unpaired[0])
    swapped = compare_samples([b], [a])["overall"]
    assert swapped["mean_gap"]["better"] == swapped["AP"]["better"] == "a"
    text = format_comparison(result, names=("worse", "better"))
    assert "A: worse (1 run)" in text
    assert "B is better in: AP (+0." in text
    assert "another seed" in text
    json.dumps(result, allow_nan=False)


def test_several_runs_have_a_mean_and_a_spread() -> None:
    truth, found = brute.detector_case(0)
    runs = [samples_of(truth, noisy(found, seed, 0.2), 10) for seed in range(5)]
    result = compare_samples(runs[:3], runs[3:])
    row = result["overall"]["pearson"]
    of_runs = [float(run.values["overall", ""]["pearson"][0]) for run in runs[:3]]
    assert row["values_a"] == of_runs
    assert row["a"] == pytest.approx(np.mean(of_runs))
    assert row["spread_a"] == pytest.approx(np.std(of_runs, ddof=1))
    assert compare_samples(runs[:1], runs[1:2])["overall"]["pearson"]["spread_a"] is None
    assert "fewer than 5 runs" in sentence(result)
    assert "3 runs, mean ± standard deviation" in format_comparison(result)


def test_runs_drawn_anew_widen_the_interval() -> None:
    """Two runs that differ by far more than images do: the interval must know of it."""

    def fake(value: float) -> Samples:
        noise = np.random.default_rng(0).normal(0, 0.001, 401)
        return Samples({("overall", ""): {"AP": value + noise}}, 5, 400, 0)

    row = compare_samples([fake(0.30), fake(0.40)], [fake(0.36), fake(0.38)])["overall"]["AP"]
    assert row["significant"] is False
    assert row["interval"][0] < -0.02
    assert row["interval"][1] > 0.05
    row = compare_samples([fake(0.30)], [fake(0.36)])["overall"]["AP"]
    assert row["significant"] is True


def test_samples_that_do_not_belong_together_are_refused() -> None:
    truth, found = brute.detector_case(0)
    samples = samples_of(truth, found, 2)
    with pytest.raises(ValueError, match="1 runs on one side and 0"):
        compare_samples([samples], [])
    with pytest.raises(ValueError, match="other images, or with another seed"):
        compare_samples([samples], [dataclasses.replace(samples, seed=1)])
