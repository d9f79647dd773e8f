"""VOC average precision against a slow reference that follows the development kit box by box."""

import numpy as np
import pytest

from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.metrics.voc import voc_metrics


def devkit_average_precision(objects, detections, *, threshold, eleven_points):
    """AP of one class.

    Args:
      objects: {image: [((xmin, ymin, xmax, ymax), difficult), ..]}, inclusive pixels.
      detections: [(image, score, (xmin, ymin, xmax, ymax)), ..].
    """
    num_objects = sum(not difficult for image in objects.values() for _, difficult in image)
    if num_objects == 0:
        return -1.0
    detected = set()
    true, false, recall, precision = 0, 0, [], []
    for image, _, box in sorted(detections, key=lambda d: -d[1]):  # a stable sort
        largest, which = -np.inf, None
        for j, (other, _) in enumerate(objects.get(image, [])):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                both = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                both += (other[2] - other[0] + 1) * (other[3] - other[1] + 1)
                overlap = width * height / (both - width * height)
                if overlap > largest:
                    largest, which = overlap, j
        if largest < threshold:
            false += 1
        elif not objects[image][which][1]:
            if (image, which) in detected:
                false += 1
            else:
                true += 1
                detected.add((image, which))
        recall.append(true / num_objects)
        precision.append(true / (true + false) if true + false else 0.0)
    if eleven_points:
        points = [i / 10 for i in range(11)]
        reached = [[p for p, r in zip(precision, recall, strict=True) if r >= t] for t in points]
        return sum(max(values, default=0.0) for values in reached) / 11
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum(
        (recall[i] - recall[i - 1]) * precision[i]
        for i in range(1, len(recall))
        if recall[i] != recall[i - 1]
    )


def random_case(seed):
    """Integer boxes with inclusive pixels, objects close together, many equal scores."""
    rng = np.random.default_rng(seed)
    num_objects, num_found = int(rng.integers(0, 40)), int(rng.integers(0, 150))
    corner = rng.integers(1, 25, (num_objects, 2))
    boxes = np.hstack([corner, corner + rng.integers(0, 20, (num_objects, 2))])
    image = rng.integers(0, 5, num_objects)
    labels = rng.integers(0, 3, num_objects)
    difficult = rng.random(num_objects) < 0.25
    found_corner = rng.integers(1, 25, (num_found, 2))
    found_boxes = np.hstack([found_corner, found_corner + rng.integers(0, 20, (num_found, 2))])
    found_image, found_labels = rng.integers(0, 6, num_found), rng.integers(0, 4, num_found)
    if num_objects:
        near = np.flatnonzero(rng.random(num_found) < 0.7)
        source = rng.integers(0, num_objects, len(near))
        found_boxes[near] = boxes[source] + rng.integers(-2, 3, (len(near), 4))
        found_boxes[near, 2:] = np.maximum(found_boxes[near, 2:], found_boxes[near, :2])
        found_image[near], found_labels[near] = image[source], labels[source]
    scores = rng.integers(1, 30, num_found) / 30
    return (image, labels, boxes, difficult), (found_image, found_labels, found_boxes, scores)


def as_tables(truth, found, *, first_pixel):
    """`first_pixel` 1: VOC's inclusive pixels from 1 become x1 = xmin - 1, x2 = xmax."""
    image, labels, boxes, difficult = truth
    shift = np.array([first_pixel, first_pixel, 0, 0])
    truth_table = GroundTruthTable(
        image_ids=range(6),
        image_id=image,
        boxes=boxes - shift,
        labels=labels,
        is_crowd=np.zeros(len(labels), bool),
        is_difficult=difficult,
        area=np.ones(len(labels)),
        class_names=("cat", "dog", "owl", "eel"),
        category_ids=(1, 2, 3, 4),
    )
    found_image, found_labels, found_boxes, scores = found
    return truth_table, DetectionTable(found_image, found_boxes - shift, scores, found_labels)


@pytest.mark.parametrize("inclusive_pixels", [False, True])
@pytest.mark.parametrize("method", ["area", "11point"])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_equals_the_development_kit(method, threshold, inclusive_pixels):
    found_some = 0.0
    for seed in range(30):
        truth, found = random_case(seed)
        tables = as_tables(truth, found, first_pixel=0 if inclusive_pixels else 1)
        metrics = voc_metrics(
            *tables, iou_threshold=threshold, method=method, inclusive_pixels=inclusive_pixels
        )
        expected = {}
        for k, name in enumerate(("cat", "dog", "owl", "eel")):
            objects: dict = {}
            for i in np.flatnonzero(truth[1] == k):
                objects.setdefault(truth[0][i], []).append((truth[2][i].tolist(), truth[3][i]))
            detections = [
                (found[0][i], found[3][i], found[2][i].tolist())
                for i in np.flatnonzero(found[1] == k)
            ]
            expected[f"AP/{name}"] = devkit_average_precision(
                objects, detections, threshold=threshold, eleven_points=method == "11point"
            )
        defined = [value for value in expected.values() if value >= 0]
        expected["mAP"] = np.mean(defined) if defined else -1.0
        assert metrics == pytest.approx(expected, abs=1e-12), seed
        found_some = max(found_some, metrics["mAP"])
    assert found_some > 0.2


def one_image(boxes, **flags):
    rows = len(boxes)
    none = dict.fromkeys(("is_difficult", "is_crowd"), [False] * rows)
    columns = {"image_ids": [1], "image_id": [1] * rows, "boxes": boxes, "labels": [0] * rows}
    more = {"area": [1.0] * rows, "class_names": ("cat",), "category_ids": (1,)}
    return GroundTruthTable(**columns, **more, **(none | flags))


def detections(boxes, scores):
    return DetectionTable([1] * len(boxes), boxes, scores, [0] * len(boxes))


SAME, APART = [[0, 0, 10, 10], [0, 3, 10, 13]], [[0, 0, 10, 10], [20, 0, 30, 10]]
THRICE = detections([APART[0], APART[0], APART[1]], [0.9, 0.8, 0.7])
BESIDE, MIDDLE = [[0, 0, 10, 10], [10, 0, 20, 10]], detections([[5, 0, 15, 10]], [0.9])


@pytest.mark.parametrize(
    ("truth", "found", "threshold", "expected"),
    [
        # The object that is overlapped most counts, though it is taken: COCO would give the second
        # detection the one next to it.
        (one_image(SAME), detections([[0, 0, 10, 10], [0, 1, 10, 11]], [0.9, 0.8]), 0.5, 0.5),
        # Of equal overlaps the first object counts.
        (one_image(BESIDE, is_difficult=[True, False]), MIDDLE, 0.3, 0.0),
        (one_image(BESIDE, is_difficult=[False, True]), MIDDLE, 0.3, 1.0),
        # Detections of a difficult object count neither way.
        (one_image(APART, is_difficult=[True, False]), THRICE, 0.5, 1.0),
        (one_image(APART, is_crowd=[True, False]), THRICE, 0.5, 1.0),
        (one_image(APART), THRICE, 0.5, 0.5 + 0.5 * 2 / 3),
    ],
)
def test_rules_by_hand(truth, found, threshold, expected):
    assert voc_metrics(truth, found, iou_threshold=threshold)["mAP"] == pytest.approx(expected)


def test_options_are_checked():
    truth, found = one_image([[0, 0, 9, 9]]), detections([[0, 0, 9, 9]], [0.5])
    with pytest.raises(ValueError, match=r"iou_threshold is 0; it must be in \(0, 1\]"):
        voc_metrics(truth, found, iou_threshold=0)
    with pytest.raises(ValueError, match="method is '12point'; it must be 'area' or '11point'"):
        voc_metrics(truth, found, method="12point")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="detection 0 is of image 8"):
        voc_metrics(truth, DetectionTable([8], [[0, 0, 9, 9]], [0.5], [0]))
    with pytest.raises(ValueError, match="has label 1"):
        voc_metrics(truth, DetectionTable([1], [[0, 0, 9, 9]], [0.5], [1]))
