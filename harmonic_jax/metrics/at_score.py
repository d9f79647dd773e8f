"""The detections that reach a score: how many are right, what is taken for what, and by slice.

Positives are COCO's (`match_detections`): in an image and class detections choose by
falling score, each the free object of the largest IoU, an ignored one (crowd, difficult) only where
no other will do; what takes an ignored one, or is beyond the best 100, counts neither way. Choices
depend on higher scores alone: a threshold changes none above it. None is a number without a value.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from harmonic_jax.metrics.coco import AT_75
from harmonic_jax.metrics.consistency import measures, sampling
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.metrics.matching import (
    AREA_RANGES,
    IouType,
    find_overlaps,
    match_detections,
)
from harmonic_jax.metrics.params import CocoParams
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

Rows = list[dict[str, Any]]


def class_table(
    truth: GroundTruthTable,
    found: DetectionTable,
    *,
    score: float = 0.5,
    iou: float = 0.5,
    iou_type: IouType = "bbox",
) -> Rows:
    """A row of all classes pooled, called "all", and one of each that has objects or detections.

        precision = TP / (TP + FP),   recall = TP / (TP + FN),   F1 = 2 TP / (2 TP + FP + FN)

    Keys: class; score and iou, what a true positive has at least; objects, TP, FP, FN, precision,
    recall, F1; best_score, the threshold of the highest F1 (of equal ones the highest); best_F1.
    """
    options: Any = {"own_class": True, "limit": truth.max_detections, "least": iou}
    near = find_overlaps(truth, found, iou_type=iou_type, **options)
    positives = match_detections(near, (iou,), (AREA_RANGES["all"],)).positives()
    is_box, rows = positives.is_true | positives.is_false, []
    for k, name in enumerate(("all", *truth.class_names), start=-1):
        boxes = np.flatnonzero(is_box & ((k < 0) | (found.labels == k)))
        boxes = boxes[np.argsort(-found.scores[boxes], kind="stable")]
        n = int((positives.is_counted & ((k < 0) | (truth.labels == k))).sum())
        if k >= 0 and not n + len(boxes):
            continue
        scores, is_true = found.scores[boxes], positives.is_true[boxes]
        kept = int((scores >= score).sum())
        tp = int(is_true[:kept].sum())
        row = {"class": name, "score": score, "iou": iou, "objects": n}
        row |= {"TP": tp, "FP": kept - tp, "FN": n - tp}
        rates = ("precision", tp, kept), ("recall", tp, n), ("F1", 2 * tp, kept + n)
        row |= {key: part / whole if whole else None for key, part, whole in rates}
        f1 = 2 * np.cumsum(is_true) / (np.arange(len(boxes)) + 1 + n)
        f1[:-1][np.diff(scores) == 0] = 0.0  # equal scores are cut off together
        best = int(np.argmax(f1)) if f1.any() else None
        row["best_score"] = None if best is None else float(scores[best])
        rows.append(row | {"best_F1": None if best is None else float(f1[best])})
    return rows


def confusion_table(case: Study, *, score: float = 0.5, iou: float = 0.5) -> Rows:
    """How many objects of each class are detected as which: a row for each class and background.

    Keys: "(annotated)", the class, then what it is detected as: every class, and "(missed)".
    Detections and objects of any class are paired from the largest IoU down to `iou` (of equal ones
    the higher score first, then the earlier row), each once. Left out are ignored objects, and
    detections without a pair that overlap one by `iou`, or are of a class that is not judged.
    """
    overlaps, scores, labels = case.overlaps, case.found.scores, case.truth.labels
    is_kept = (scores >= score) & (overlaps.rank < overlaps.max_detections)
    near = np.flatnonzero(is_kept[overlaps.detection] & (overlaps.iou >= iou))
    row, obj = overlaps.detection[near], overlaps.object[near]
    order = np.lexsort((obj, row, -scores[row], -overlaps.iou[near]))
    takes, is_free = np.full(len(scores), -1), ~overlaps.is_ignored_object
    for d, g in zip(row[order].tolist(), obj[order].tolist(), strict=True):
        if takes[d] < 0 and is_free[g]:
            takes[d], is_free[g] = g, False
    is_kept[row[overlaps.is_ignored_object[obj]]] = False
    is_kept &= ~overlaps.is_unjudged
    use, names = is_kept | (takes >= 0), case.truth.class_names
    counts = np.zeros((len(names) + 1, len(names) + 1), int)
    np.add.at(counts, (np.append(labels, len(names))[takes[use]], case.found.labels[use]), 1)
    np.add.at(counts[:, -1], labels[is_free], 1)
    lines = zip((*names, "(background)"), counts.tolist(), strict=True)
    return [dict(zip(("(annotated)", *names, "(missed)"), (a, *n), strict=True)) for a, n in lines]


def largest_confusions(rows: Rows) -> list[str]:
    """The ten pairs of classes that a confusion table counts most, in words."""
    pairs = [(n, b, *row.values()) for row in rows[:-1] for b, n in [*row.items()][1:-1] if n]
    pairs = sorted((p for p in pairs if p[1] != p[2]), key=lambda p: -p[0])[:10]
    return [f"{n} of {sum(counts)} {a} detected as {b}" for n, b, a, *counts in pairs]


def slice_table(
    case: Study, slices: Mapping[str, Collection[int]], *, score: float, resamples: int
) -> Rows:
    """The numbers of some of the images each, by their ids, lowest AP first.

    Keys: slice, images, objects (to find); AP, AP50, AP75, pearson (of scores and IoUs), and recall
    and F1 of all classes pooled at that score and IoU .5; KEY_low and KEY_high are the ends of a
    95 % interval over images. Slices without an image of the study are left out.
    """
    overlaps, positives, kept = case.overlaps, case.positives, case.found.scores >= score
    uses = [(overlaps.object_image, positives.is_counted)]
    uses += [(overlaps.image, part & kept) for part in (positives.is_true, positives.is_false)]
    ids, rows = case.truth.image_ids, []
    counts = np.stack([np.bincount(image[use], minlength=len(ids)) for image, use in uses])
    for name, members in slices.items():
        inside = np.isin(ids, list(members))
        if not inside.any():
            continue
        own_ids = frozenset(case.truth.original_ids.get(i, i) for i in ids[inside].tolist())
        tables = CocoParams(image_ids=own_ids).select(case.truth, case.found)
        part = Study(*tables, None, case.iou_type)
        weights = sampling.bootstrap_weights(len(own_ids), resamples, seed=0)
        costly = weights[: 1 + sampling.affordable_resamples(len(part.found.labels), resamples)]
        objects = measures.objects_of_classes(part, part.positives.is_counted, costly)
        ap = measures.average_precisions(part.matching, 0, objects, costly)
        at = {"AP": ap.mean(axis=0), "AP50": ap[0], "AP75": ap[AT_75]}
        numbers = {key: measures.mean_of_classes(values) for key, values in at.items()}
        pairs, one = part.pairs, np.zeros(len(part.pairs), np.int64)
        scored = measures.Rows(pairs.score, pairs.iou, pairs.image, one, 1)
        numbers["pearson"] = measures.agreement(scored, weights)["pearson"][:, 0]
        n, tp, fp = counts[:, inside] @ weights.T
        numbers |= {"recall": measures.ratio(tp, n), "F1": measures.ratio(2 * tp, tp + fp + n)}
        row = {"slice": name, "images": len(own_ids), "objects": int(n[0])}
        for key, drawn in numbers.items():
            low, high = sampling.percentile_interval(drawn[1:]) or (None, None)
            value = float(drawn[0]) if np.isfinite(drawn[0]) else None
            row |= {key: value, f"{key}_low": low, f"{key}_high": high}
        rows.append(row)
    return sorted(rows, key=lambda row: np.inf if row["AP"] is None else row["AP"])
