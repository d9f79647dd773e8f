"""How often intervals of a difference of two detectors hold the true one, on simulated detectors.

    nice -n 10 python -m benchmarks.bootstrap_coverage [--draws 400]

Both detectors see the same images, some of which are hard for both. The true difference is that of
one very large data set; each draw is a small one, for which an interval is computed as `compare`
does, and once more for each of three ways to take images without repeats.
"""

import argparse

import numpy as np

from harmonic_jax.metrics.consistency.compare import compare_samples
from harmonic_jax.metrics.consistency.measures import (
    D_ECE_BINS,
    Rows,
    agreement,
    average_precisions,
    calibration_error,
    lrp_errors,
    objects_of_classes,
)
from harmonic_jax.metrics.consistency.sampling import OVERALL, Samples, bootstrap_weights
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

IMAGES = 100
RESAMPLES = 400
IMAGES_OF_TRUTH = 100_000
RECALL, SHARPNESS, NOISE = (0.8, 1.0), (3.0, 3.3), (0.9, 0.6)  # of the two detectors
SIDE = 64.0


def simulate(rng: np.random.Generator, num_images: int) -> list[Study]:
    """Two detectors on the same images, of one class."""
    hardness = rng.normal(0, 0.8, num_images)
    image = np.repeat(np.arange(num_images), 1 + rng.poisson(2, num_images))
    place = np.arange(len(image)) - np.searchsorted(image, image)  # within its image
    hard = hardness[image] + rng.normal(0, 0.8, len(image))  # for both detectors
    none = np.zeros(len(image), bool)
    truth = GroundTruthTable(
        image_ids=np.arange(num_images), image_id=image, boxes=_boxes(place, np.ones(len(image))),
        labels=np.zeros(len(image), int), is_crowd=none, is_difficult=none,
        area=np.full(len(image), SIDE**2), class_names=("object",), category_ids=(1,),
    )  # fmt: skip
    studies = []
    for recall, sharpness, noise in zip(RECALL, SHARPNESS, NOISE, strict=True):
        found = np.flatnonzero(rng.random(len(image)) < _logistic(2 * recall - hard))
        iou = rng.beta(np.exp(1.2 - 0.3 * hard[found]) * sharpness, sharpness)
        score = _logistic(4 * (iou - 0.5) - 0.5 * hard[found] + rng.normal(0, noise, len(found)))
        false = np.repeat(np.arange(num_images), rng.poisson(1.5 * np.exp(0.5 * hardness)))
        boxes = np.concatenate([_boxes(place[found], iou), _boxes(-1 - false % 3, 0 * false + 1.0)])
        scores = np.concatenate([score, rng.beta(1.2, 4, len(false))])
        labels = np.zeros(len(scores), int)
        ids = np.concatenate([image[found], false])
        studies.append(Study(truth, DetectionTable(ids, boxes, scores, labels)))
    return studies


def _boxes(place: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Of the object at each place the upper part that has this IoU with it."""
    left = 2 * SIDE * place
    return np.stack([left, 0 * left, left + SIDE, iou * SIDE], axis=1)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def numbers(case: Study, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of `compare`, each for every row of weights."""
    pairs, positives, zeros = case.pairs, case.positives, np.zeros(len(case.pairs), int)
    objects = objects_of_classes(case, positives.is_counted, weights)
    precision = average_precisions(case.matching, 0, objects, weights)
    of_iou = Rows(pairs.score, pairs.iou, pairs.image, zeros, 1)
    of_true = Rows(case.found.scores, positives.is_true, case.overlaps.image, zeros, 1)
    values = {
        "AP": precision.mean(axis=0),
        "AP50": precision[0],
        "oLRP": lrp_errors(case, positives, objects, weights)["oLRP"],
        "mean_gap": agreement(of_iou, weights)["mean_gap"],
        "D_ECE": calibration_error(of_true, weights, num_bins=D_ECE_BINS),
    }
    return {name: value[:, 0] for name, value in values.items()}


def resamples(num_images: int, number: int, *, seed: int) -> dict[str, np.ndarray]:
    """How often each image counts, int [1 + number, num_images], for each way to take images."""
    rng = np.random.default_rng(seed)
    drawn = bootstrap_weights(num_images, number, seed=seed)
    rank = rng.random(drawn.shape).argsort(axis=1)
    ways = {
        "n of n, with repeats (compare)": drawn,
        "the same without its repeats": drawn > 0,
        "4 of 5 images": rank < 0.8 * num_images,
        "half of the images": rank < 0.5 * num_images,
    }
    for weights in ways.values():
        weights[0] = 1
    return {name: weights.astype(np.int64) for name, weights in ways.items()}


def coverage(
    draws: int, *, num_images: int = IMAGES, number: int = RESAMPLES, truth_images: int
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The true differences, and of each way and number the share of intervals that hold it."""
    once = np.ones((1, truth_images), np.int64)
    a, b = (numbers(case, once) for case in simulate(np.random.default_rng(0), truth_images))
    true = {name: float(b[name][0] - a[name][0]) for name in a}
    held: dict[str, dict[str, float]] = {}
    for draw in range(1, draws + 1):
        ways = resamples(num_images, number, seed=draw)
        stacked = np.concatenate(list(ways.values()))
        values = [
            numbers(case, stacked) for case in simulate(np.random.default_rng(draw), num_images)
        ]
        for i, way in enumerate(ways):
            rows = slice(i * (1 + number), (i + 1) * (1 + number))
            sides = [
                [Samples({(OVERALL, ""): {n: v[rows] for n, v in side.items()}}, 1, number, draw)]
                for side in values
            ]
            for name, row in compare_samples(*sides)[OVERALL].items():
                low, high = row["interval"]
                shares = held.setdefault(way, dict.fromkeys(true, 0.0))
                shares[name] += (low <= true[name] <= high) / draws
    return true, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=400)
    draws = parser.parse_args().draws
    true, held = coverage(draws, truth_images=IMAGES_OF_TRUTH)
    print(f"{draws} draws of {IMAGES} images, {RESAMPLES} resamples each")
    print(f"{'true difference':32}" + "".join(f"{n} {v:+.4f}  " for n, v in true.items()))
    for way, shares in held.items():
        print(f"{way:32}" + "".join(f"{100 * share:8.1f} %" for share in shares.values()))


if __name__ == "__main__":
    main()
