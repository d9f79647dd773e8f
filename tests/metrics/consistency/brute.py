"""The same definitions as slow loops over images and boxes; the tests compare with them."""

import dataclasses

import numpy as np
import pycocotools.mask

from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, box_sizes
from tests.metrics.synthetic import awkward_tables, detector_output

AREAS = {"all": (0, 1e10), "small": (0, 1024), "medium": (1024, 9216), "large": (9216, 1e10)}


def case(seed: int) -> tuple[GroundTruthTable, DetectionTable]:
    """An awkward case with difficult objects as well."""
    truth, found = awkward_tables(seed)
    difficult = np.random.default_rng(seed).random(len(truth.labels)) < 0.15
    return dataclasses.replace(truth, is_difficult=difficult), found


def overlap(truth: GroundTruthTable, found: DetectionTable, g: int, d: int) -> float:
    """IoU of an object and a detection, or the share of the detection inside a crowd region; of
    masks where there are any."""
    if truth.masks is not None and found.masks is not None:
        crowd = [int(truth.is_crowd[g])]
        return float(pycocotools.mask.iou([found.masks[d]], [truth.masks[g]], crowd)[0, 0])
    (x, y), (w, h) = found.boxes[d, :2], box_sizes(found)[d]
    (tx, ty), (tw, th) = truth.boxes[g, :2], box_sizes(truth)[g]
    width, height = min(x + w, tx + tw) - max(x, tx), min(y + h, ty + th) - max(y, ty)
    if width <= 0 or height <= 0:
        return 0.0
    union = w * h if truth.is_crowd[g] else w * h + tw * th - width * height
    return width * height / union


def area_of(found: DetectionTable, d: int) -> float:
    if found.masks is not None:
        return float(pycocotools.mask.area(found.masks[d]))
    return float(box_sizes(found)[d].prod())


def ranked(found: DetectionTable, image_id: int, label: int) -> list[int]:
    """Rows of an image and class, best first."""
    rows = np.flatnonzero((found.image_id == image_id) & (found.labels == label))
    return rows[np.argsort(-found.scores[rows], kind="stable")].tolist()


def objects_of(truth: GroundTruthTable, image_id: int, label: int) -> list[int]:
    return np.flatnonzero((truth.image_id == image_id) & (truth.labels == label)).tolist()


def groups(truth: GroundTruthTable) -> list[tuple[int, int]]:
    return [(i, k) for i in truth.image_ids.tolist() for k in range(len(truth.class_names))]


def is_counted(truth: GroundTruthTable, area: str) -> np.ndarray:
    """Which objects are to be found."""
    low, high = AREAS[area]
    return (truth.area >= low) & (truth.area <= high) & ~truth.is_crowd & ~truth.is_difficult


def best_pairs(truth: GroundTruthTable, found: DetectionTable) -> dict[int, tuple[float, int]]:
    """Of each detection that counts: the best IoU, and the object or -1."""
    result = {}
    for image, label in groups(truth):
        for d in ranked(found, image, label)[:100]:
            best, on_ignored = (0.0, -1), 0.0
            for g in objects_of(truth, image, label):
                iou = overlap(truth, found, g, d)
                if truth.is_crowd[g] or truth.is_difficult[g]:
                    on_ignored = max(on_ignored, iou)
                elif iou > best[0]:
                    best = (iou, g)
            if not (best[0] < 0.5 <= on_ignored):
                result[d] = best
    return result


def greedy(
    truth: GroundTruthTable, found: DetectionTable, threshold: float, area: str
) -> tuple[dict[int, tuple[int, float]], set[int]]:
    """True positives with object and IoU, and false positives, by COCO's rule."""
    low, high = AREAS[area]
    true, false = {}, set()
    counts = is_counted(truth, area)
    for image, label in groups(truth):
        taken = set()
        for d in ranked(found, image, label)[:100]:
            choice, best = None, (False, 0.0)
            for g in objects_of(truth, image, label):
                iou = overlap(truth, found, g, d)
                least = threshold if counts[g] else max(threshold, 0.5)
                if g in taken or iou <= 0 or iou < least:
                    continue
                if (counts[g], iou) >= best:
                    choice, best = g, (counts[g], iou)
            if choice is None:
                if low <= area_of(found, d) <= high:
                    false.add(d)
                continue
            if not truth.is_crowd[choice]:
                taken.add(choice)
            if counts[choice]:
                true[d] = (choice, best[1])
    return true, false


def detector_case(seed: int, **sizes: float) -> tuple[GroundTruthTable, DetectionTable]:
    """Like a detector's output on COCO, small; no two scores are equal."""
    defaults = {"num_images": 25, "num_classes": 4, "objects": 5, "detections": 20}
    truth, found = detector_output(seed, **(defaults | sizes))
    jitter = np.random.default_rng(seed).uniform(0, 1e-6, len(found.scores))
    return truth, dataclasses.replace(found, scores=np.clip(found.scores - jitter, 0, 1))


def copies(
    truth: GroundTruthTable, found: DetectionTable, counts: np.ndarray
) -> tuple[GroundTruthTable, DetectionTable]:
    """A data set in which each image is there so often, copies next to each other."""
    numbers = np.repeat(np.arange(len(counts)), counts)
    copy = np.concatenate([np.arange(c) for c in counts])
    new_ids = truth.image_ids[numbers] * 100 + copy

    def rows_of(table: GroundTruthTable | DetectionTable) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.flatnonzero(table.image_id == i) for i in truth.image_ids[numbers]]
        rows = np.concatenate(parts) if parts else np.zeros(0, int)
        return rows, np.repeat(new_ids, [len(part) for part in parts])

    rows, ids = rows_of(truth)
    columns = ("boxes", "labels", "is_crowd", "is_difficult", "area", "sizes")
    new_truth = dataclasses.replace(
        truth, image_ids=new_ids, image_id=ids, **{c: getattr(truth, c)[rows] for c in columns}
    )
    rows, ids = rows_of(found)
    columns = ("boxes", "scores", "labels", "sizes")
    return new_truth, DetectionTable(ids, **{c: getattr(found, c)[rows] for c in columns})


def errors(truth: GroundTruthTable, found: DetectionTable) -> dict[int, tuple[str, int]]:
    """TIDE's kind of every false positive at IoU .5, and its area range: that of the object for
    "class" and "location", else its own."""
    true, false = greedy(truth, found, 0.5, "all")
    taken = {g for g, _ in true.values()}
    counts = ~truth.is_crowd & ~truth.is_difficult
    result = {}
    for d in false:
        ious = {
            g: overlap(truth, found, g, d)
            for g in np.flatnonzero(counts & (truth.image_id == found.image_id[d])).tolist()
        }
        own = {g: iou for g, iou in ious.items() if truth.labels[g] == found.labels[d]}
        other = {g: iou for g, iou in ious.items() if g not in own}
        area = area_of(found, d)
        if 0.1 <= max(own.values(), default=0) <= 0.5:
            kind, area = "location", truth.area[max(own, key=lambda g: own[g])]
        elif max(other.values(), default=0) >= 0.5:
            kind, area = "class", truth.area[max(other, key=lambda g: other[g])]
        elif any(iou >= 0.5 and g in taken for g, iou in own.items()):
            kind = "duplicate"
        else:
            kind = "background" if max(ious.values(), default=0) <= 0.1 else "both"
        result[d] = kind, int(area > 1024) + int(area > 9216)
    return result


def bin_gaps(score: np.ndarray, quality: np.ndarray, num_bins: int) -> float:
    """Mean gap of bins of scores, bin by bin."""
    total = 0.0
    for j in range(num_bins):
        inside = (score > j / num_bins) & (score <= (j + 1) / num_bins) | ((j == 0) & (score == 0))
        if inside.any():
            total += inside.mean() * abs(score[inside].mean() - quality[inside].mean())
    return total


def calibration(truth: GroundTruthTable, found: DetectionTable, area: str) -> dict[str, float]:
    """LaECE and D-ECE."""
    laece = []
    true, false = greedy(truth, found, 0.0, area)
    counts = is_counted(truth, area)
    for k in range(len(truth.class_names)):
        rows = [d for d in [*true, *false] if found.labels[d] == k]
        if rows and (counts & (truth.labels == k)).any():
            quality = np.array([true[d][1] if d in true else 0.0 for d in rows])
            laece.append(bin_gaps(found.scores[rows], quality, 25))
    true, false = greedy(truth, found, 0.5, area)
    rows = [*true, *false]
    right = np.array([d in true for d in rows])
    d_ece = bin_gaps(found.scores[rows], right, 10) if rows else np.nan
    return {"LaECE": mean_of_defined(laece), "D_ECE": d_ece}


def lrp(truth: GroundTruthTable, found: DetectionTable, area: str) -> dict[str, float]:
    """Optimal LRP: every threshold tried, one class after the other."""
    true, false = greedy(truth, found, 0.5, area)
    counts = is_counted(truth, area)
    parts: dict[str, list[float]] = {name: [] for name in ("oLRP", "loc", "FP", "FN")}
    for k in range(len(truth.class_names)):
        n = int((counts & (truth.labels == k)).sum())
        if n == 0:
            continue
        losses = {d: 1 - true[d][1] for d in true if found.labels[d] == k}
        wrong = [d for d in false if found.labels[d] == k]
        best = (1.0, np.nan, np.nan, 1.0)
        for s in sorted({*found.scores[[*losses, *wrong]]}, reverse=True):
            loss = [losses[d] for d in losses if found.scores[d] >= s]
            fp, tp = sum(found.scores[d] >= s for d in wrong), len(loss)
            error = (sum(loss) / 0.5 + fp + n - tp) / (n + fp)
            if tp and (error < best[0] - 1e-12 or np.isnan(best[1])):
                best = (error, np.mean(loss), fp / (tp + fp), 1 - tp / n)
        for name, value in zip(parts, best, strict=True):
            parts[name].append(value)
    names = ("oLRP", "oLRP_loc", "oLRP_FP", "oLRP_FN")
    return {
        name: mean_of_defined(values) for name, values in zip(names, parts.values(), strict=True)
    }


def mean_of_defined(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else np.nan
