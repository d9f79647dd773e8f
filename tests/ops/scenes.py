"""Boxes as detectors emit them, for tests and benchmarks."""

import numpy as np

IMAGE = (800, 1344)


def random_boxes(rng: np.random.Generator, n: int, image=IMAGE, smallest=16.0, largest=400.0):
    """Boxes of log-uniform sides anywhere in the image, [n 4] float32."""
    center = rng.random((n, 2)) * (image[1], image[0])
    sides = np.exp(rng.uniform(np.log(smallest), np.log(largest), (n, 2)))
    boxes = np.concatenate([center - sides / 2, center + sides / 2], axis=1)
    return np.clip(boxes, 0, (image[1], image[0]) * 2).astype(np.float32)


def uniform_scene(rng: np.random.Generator, n: int, num_classes: int):
    """Unrelated boxes, scores and labels: hardly anything is suppressed."""
    scores = rng.random(n, dtype=np.float32)
    return random_boxes(rng, n), scores, rng.integers(0, num_classes, n).astype(np.int32)


def clustered_scene(rng: np.random.Generator, n: int, num_classes: int, cluster: int = 25):
    """`cluster` jittered boxes of one label around each object, some objects found better."""
    num_objects = max(n // cluster, 1)
    objects = random_boxes(rng, num_objects)
    labels = rng.integers(0, num_classes, num_objects)
    strength = rng.beta(1, 3, num_objects)
    source = rng.integers(0, num_objects, n)
    sides = np.tile(objects[:, 2:] - objects[:, :2], 2)[source]
    boxes = np.clip(objects[source] + rng.normal(size=(n, 4)) * 0.08 * sides, 0, None)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    scores = 0.05 + 0.95 * strength[source] * rng.beta(3, 2, n)
    return (
        np.minimum(boxes, (IMAGE[1], IMAGE[0]) * 2).astype(np.float32),
        scores.astype(np.float32),
        labels[source].astype(np.int32),
    )
