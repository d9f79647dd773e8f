"""Seeded ground truth and detections: like a detector's on COCO, or as awkward as can be.

The benchmark of the COCO evaluation uses the first kind, the tests both.
"""

import contextlib
import dataclasses
import io
from typing import Any

import numpy as np

from harmonic_jax.masks import RleTable, encode_masks, join_tables
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, box_sizes


def detector_output(
    seed: int, *, num_images: int, num_classes: int, objects: float, detections: float
) -> tuple[GroundTruthTable, DetectionTable]:
    """Tables with COCO's statistics: few classes an image, long-tailed counts, 1 % crowds.

    A bit less than half of the detections lie about some object, the better the higher the score;
    most have its class. The rest is clutter of low scores.

    Args:
      objects, detections: Mean number in an image.
    """
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, num_classes + 1) ** 0.8
    frequency /= frequency.sum()

    num_objects = rng.negative_binomial(0.9, 0.9 / (objects + 0.9), num_images)
    image = np.repeat(np.arange(num_images), num_objects)
    themes = rng.choice(num_classes, (num_images, 3), p=frequency)
    labels = themes[image, rng.integers(0, 3, len(image))]
    boxes = _boxes(rng, len(image))
    sizes = boxes[:, 2:] - boxes[:, :2]

    found_image = np.repeat(np.arange(num_images), rng.poisson(detections, num_images).clip(0, 100))
    source, is_near = _near_objects(rng, found_image, num_objects)
    jitter = rng.normal(0, 1, (len(source), 4)) * rng.uniform(0, 0.25, (len(source), 1))
    found_boxes = _boxes(rng, len(found_image))
    found_labels = rng.choice(num_classes, len(found_image), p=frequency)
    found_boxes[is_near] = boxes[source] + jitter * np.tile(sizes[source], 2)
    found_boxes = np.hstack(
        [
            np.minimum(found_boxes[:, :2], found_boxes[:, 2:]),
            np.maximum(found_boxes[:, :2], found_boxes[:, 2:]),
        ]
    )
    right_class = rng.random(len(source)) < 0.85
    found_labels[np.flatnonzero(is_near)[right_class]] = labels[source[right_class]]
    scores = rng.beta(1, 8, len(found_image))
    quality = 1 - np.abs(jitter).mean(axis=1)
    scores[is_near] = np.clip(quality * rng.beta(5, 3, len(source)), 0, 1)
    truth = GroundTruthTable(
        image_ids=np.arange(num_images) * 3 + 1,
        image_id=image * 3 + 1,
        boxes=boxes.astype(np.float32),
        labels=labels,
        is_crowd=rng.random(len(image)) < 0.01,
        is_difficult=np.zeros(len(image), bool),
        area=sizes.prod(axis=1) * rng.uniform(0.3, 1.0, len(image)),
        class_names=tuple(f"class {k}" for k in range(num_classes)),
        category_ids=tuple(range(1, num_classes + 1)),
    )
    return truth, DetectionTable(
        found_image * 3 + 1, found_boxes.astype(np.float32), scores.astype(np.float32), found_labels
    )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sizes = np.exp(rng.normal(4, 1.1, (count, 2)).clip(1.5, 6))
    corner = rng.uniform(0, 1, (count, 2)) * (640 - sizes).clip(0)
    return np.hstack([corner, corner + sizes])


def _near_objects(
    rng: np.random.Generator, image: np.ndarray, num_objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The object that each near detection is near to, and which detections are near ones."""
    is_near = (num_objects[image] > 0) & (rng.random(len(image)) < 0.45)
    near = image[is_near]
    first = np.cumsum(num_objects) - num_objects
    return first[near] + (rng.random(len(near)) * num_objects[near]).astype(int), is_near


def awkward_tables(seed: int) -> tuple[GroundTruthTable, DetectionTable]:
    """A small case where rules are settled by ties: boxes on a coarse grid, so that IoUs meet the
    thresholds exactly and equal each other, few different scores, repeated boxes, crowds, areas at
    the borders of the ranges and unlike the boxes', empty images and classes, rows in any order.
    Some seeds have no objects, no detections, or over 100 detections of one image and class.
    """
    rng = np.random.default_rng(seed)
    num_images, num_classes = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    num_objects = 0 if seed % 19 == 3 else int(rng.integers(1, 12 * num_images))
    num_found = 0 if seed % 23 == 5 else int(rng.integers(1, 40 * num_images))
    if seed % 10 == 7:
        num_images, num_classes, num_found = 2, 1, 400
    image_ids = rng.permutation(1000)[:num_images] + (2**40 if seed % 2 else -500)
    grid = float(rng.choice([0.01, 1.0, 8.0, 32.0]))
    image = rng.integers(0, num_images, num_objects)
    labels = rng.integers(0, max(1, num_classes - seed % 2), num_objects)
    boxes, sizes = _grid_boxes(rng, num_objects, grid)
    area = sizes.prod(axis=1)
    odd = rng.random(num_objects) < 0.4
    area[odd] = rng.choice([0, 1023.99, 1024, 1024.5, 9216, 9217, 1e10, 1e10 + 1], odd.sum())
    truth = GroundTruthTable(
        image_ids=image_ids,
        image_id=image_ids[image],
        boxes=boxes,
        labels=labels,
        is_crowd=rng.random(num_objects) < rng.choice([0.0, 0.1, 0.5]),
        is_difficult=np.zeros(num_objects, bool),
        area=area,
        class_names=tuple("abcd"[:num_classes]),
        category_ids=tuple(np.sort(rng.permutation(90)[:num_classes]).tolist()),
        sizes=sizes,
    )

    found_image = rng.integers(0, num_images, num_found)
    found_labels = rng.integers(0, num_classes, num_found)
    found_boxes, found_sizes = _grid_boxes(rng, num_found, grid)
    if num_objects:
        copies = np.flatnonzero(rng.random(num_found) < 0.6)
        source = rng.integers(0, num_objects, len(copies))
        found_image[copies], found_labels[copies] = image[source], labels[source]
        found_sizes[copies] = sizes[source] + grid * rng.integers(-2, 2, (len(copies), 2))
        found_boxes[copies, :2] = boxes[source, :2] + grid * rng.integers(-1, 2, (len(copies), 2))
        found_boxes[:, 2:] = found_boxes[:, :2] + found_sizes  # may be empty or inverted
    levels = int(rng.choice([1, 4, 1000]))
    return truth, DetectionTable(
        image_id=image_ids[found_image],
        boxes=found_boxes,
        scores=rng.integers(0, levels, num_found) / levels,
        labels=found_labels,
        sizes=found_sizes,
    )


def _grid_boxes(rng: np.random.Generator, count: int, grid: float) -> tuple[np.ndarray, np.ndarray]:
    corner = rng.integers(0, 6, (count, 2)) * grid
    sizes = rng.integers(1, 7, (count, 2)) * grid
    return np.hstack([corner, corner + sizes]), sizes


def awkward_masks(seed: int) -> tuple[GroundTruthTable, DetectionTable]:
    """The boxes of `awkward_tables` as pixels: IoUs that meet the thresholds and equal each other,
    empty masks, masks with holes, crowds, areas unlike the masks'; images of several sizes."""
    rng = np.random.default_rng(seed)
    truth, found = awkward_tables(seed)
    grid = float(np.gcd.reduce(np.rint(box_sizes(truth) * 100).astype(int), axis=None)) / 100 or 1.0
    sides = rng.integers(8, 13, (len(truth.image_ids), 2))

    def masks_of(table: GroundTruthTable | DetectionTable) -> RleTable:
        masks = []
        image = np.argsort(truth.image_ids)[
            np.searchsorted(np.sort(truth.image_ids), table.image_id)
        ]
        corners = np.hstack([table.boxes[:, :2], table.boxes[:, :2] + box_sizes(table)]) / grid
        for (x1, y1, x2, y2), size in zip(np.rint(corners).astype(int), sides[image], strict=True):
            pixels = np.zeros(size, bool)
            pixels[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
            pixels &= rng.random(size) < rng.choice([0.95, 1.0, 1.0, 1.0])
            masks.append(encode_masks(pixels[None]))
        return join_tables(masks)

    truth_masks, found_masks = masks_of(truth), masks_of(found)
    truth = dataclasses.replace(truth, boxes=truth_masks.boxes(), sizes=None, masks=truth_masks)
    boxes = found_masks.boxes()
    return truth, dataclasses.replace(found, boxes=boxes, sizes=None, masks=found_masks)


def coco_dicts(
    truth: GroundTruthTable, found: DetectionTable
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What pycocotools reads: an annotation dict and a list of results."""
    annotations = [
        {
            "id": row + 1,
            "image_id": int(truth.image_id[row]),
            "category_id": truth.category_ids[truth.labels[row]],
            "bbox": [*truth.boxes[row, :2].tolist(), *box_sizes(truth)[row].tolist()],
            "area": float(truth.area[row]),
            "iscrowd": int(truth.is_crowd[row]),
        }
        | _segmentation(truth.masks, row)
        for row in range(len(truth.labels))
    ]
    categories = [
        {"id": category, "name": name}
        for category, name in zip(truth.category_ids, truth.class_names, strict=True)
    ]
    results = [
        {
            "image_id": int(found.image_id[row]),
            "category_id": truth.category_ids[found.labels[row]],
            "bbox": [*found.boxes[row, :2].tolist(), *box_sizes(found)[row].tolist()],
            "score": float(found.scores[row]),
        }
        | _segmentation(found.masks, row)
        for row in range(len(found.labels))
    ]
    images = {int(image): {"id": int(image)} for image in truth.image_ids}
    for table in (truth, found):
        if table.masks is not None:
            for image, size in zip(table.image_id, table.masks.sizes.tolist(), strict=True):
                images[int(image)] |= {"height": size[0], "width": size[1]}
    return {
        "images": list(images.values()),
        "categories": categories,
        "annotations": annotations,
    }, results


def _segmentation(masks: RleTable | None, row: int) -> dict[str, Any]:
    return {} if masks is None else {"segmentation": dict(masks[row])}


def index_for_pycocotools(annotations: dict[str, Any]) -> Any:
    """pycocotools' COCO object of an annotation dict."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
    return truth


def pycocotools_metrics(
    annotations: Any, results: list[dict[str, Any]] | str, iou_type: str = "bbox"
) -> dict[str, float]:
    """The same numbers, by pycocotools.

    Of results with a box it takes the box's area, also for masks: leave the boxes out for "segm".

    Args:
      annotations: A dict, a file, or what `index_for_pycocotools` returns.
      results: A list of dicts, which are written into, or a file.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = index_for_pycocotools(annotations) if isinstance(annotations, dict) else annotations
    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(truth, str):
            truth = COCO(truth)
        if results:
            found = truth.loadRes(results)
        else:  # loadRes fails on an empty list
            found = index_for_pycocotools({**truth.dataset, "annotations": []})
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    names += ["AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"]
    metrics = dict(zip(names, map(float, evaluation.stats), strict=True))
    precision = evaluation.eval["precision"]  # thresholds, recalls, classes, areas, limits
    for k, category in enumerate(truth.loadCats(evaluation.params.catIds)):
        for name, values in (("AP", precision[:, :, k, 0, 2]), ("AP50", precision[0, :, k, 0, 2])):
            values = values[values > -1]
            metrics[f"{name}/{category['name']}"] = float(values.mean()) if values.size else -1.0
    return metrics
